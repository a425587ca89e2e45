/**
 * A virtio-blk disk on a reactor (Virtual I/O Device specification 1.2, section 5.2.6). A request is
 *
 *   device reads    header (16 bytes) | data of OUT, ranges of DISCARD and WRITE_ZEROES
 *   device writes   data of IN, GET_ID | status (1 byte)
 *
 * cut into descriptors at any place. Data goes from the guest's memory to the bdev and back as it lies there. Most requests
 * are one I/O; large ones and those of several ranges are one I/O after the other, with the request's only `BdevIo`.
 */
import type { ChannelContext } from '../../bdev/bdev.ts'
import type { Channel } from '../../bdev/channel.ts'
import { type BdevIo, IoType } from '../../bdev/io.ts'
import { assert } from '../../core/assert.ts'
import type { Logger } from '../../core/log.ts'
import type { Flushable, Reactor } from '../../reactor/reactor.ts'
import { Status } from '../../spec/nvme-status.ts'
import {
  BlkHeader,
  BlkRange,
  BlkStatus,
  BlkType,
  ID_SIZE,
  RANGE_FLAG_UNMAP,
  SECTOR_SIZE,
} from '../../spec/virtio-blk.ts'
import type { BlkDescription, DeviceDescription } from '../messages.ts'
import { copySegments } from '../ring/copy-segments.ts'
import type { GuestRequest, VirtioDevice } from '../ring/request.ts'
import { RANGE_SECTORS_MAX, RANGES_MAX } from './limits.ts'
import { blkStatusOf } from './status.ts'

/**
 * In bytes. A guest may ask for all of its disk at once; a bdev in memory would keep the reactor busy for as long. So larger
 * requests are done in pieces; of what follows their first ones a disk submits one in a round.
 */
const PIECE_SIZE = 4 << 20

/** The context of a request of which no more is to be started. */
const STOPPED = {}

export class BlkDevice implements VirtioDevice, Flushable {
  readonly eventQueue = null
  readonly #reactor: Reactor
  readonly #bdevs: ChannelContext
  readonly #log: Logger
  #description: BlkDescription
  #channel: Channel | null
  #blocksPerByte = 0
  /** Submitted to a channel; each has its place here as its I/O's tag. */
  readonly #active: GuestRequest[] = []
  /** Those whose next piece is to be submitted, in turn. */
  readonly #large: GuestRequest[] = []
  /** A header or a range that the guest has cut into pieces. */
  readonly #gathered = new DataView(new ArrayBuffer(BlkHeader.size))
  readonly #id = new Uint8Array(ID_SIZE)
  #hasComplained = false
  #onQuiet: (() => void) | null = null

