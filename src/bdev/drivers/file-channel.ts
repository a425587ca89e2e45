/**
 * Reads and writes of a file or a block device: one io_uring operation an I/O.
 *
 *   buffered file, block device      READ(V) / WRITE(V) through the ring
 *   file on tmpfs                    preadv / pwritev at once: the ring would hand each to a kernel thread, and memory
 *                                    never makes us wait
 *   direct (O_DIRECT), unaligned     through a buffer of our own, piece by piece
 *
 * Transfers may end short; what is missing is asked for again until nothing more comes.
 */
import { constants } from 'node:os'
import { errnoName } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { Opcode } from '../../spec/io-uring.ts'
import { Status } from '../../spec/nvme-status.ts'
import { lseek, preadv, pwritev } from '../../sys/libc.ts'
import { BufferPool } from '../../sys/memory.ts'
import type { RingHandler, Uring } from '../../sys/uring.ts'
import type { BdevInfo, DriverChannel } from '../bdev.ts'
import { statusFromErrno } from '../errno-status.ts'
import { ExtentState, type Extents } from '../extents.ts'
import { type BdevIo, IoType } from '../io.ts'
import { IovecList } from './iovec-list.ts'

const log = logger('bdev')
const { EAGAIN, EINTR, ENXIO, EOPNOTSUPP } = constants.errno

const SEEK_DATA = 3
const SEEK_HOLE = 4

const FALLOC_KEEP_SIZE = 0x01
const PUNCH_HOLE = 0x02 | FALLOC_KEEP_SIZE
const ZERO_RANGE = 0x10 | FALLOC_KEEP_SIZE
const FSYNC_DATASYNC = 1
const RWF_DSYNC = 2
/** One line about failing I/O in this time, so that a full disk does not fill the log's disk too. */
const LOG_PAUSE_US = 10e6

/** What a channel needs to know of the open file: cloned to the reactors. */
export interface OpenFile {
  readonly fd: number
  readonly path: string
  /** Addresses and lengths that the kernel takes with O_DIRECT are multiples of this; 1 for buffered I/O. */
  readonly alignment: number
  /** Everything is done at once by system calls: the medium is memory. */
  readonly isMemory: boolean
}

export class FileChannel implements DriverChannel {
  readonly lends = false
  readonly info: BdevInfo
  readonly file: OpenFile
  readonly reactor: Reactor
  readonly ring: Uring
  /** Falls back to punching holes where the file system cannot zero a range. */
  zeroMode = ZERO_RANGE
  readonly #free: Transfer[] = []
  readonly #all: Transfer[] = []
  #waiting: Transfer[] = []
  #lastLogUs = Number.NEGATIVE_INFINITY

  constructor(info: BdevInfo, reactor: Reactor, ring: Uring) {
    this.info = info
    this.file = info.device as OpenFile
    this.reactor = reactor
    this.ring = ring
  }

  submit(io: BdevIo): void {
    const transfer = this.#free.pop() ?? this.#grow()
    transfer.start(io)
  }

  abort(io: BdevIo | null): void {
    for (const transfer of this.#all) {
      if (transfer.io !== null && (io === null || transfer.io === io)) transfer.cancel()
    }
  }

  /** By system calls that find their answer in the file system's cached maps. A block that is partly a hole is data. */
  extents(firstBlock: number, blockCount: number, extents: Extents): void {
    const { blockSize } = this.info
    const { fd } = this.file
    const endBlock = firstBlock + blockCount
    let block = firstBlock
    while (block < endBlock && !extents.isFull) {
      const data = lseek(fd, block * blockSize, SEEK_DATA)
      // ENXIO: no data from here to the end of the file. Any other error: nothing is known.
      const dataBlock = data >= 0 ? Math.floor(data / blockSize) : data === -ENXIO ? endBlock : block
      if (dataBlock > block) {
        const end = Math.min(dataBlock, endBlock)
        extents.push(end - block, ExtentState.HOLE | ExtentState.ZERO)
        block = end
        continue
      }
      const hole = lseek(fd, block * blockSize, SEEK_HOLE)
      const end = hole >= 0 ? Math.max(block + 1, Math.ceil(hole / blockSize)) : endBlock
      extents.push(Math.min(end, endBlock) - block, 0)
      block = end
    }
  }

