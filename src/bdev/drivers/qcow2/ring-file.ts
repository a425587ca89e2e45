/**
 * An open file through a reactor's ring. Transfers may end short; what is missing is asked for again. On tmpfs data goes by
 * system calls at once: the ring would hand each one to a kernel thread, and memory never makes us wait.
 *
 * Nobody but us changes the file's size, so an end before the one that is known here is somebody's mistake. It shows in a
 * read that comes up short, and is looked for where it would be covered up: before the file is extended, which would make a
 * hole of what is gone, and before a sync. From then on nothing is written: what is left can still be read.
 */
import { constants } from 'node:os'
import { assert } from '../../../core/assert.ts'
import type { Deliverable, Reactor } from '../../../reactor/reactor.ts'
import { Opcode } from '../../../spec/io-uring.ts'
import { lseek, preadv, pwritev } from '../../../sys/libc.ts'
import { memset } from '../../../sys/memory.ts'
import type { RingHandler, Uring } from '../../../sys/uring.ts'
import { Segments } from '../../io.ts'
import { IovecList } from '../iovec-list.ts'
import type { ImageFile } from './image-file.ts'
import type { Medium } from './medium.ts'
import type { FileWaiter } from './task.ts'

const { EAGAIN, EINTR, EIO, ENOMEM, EOPNOTSUPP } = constants.errno
const SEEK_END = 2
const FALLOC_KEEP_SIZE = 0x01
const PUNCH_HOLE = 0x02 | FALLOC_KEEP_SIZE
const ZERO_RANGE = 0x10
const FSYNC_DATASYNC = 1
const RWF_DSYNC = 2
/** Zeroes up to this size are cheaper written than asked for: the ring hands every FALLOCATE to a kernel thread. */
const ZERO_WRITE_MAX = 65536

const Kind = { READ: 0, WRITE: 1, SYNC: 2, PUNCH: 3, ZERO: 4 } as const
type Kind = (typeof Kind)[keyof typeof Kind]

export class RingFile implements ImageFile {
  readonly fd: number
  readonly sizeBytes: number
  endBytes: number
  readonly isMemory: boolean
  readonly reactor: Reactor
  readonly ring: Uring
  /** Somebody else has made it shorter. */
  isCutOff = false
  /** Whether the file system has the calls. */
  canPunch = true
  canZero = true
  readonly #free: Operation[] = []
  readonly #all: Operation[] = []
  /** `ZERO_WRITE_MAX` zeroed bytes that nobody writes to. */
  #zeroes = 0
  readonly #isLocal: boolean
  readonly #whenCutOff: (message: string) => void

  /** `whenCutOff` is called once, with what is to be said of the file. */
  constructor(
    fd: number,
    { isMemory, isLocal }: Medium,
    reactor: Reactor,
    ring: Uring,
    whenCutOff: (message: string) => void,
  ) {
    this.fd = fd
    this.sizeBytes = lseek(fd, 0, SEEK_END)
    this.endBytes = this.sizeBytes
    this.isMemory = isMemory
    this.#isLocal = isLocal
    this.reactor = reactor
    this.ring = ring
    this.#whenCutOff = whenCutOff
  }

  read(offset: number, address: number, length: number, waiter: FileWaiter): void {
    this.#operation(Kind.READ, offset, length, waiter).withAddress(address)
  }

  write(offset: number, address: number, length: number, waiter: FileWaiter): void {
    this.#operation(Kind.WRITE, offset, length, waiter).withAddress(address)
  }

  readTo(offset: number, length: number, segments: Segments, skip: number, waiter: FileWaiter): void {
    this.#operation(Kind.READ, offset, length, waiter).withSegments(segments, skip)
  }

  writeFrom(
    offset: number,
    length: number,
    segments: Segments,
    skip: number,
    isFua: boolean,
    waiter: FileWaiter,
  ): void {
    const operation = this.#operation(Kind.WRITE, offset, length, waiter)
    operation.isFua = isFua
    operation.withSegments(segments, skip)
  }

  zero(offset: number, length: number, waiter: FileWaiter): void {
    this.#operation(Kind.ZERO, offset, length, waiter).go()
  }

  punch(offset: number, length: number, waiter: FileWaiter): void {
    this.#operation(Kind.PUNCH, offset, length, waiter).go()
  }