  /** Throws `RpcError` ENODEV when there is no such bdev. `log`: for what guests cause. */
  constructor(description: BlkDescription, bdevs: ChannelContext, log: Logger) {
    this.#reactor = bdevs.reactor
    this.#bdevs = bdevs
    this.#log = log
    this.#description = description
    Buffer.from(this.#id.buffer).write(description.serial)
    this.#channel = description.bdev === null ? null : bdevs.open(description.bdev)
    if (this.#channel !== null) this.#blocksPerByte = 1 / this.#channel.info.blockSize
  }

  start(request: GuestRequest): void {
    const { readableBytes, writableBytes, segments } = request
    request.context = null
    if (writableBytes === 0) {
      this.#complain(request)
      request.complete(0)
      return
    }
    if (readableBytes < BlkHeader.size) {
      this.#end(request, BlkStatus.IOERR, 1)
      return
    }
    const { memory } = request.queue
    let at = 0
    let header: DataView = this.#gathered
    if (segments.lengths[0]! >= BlkHeader.size) {
      at = memory.locateIn(segments, 0, 0, BlkHeader.size)
      header = memory.view
    } else {
      this.#gather(request, 0)
    }
    const type = BlkHeader.type.get(header, at)
    if (type === BlkType.IN) {
      this.#transfer(request, IoType.READ, BlkHeader.sector.get(header, at), writableBytes - 1)
    } else if (type === BlkType.OUT) {
      this.#transfer(request, IoType.WRITE, BlkHeader.sector.get(header, at), readableBytes - BlkHeader.size)
    } else {
      this.#startOther(request, type)
    }
  }

  ioDone(request: GuestRequest): void {
    const { io } = request
    this.#forget(request)
    if (io.status !== Status.SUCCESS) {
      this.#end(request, blkStatusOf(io.status), 1)
    } else if (io.type === IoType.READ) {
      const size = request.writableBytes - 1
      if (request.step < size) this.#goOnLater(request)
      else this.#end(request, BlkStatus.OK, size + 1)
    } else if (io.type === IoType.WRITE) {
      const size = request.readableBytes - BlkHeader.size
      if (request.step < size) this.#goOnLater(request)
      else this.#end(request, BlkStatus.OK, 1)
    } else if (io.type === IoType.FLUSH) {
      this.#end(request, BlkStatus.OK, 1)
    } else {
      this.#nextRange(request)
    }
  }

  async update(description: DeviceDescription): Promise<void> {
    assert(description.kind === 'blk', 'a disk stays a disk')
    const { bdev } = this.#description
    this.#description = description
    if (description.bdev === bdev) return
    assert(description.bdev === null, 'a bdev is taken away, and never exchanged for another')
    const channel = this.#channel!
    this.#channel = null
    for (const { io } of this.#active) channel.abort(io)
    if (this.#active.length > 0) {
      await new Promise<void>(resolve => {
        this.#onQuiet = resolve
      })
    }
    this.#bdevs.close(channel)
  }

  /** There is no event queue, hence there are no events. */
  sendEvent(): void {}

  /** A request between two pieces is with no channel: it ends when its turn comes. */
  abort(request: GuestRequest): void {
    request.context = STOPPED
    request.io.channel?.abort(request.io)
  }

  /** At the end of a round: the next piece of one large request. */
  flush(): void {
    const request = this.#large.shift()!
    if (this.#large.length > 0) this.#reactor.flushLater(this)
    const isRead = request.io.type === IoType.READ
    this.#nextPiece(request, isRead ? request.writableBytes - 1 : request.readableBytes - BlkHeader.size)
  }

  close(): void {
    assert(this.#active.length === 0, 'a disk is closed when nothing is outstanding')
    if (this.#channel !== null) this.#bdevs.close(this.#channel)
  }

  #startOther(request: GuestRequest, type: number): void {
    if (type === BlkType.FLUSH) {
      const { io } = request
      io.type = IoType.FLUSH
      io.fua = false
      io.firstBlock = 0
      io.blockCount = 0
      io.segments.count = 0
      this.#submit(request)
    } else if (type === BlkType.GET_ID) {
      this.#end(request, BlkStatus.OK, this.#writeId(request))
    } else if (type === BlkType.DISCARD) {
      this.#startRanges(request, IoType.UNMAP)
    } else if (type === BlkType.WRITE_ZEROES) {
      this.#startRanges(request, IoType.WRITE_ZEROES)
    } else {
      this.#end(request, BlkStatus.UNSUPP, 1)
    }
  }

  #transfer(request: GuestRequest, type: IoType, sector: number, size: number): void {
    const { io, segments } = request
    io.type = type
    io.fua = this.#description.writeThrough
    io.firstBlock = sector * SECTOR_SIZE * this.#blocksPerByte
    io.blockCount = size * this.#blocksPerByte
    if (size === 0 || !this.#isAllowed(io)) {
      this.#end(request, BlkStatus.IOERR, 1)
      return
    }
    request.step = 0
    if (size > PIECE_SIZE) {
      io.blockCount = 0
      this.#nextPiece(request, size)
      return
    }
    request.step = size
    const { count, lengths } = segments
    // As every driver that we know cuts requests: the data is whole segments.
    if (type === IoType.READ && lengths[count - 1] === 1) {
      copySegments(segments, request.readableCount, count - 1, io.segments)
    } else if (type === IoType.WRITE && lengths[0] === BlkHeader.size) {
      copySegments(segments, 1, request.readableCount, io.segments)
    } else {
      this.#slice(request, 0, size)
    }
    this.#submit(request)
  }

  #goOnLater(request: GuestRequest): void {
    this.#large.push(request)
    if (this.#large.length === 1) this.#reactor.flushLater(this)
  }

  /** `step`: how much of the data is done. The range of all of it was checked. */
  #nextPiece(request: GuestRequest, size: number): void {
    const { io } = request
    const piece = Math.min(size - request.step, PIECE_SIZE)
    io.firstBlock += io.blockCount
    io.blockCount = piece * this.#blocksPerByte
    this.#slice(request, request.step, piece)
    request.step += piece
    this.#submit(request)
  }

  /** Fills the I/O's list with a part of the data. */
  #slice({ io, segments, readableBytes }: GuestRequest, offset: number, size: number): void {
    const start = io.type === IoType.READ ? readableBytes : BlkHeader.size
    io.segments.count = 0
    io.segments.reserve(segments.count)
    segments.slice(start + offset, size, io.segments)
  }

  #startRanges(request: GuestRequest, type: IoType): void {
    const { io } = request
    const size = request.readableBytes - BlkHeader.size
    if (size % BlkRange.size !== 0 || size === 0 || size > BlkRange.size * RANGES_MAX) {
      this.#end(request, BlkStatus.IOERR, 1)
      return
    }
    io.type = type
    io.fua = this.#description.writeThrough
    io.segments.count = 0
    request.step = BlkHeader.size
    this.#nextRange(request)
  }

  /** `step`: where the next range is in what the device reads. */
  #nextRange(request: GuestRequest): void {
    const { io } = request
    const range = this.#gathered
    while (request.step < request.readableBytes) {
      this.#gather(request, request.step)
      request.step += BlkRange.size
      const sectors = BlkRange.numSectors.get(range, 0)
      const flags = BlkRange.flags.get(range, 0)
      if ((flags & (io.type === IoType.UNMAP ? ~0 : ~RANGE_FLAG_UNMAP)) !== 0) {
        this.#end(request, BlkStatus.UNSUPP, 1)
        return
      }
      io.firstBlock = BlkRange.sector.get(range, 0) * SECTOR_SIZE * this.#blocksPerByte
      io.blockCount = sectors * SECTOR_SIZE * this.#blocksPerByte
      if (sectors > RANGE_SECTORS_MAX || !this.#isAllowed(io)) {
        this.#end(request, BlkStatus.IOERR, 1)
        return
      }
      if (sectors > 0) {
        this.#submit(request)
        return
      }
    }
    this.#end(request, BlkStatus.OK, 1)
  }