  close(): void {
    for (const { token } of this.#all) this.ring.unregister(token)
  }

  /** Takes back what has ended. */
  recycle(transfer: Transfer): void {
    this.#free.push(transfer)
  }

  /** Has `retry` called next round: there was no buffer. */
  waitForBuffer(transfer: Transfer): void {
    if (this.#waiting.length === 0) {
      this.reactor.addPoller(this.#retry)
      this.reactor.awaited++
    }
    this.#waiting.push(transfer)
  }

  /** Says why I/O failed, at a bounded rate. */
  complain(io: BdevIo, why: string): void {
    const { nowUs } = this.reactor
    if (nowUs - this.#lastLogUs < LOG_PAUSE_US) return
    this.#lastLogUs = nowUs
    const what = `${OPERATION[io.type]} of ${io.blockCount} blocks at block ${io.firstBlock}`
    log.error(`${this.info.name}: ${what} failed: ${why} (${this.file.path})`)
  }

  readonly #retry = (): number => {
    const waiting = this.#waiting
    this.#waiting = []
    this.reactor.awaited--
    this.reactor.removePoller(this.#retry)
    for (const transfer of waiting) transfer.go()
    return waiting.length - this.#waiting.length
  }

  #grow(): Transfer {
    const transfer = new Transfer(this)
    this.#all.push(transfer)
    return transfer
  }
}

const OPERATION = ['read', 'write', 'flush', 'write zeroes', 'unmap', 'compare', 'compare and write', 'reset']

/** A slot for one I/O, kept for the next. */
class Transfer implements RingHandler {
  readonly token: number
  io: BdevIo | null = null
  readonly #channel: FileChannel
  #offset = 0
  #size = 0
  #done = 0
  readonly #iovecs: IovecList
  /** A buffer of ours between the kernel and misaligned data, and its size; 0 when there is none. */
  #bounce = 0
  #bounceSize = 0
  #isUnaligned = false
  #isOffloaded = false
  /** Of the FALLOCATE that is outstanding. */
  #mode = PUNCH_HOLE
  #isSyncing = false
  #isWaiting = false
  #isCanceled = false

  constructor(channel: FileChannel) {
    this.#channel = channel
    this.#iovecs = new IovecList(channel.reactor.arena)
    this.token = channel.ring.register(this)
  }

  start(io: BdevIo): void {
    const { info, file } = this.#channel
    this.io = io
    this.#offset = io.firstBlock * info.blockSize
    this.#size = io.blockCount * info.blockSize
    this.#done = 0
    this.#isSyncing = false
    this.#isCanceled = false
    this.#isOffloaded = isForWorkers(io, file)
    if (this.#isOffloaded) this.#channel.reactor.offloaded++
    this.#isUnaligned = file.alignment > 1 && io.type <= IoType.WRITE && !isAligned(io, file.alignment)
    this.go()
  }

  cancel(): void {
    this.#isCanceled = true
    if (!this.#isWaiting) this.#channel.ring.cancel(this.token)
  }

  /** Starts, or goes on with, what is to be done. */
  go(): void {
    this.#isWaiting = false
    const io = this.io!
    if (this.#isCanceled) this.#end(Status.ABORTED_BY_REQUEST)
    else if (io.type === IoType.READ || io.type === IoType.WRITE) this.#transfer(io)
    else if (io.type === IoType.FLUSH || this.#isSyncing) this.#sync()
    else this.#allocate(io.type === IoType.UNMAP ? PUNCH_HOLE : this.#channel.zeroMode)
  }

  complete(result: number): void {
    const io = this.io!
    if (result === -EINTR || result === -EAGAIN) this.go()
    else if (io.type === IoType.READ || io.type === IoType.WRITE) this.#transferred(io, result)
    else if (result === -EOPNOTSUPP && !this.#isSyncing) this.#cannotAllocate(io)
    else if (result < 0) this.#fail(io, -result)
    else if (io.fua && io.type !== IoType.FLUSH && !this.#isSyncing) this.#sync()
    else this.#end(Status.SUCCESS)
  }

  #transfer(io: BdevIo): void {
    const { ring, file } = this.#channel
    const isRead = io.type === IoType.READ
    if (this.#isUnaligned) {
      this.#bounced(io)
      return
    }
    if (io.segments.count === 1 && !file.isMemory) {
      const address = io.segments.addresses[0]! + this.#done
      const flags = io.fua && !isRead ? RWF_DSYNC : 0
      ring.prepare(
        isRead ? Opcode.READ : Opcode.WRITE,
        file.fd,
        this.#offset + this.#done,
        address,
        this.#size - this.#done,
        flags,
        this.token,
      )
      return
    }
    const count = this.#iovecs.fill(io.segments, this.#done, this.#size - this.#done)
    if (count === 0) this.#end(Status.COMMAND_INTERRUPTED)
    else if (file.isMemory) this.#atOnce(io, isRead, count)
    else this.#vectored(io, isRead, count)
  }

  #vectored(io: BdevIo, isRead: boolean, count: number): void {
    const flags = io.fua && !isRead ? RWF_DSYNC : 0
    const opcode = isRead ? Opcode.READV : Opcode.WRITEV
    const { ring, file } = this.#channel
    ring.prepare(opcode, file.fd, this.#offset + this.#done, this.#iovecs.address, count, flags, this.token)
  }

  #atOnce(io: BdevIo, isRead: boolean, count: number): void {
    const call = isRead ? preadv : pwritev
    this.#transferred(io, call(this.#channel.file.fd, this.#iovecs.address, count, this.#offset + this.#done))
  }

  /** One piece through a buffer of ours. */
  #bounced(io: BdevIo): void {
    const { ring, file, reactor } = this.#channel
    const isRead = io.type === IoType.READ
    const piece = Math.min(this.#size - this.#done, BufferPool.MAX_SIZE)
    if (this.#bounce === 0) {
      this.#bounce = reactor.buffers.acquire(piece)
      this.#bounceSize = piece
      if (this.#bounce === 0) {
        this.#isWaiting = true
        this.#channel.waitForBuffer(this)
        return
      }
    }
    if (!isRead) io.segments.copyTo(this.#bounce, this.#done, piece)
    const flags = io.fua && !isRead ? RWF_DSYNC : 0
    const opcode = isRead ? Opcode.READ : Opcode.WRITE
    ring.prepare(opcode, file.fd, this.#offset + this.#done, this.#bounce, piece, flags, this.token)
  }

  #transferred(io: BdevIo, result: number): void {
    if (result < 0) {
      this.#fail(io, -result)
      return
    }
    if (result === 0) {
      this.#shrunk(io)
      return
    }
    if (this.#isUnaligned && io.type === IoType.READ) {
      io.segments.copyFrom(this.#bounce, this.#done, result)
    }
    this.#done += result
    if (this.#done === this.#size) this.#end(Status.SUCCESS)
    else this.go()
  }

  #shrunk(io: BdevIo): void {
    const { info } = this.#channel
    const isWrite = io.type === IoType.WRITE
    this.#channel.complain(
      io,
      `the file ends at byte ${this.#offset + this.#done}, before the device's ${info.blockCount} blocks of ` +
        `${info.blockSize} bytes: somebody made it shorter; make it long enough again, or use bdev_${info.driver}_rescan`,
    )
    this.#end(isWrite ? Status.WRITE_FAULT : Status.UNRECOVERED_READ_ERROR)
  }

  #sync(): void {
    const { ring, file } = this.#channel
    this.#isSyncing = true
    if (file.isMemory) this.#end(Status.SUCCESS)
    else ring.prepare(Opcode.FSYNC, file.fd, 0, 0, 0, FSYNC_DATASYNC, this.token)
  }

  #allocate(mode: number): void {
    const { ring, file } = this.#channel
    this.#mode = mode
    // The entry has the length in `addr` and the mode in `len`.
    ring.prepare(Opcode.FALLOCATE, file.fd, this.#offset, this.#size, mode, 0, this.token)
  }

  #cannotAllocate(io: BdevIo): void {
    if (io.type === IoType.UNMAP) {
      // A hint that cannot be followed is not an error.
      this.#end(Status.SUCCESS)
    } else if (this.#mode === ZERO_RANGE) {
      this.#channel.zeroMode = PUNCH_HOLE
      this.#allocate(PUNCH_HOLE)
    } else this.#fail(io, EOPNOTSUPP)
  }

  #fail(io: BdevIo, errno: number): void {
    const status = statusFromErrno(errno, io.type !== IoType.READ)
    if (status !== Status.ABORTED_BY_REQUEST) {
      const remedy = status === Status.CAPACITY_EXCEEDED ? ', free space on its file system' : ''
      this.#channel.complain(io, `${errnoName(errno)}${remedy}`)
    }
    this.#end(status)
  }

  #end(status: number): void {
    const io = this.io!
    if (this.#bounce !== 0) {
      this.#channel.reactor.buffers.release(this.#bounce, this.#bounceSize)
      this.#bounce = 0
    }
    this.io = null
    if (this.#isOffloaded) this.#channel.reactor.offloaded--
    this.#channel.recycle(this)
    io.complete(status)
  }
}

/** Whether the ring hands it to a worker thread, or may: reads, and direct writes, it only starts and hears of their end. */
function isForWorkers({ type }: BdevIo, { isMemory, alignment }: OpenFile): boolean {
  return !isMemory && type !== IoType.READ && (type !== IoType.WRITE || alignment === 1)
}

function isAligned(io: BdevIo, alignment: number): boolean {
  const { segments } = io
  for (let i = 0; i < segments.count; i++) {
    if (segments.addresses[i]! % alignment !== 0 || segments.lengths[i]! % alignment !== 0) return false
  }
  return true
}