  sync(waiter: FileWaiter): void {
    this.#operation(Kind.SYNC, 0, 0, waiter).go()
  }

  /** Nothing may be outstanding. */
  close(): void {
    assert(this.#free.length === this.#all.length, 'nothing is outstanding on a file that is closed')
    for (const { token } of this.#all) this.ring.unregister(token)
  }

  /** Looks whether it is still as long as it was, where no server has to be asked. */
  checkEnd(): void {
    if (this.#isLocal && !this.isCutOff && lseek(this.fd, 0, SEEK_END) < this.endBytes) this.cutOff()
  }

  cutOff(): void {
    if (this.isCutOff) return
    this.isCutOff = true
    const size = lseek(this.fd, 0, SEEK_END)
    this.#whenCutOff(
      `it has ${size} bytes and had ${this.endBytes}: somebody made it shorter; what is left can be read, nothing is written ` +
        'any more: copy what is left and restore the rest',
    )
  }

  /** 0 when memory is short. */
  get zeroes(): number {
    if (this.#zeroes === 0) {
      this.#zeroes = this.reactor.arena.allocate(ZERO_WRITE_MAX, 4096)
      if (this.#zeroes > 0) memset(this.#zeroes, 0, ZERO_WRITE_MAX)
    }
    return this.#zeroes
  }

  recycle(operation: Operation): void {
    this.#free.push(operation)
  }

  #operation(kind: Kind, offset: number, length: number, waiter: FileWaiter): Operation {
    let operation = this.#free.pop()
    if (operation === undefined) {
      operation = new Operation(this)
      this.#all.push(operation)
    }
    operation.begin(kind, offset, length, waiter)
    return operation
  }
}

/** A slot for one operation, kept for the next. */
class Operation implements RingHandler, Deliverable {
  readonly token: number
  next: Deliverable | null = null
  isFua = false
  readonly #file: RingFile
  #kind: Kind = Kind.READ
  #offset = 0
  #length = 0
  #done = 0
  #waiter: FileWaiter | null = null
  #result = 0
  readonly #single = new Segments(1)
  #segments: Segments
  #skip = 0
  readonly #iovecs: IovecList
  #isOffloaded = false

  constructor(file: RingFile) {
    this.#file = file
    this.#iovecs = new IovecList(file.reactor.arena)
    this.#segments = this.#single
    this.token = file.ring.register(this)
  }

  begin(kind: Kind, offset: number, length: number, waiter: FileWaiter): void {
    this.#kind = kind
    this.#offset = offset
    this.#length = length
    this.#done = 0
    this.#waiter = waiter
    this.isFua = false
    this.#isOffloaded = kind !== Kind.READ && !this.#file.isMemory
    if (this.#isOffloaded) this.#file.reactor.offloaded++
  }

  withAddress(address: number): void {
    this.#single.set(address, this.#length)
    this.withSegments(this.#single, 0)
  }

  withSegments(segments: Segments, skip: number): void {
    this.#segments = segments
    this.#skip = skip
    this.go()
  }

  /** Starts, or goes on with, what is to be done. */
  go(): void {
    const { ring, fd, isMemory } = this.#file
    const kind = this.#kind
    if (kind === Kind.READ) this.#transfer()
    else if (!this.#mayChange()) this.#end(-EIO)
    else if (kind === Kind.WRITE) this.#transfer()
    else if (kind === Kind.ZERO) this.#zero()
    else if (kind === Kind.SYNC) {
      if (isMemory) this.#end(0)
      else ring.prepare(Opcode.FSYNC, fd, 0, 0, 0, FSYNC_DATASYNC, this.token)
    } else if (!this.#file.canPunch) this.#end(0)
    else ring.prepare(Opcode.FALLOCATE, fd, this.#offset, this.#length, PUNCH_HOLE, 0, this.token)
  }

  complete(result: number): void {
    if (result === -EINTR || result === -EAGAIN) this.go()
    else if (result === -EOPNOTSUPP && this.#kind === Kind.PUNCH) {
      // A hint that cannot be followed is not an error.
      this.#file.canPunch = false
      this.#end(0)
    } else if (result === -EOPNOTSUPP && this.#kind === Kind.ZERO && this.#file.canZero) {
      this.#file.canZero = false
      this.#zero()
    } else if (result < 0) this.#end(result)
    else if (this.#kind <= Kind.WRITE) this.#transferred(result)
    else if (this.#kind === Kind.ZERO) this.#transferred(this.#isZeroedAtOnce ? this.#length : result)
    else this.#end(0)
  }

  /** In the reactor's round, for what ended inside the call. */
  deliver(): void {
    this.#tell()
  }

  /** False when the file is not what it was. Looks at it where that costs little beside what is to be done. */
  #mayChange(): boolean {
    const file = this.#file
    if (this.#kind === Kind.SYNC || this.#offset + this.#length > file.endBytes) file.checkEnd()
    return !file.isCutOff
  }

  get #isZeroedAtOnce(): boolean {
    return this.#file.canZero && this.#length > ZERO_WRITE_MAX
  }

  #zero(): void {
    const { ring, fd } = this.#file
    if (this.#isZeroedAtOnce) {
      ring.prepare(Opcode.FALLOCATE, fd, this.#offset, this.#length, ZERO_RANGE, 0, this.token)
      return
    }
    const { zeroes } = this.#file
    if (zeroes === 0) {
      this.#end(-ENOMEM)
      return
    }
    const piece = Math.min(this.#length - this.#done, ZERO_WRITE_MAX)
    ring.prepare(Opcode.WRITE, fd, this.#offset + this.#done, zeroes, piece, 0, this.token)
  }

  #transfer(): void {
    const { ring, fd, isMemory } = this.#file
    const isRead = this.#kind === Kind.READ
    const flags = this.isFua ? RWF_DSYNC : 0
    const at = this.#offset + this.#done
    const segments = this.#segments
    const first = this.#skip + this.#done
    const left = this.#length - this.#done
    if (!isMemory && segments.lengths[0]! >= first + left) {
      const opcode = isRead ? Opcode.READ : Opcode.WRITE
      ring.prepare(opcode, fd, at, segments.addresses[0]! + first, left, flags, this.token)
      return
    }
    const count = this.#iovecs.fill(segments, first, left)
    if (count === 0) this.#end(-ENOMEM)
    else if (isMemory) this.#atOnce(isRead, at, count)
    else
      ring.prepare(
        isRead ? Opcode.READV : Opcode.WRITEV,
        fd,
        at,
        this.#iovecs.address,
        count,
        flags,
        this.token,
      )
  }

  #atOnce(isRead: boolean, at: number, count: number): void {
    const result = (isRead ? preadv : pwritev)(this.#file.fd, this.#iovecs.address, count, at)
    if (result < 0) this.#end(result)
    else this.#transferred(result)
  }

  #transferred(result: number): void {
    const file = this.#file
    this.#done += result
    if (result === 0 && this.#kind === Kind.READ) this.#endShort()
    else if (this.#done < this.#length) this.go()
    else {
      const end = this.#offset + this.#length
      if (end > file.endBytes && this.#kind !== Kind.READ) file.endBytes = end
      this.#end(0)
    }
  }

  /** The file ends here. */
  #endShort(): void {
    const file = this.#file
    if (this.#offset + this.#done < file.endBytes) {
      file.cutOff()
      this.#end(-EIO)
      return
    }
    this.#zeroRest()
    this.#end(0)
  }

  /** What is missing reads as zeroes. */
  #zeroRest(): void {
    let skip = this.#skip + this.#done
    let left = this.#length - this.#done
    const { addresses, lengths } = this.#segments
    for (let i = 0; left > 0; i++) {
      const part = Math.min(lengths[i]! - skip, left)
      if (part > 0) {
        memset(addresses[i]! + skip, 0, part)
        left -= part
      }
      skip = Math.max(0, skip - lengths[i]!)
    }
  }

  /** From the ring's completion it is told at once, otherwise in the reactor's round. */
  #end(result: number): void {
    this.#result = result
    if (this.#file.isMemory || this.#kind === Kind.PUNCH || result < 0) {
      this.#file.reactor.deliverLater(this)
    } else this.#tell()
  }

  #tell(): void {
    const waiter = this.#waiter!
    this.#waiter = null
    this.#segments = this.#single
    if (this.#isOffloaded) this.#file.reactor.offloaded--
    this.#file.recycle(this)
    waiter.fileDone(this.#result)
  }
}