  /** Whether there is a bdev, and the I/O is one that the guest may do to it: whole blocks, all of them within. */
  #isAllowed({ type, firstBlock, blockCount }: BdevIo): boolean {
    const channel = this.#channel
    return (
      channel !== null &&
      (type === IoType.READ || !this.#description.readOnly) &&
      Number.isInteger(firstBlock) &&
      Number.isInteger(blockCount) &&
      firstBlock + blockCount <= channel.info.blockCount
    )
  }

  #submit(request: GuestRequest): void {
    const channel = this.#channel
    if (request.context === STOPPED) {
      request.io.status = Status.ABORTED_BY_REQUEST
      this.#end(request, BlkStatus.IOERR, 1)
      return
    }
    if (channel === null) {
      this.#end(request, BlkStatus.IOERR, 1)
      return
    }
    request.io.tag = this.#active.length
    this.#active.push(request)
    channel.submit(request.io)
  }

  /** The last one takes its place. */
  #forget(request: GuestRequest): void {
    const last = this.#active.pop()!
    if (last !== request) {
      const { tag } = request.io
      this.#active[tag] = last
      last.io.tag = tag
    }
    if (this.#onQuiet !== null && this.#active.length === 0) {
      this.#onQuiet()
      this.#onQuiet = null
    }
  }

  /** The status is the last byte that the device writes. */
  #end(request: GuestRequest, status: number, writtenBytes: number): void {
    const { segments } = request
    const { lengths, count } = segments
    const { memory } = request.queue
    const at = memory.locateIn(segments, count - 1, lengths[count - 1]! - 1, 1)
    memory.view.setUint8(at, status)
    request.complete(writtenBytes)
  }

  /** Returns how many bytes were written from the start of what is writable, with the status. */
  #writeId(request: GuestRequest): number {
    const { memory } = request.queue
    const room = request.writableBytes - 1
    const size = Math.min(room, ID_SIZE)
    const { addresses, lengths } = request.segments
    let done = 0
    for (let i = request.readableCount; done < size; i++) {
      const piece = Math.min(lengths[i]!, size - done)
      const at = memory.locate(addresses[i]!, piece)
      for (let byte = 0; byte < piece; byte++) memory.view.setUint8(at + byte, this.#id[done + byte]!)
      done += piece
    }
    return size === room ? size + 1 : size
  }

  /** Brings together 16 bytes of what the device reads, from `offset` on. */
  #gather(request: GuestRequest, offset: number): void {
    const { memory } = request.queue
    const { addresses, lengths } = request.segments
    let skip = offset
    let done = 0
    for (let i = 0; done < BlkHeader.size; i++) {
      for (; skip < lengths[i]! && done < BlkHeader.size; skip++) {
        const at = memory.locate(addresses[i]! + skip, 1)
        this.#gathered.setUint8(done++, memory.view.getUint8(at))
      }
      skip -= lengths[i]!
    }
  }

  #complain({ queue, readableBytes }: GuestRequest): void {
    if (this.#hasComplained) return
    this.#hasComplained = true
    this.#log.warning(
      `${this.#description.serial}: queue ${queue.index} has a request of ${readableBytes} bytes to read and none to write, ` +
        'where its status would belong: it is answered without one, and further ones are not logged',
    )
  }
}
