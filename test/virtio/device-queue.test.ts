import { afterEach, describe, expect, it } from 'vitest'
import { BdevIo, IoType } from '../../src/bdev/io.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { Topic, type Unit } from '../../src/virtio/messages.ts'
import { jamEventfd } from '../support/descriptors.ts'
import { bytesOf, type Chain, dump } from './device.ts'
import { CONTROLLER, TestQueue } from './queue.ts'

let queue: TestQueue
afterEach(() => queue.close())

async function open(unit: Partial<Unit> = {}, size = 64): Promise<void> {
  queue = await TestQueue.open(unit, size)
}

const block = (fill: number, count = 1): Uint8Array => new Uint8Array(512 * count).fill(fill)
const shape = ({ pieces }: Chain): string[] =>
  pieces.map(({ length, isWritable }) => `${isWritable ? 'w' : 'r'}${length}`)
const headerOf = ({ pieces }: Chain): string => dump(pieces[0]!)

// Virtual I/O Device specification 1.2, section 5.2.6: le32 type, le32 reserved, le64 sector; data; u8 status.
describe('requests to a block device', () => {
  it.each([
    [
      { type: IoType.READ, firstBlock: 5, blockCount: 2 },
      '00000000 00000000 05000000 00000000',
      ['r16', 'w1024', 'w1'],
    ],
    [
      { type: IoType.WRITE, firstBlock: 7, blockCount: 1 },
      '01000000 00000000 07000000 00000000',
      ['r16', 'r512', 'w1'],
    ],
    [{ type: IoType.FLUSH }, '04000000 00000000 00000000 00000000', ['r16', 'w1']],
    [
      { type: IoType.UNMAP, firstBlock: 9, blockCount: 3 },
      '0b000000 00000000 00000000 00000000',
      ['r16', 'r16', 'w1'],
    ],
    [
      { type: IoType.WRITE_ZEROES, firstBlock: 9, blockCount: 3 },
      '0d000000 00000000 00000000 00000000',
      ['r16', 'r16', 'w1'],
    ],
  ])('has %j as the specification has it', async (request, header, pieces) => {
    await open()
    const io = queue.submit(request)
    const [chain] = queue.device.take()
    expect(headerOf(chain!)).toBe(header)
    expect(shape(chain!)).toEqual(pieces)
    if (pieces[1] === 'r16') {
      // le64 sector, le32 num_sectors, le32 flags
      expect(dump(chain!.pieces[1]!)).toBe('09000000 00000000 03000000 00000000')
    }
    queue.end([chain!])
    expect(io.statuses).toEqual([Status.SUCCESS])
  })

  it.each([
    [IoType.READ, 1, Status.UNRECOVERED_READ_ERROR],
    [IoType.WRITE, 1, Status.WRITE_FAULT],
    [IoType.UNMAP, 2, Status.INVALID_OPCODE],
    [IoType.WRITE, 77, Status.INTERNAL_ERROR],
    // What the driver itself had put there: the device wrote no status at all.
    [IoType.READ, 0xff, Status.INTERNAL_ERROR],
  ])('ends I/O of type %d that the device answers with %d with status %d', async (type, answer, status) => {
    await open()
    const io = queue.submit({ type, blockCount: 1 })
    queue.end(queue.device.take(), answer)
    expect(io.statuses).toEqual([status])
  })

  it('carries data both ways', async () => {
    await open()
    queue.submit({ type: IoType.WRITE, blockCount: 2, data: block(0xa5, 2), segments: 3 })
    const [written] = queue.device.take()
    expect(bytesOf(written!.pieces[1]!)).toEqual(block(0xa5, 2))
    const read = queue.submit({ type: IoType.READ, blockCount: 2, segments: 3 })
    const [chain] = queue.device.take()
    bytesOf(chain!.pieces[1]!).fill(0x5a)
    queue.end([chain!])
    expect(new Uint8Array(read.data)).toEqual(block(0x5a, 2))
  })

  it('cuts data into segments as short as the device wants them', async () => {
    await open({ segmentBytes: 1024 })
    queue.submit({ type: IoType.WRITE, blockCount: 5 })
    expect(shape(queue.device.take()[0]!)).toEqual(['r16', 'r1024', 'r1024', 'r512', 'w1'])
  })

  it('makes several requests of an I/O that is too large for one, and ends it once, with the first failure', async () => {
    await open({ transferBlocks: 4 })
    const io = queue.submit({ type: IoType.READ, firstBlock: 100, blockCount: 10 })
    const chains = queue.device.take()
    expect(chains.map(headerOf)).toEqual([
      '00000000 00000000 64000000 00000000',
      '00000000 00000000 68000000 00000000',
      '00000000 00000000 6c000000 00000000',
    ])
    expect(chains.map(chain => shape(chain)[1])).toEqual(['w2048', 'w2048', 'w1024'])
    queue.end([chains[2]!])
    queue.end([chains[0]!], 1)
    expect(io.statuses).toEqual([])
    queue.end([chains[1]!], 2)
    expect(io.statuses).toEqual([Status.UNRECOVERED_READ_ERROR])
  })

  it('flushes after a write that must be on stable storage, where the device has a cache', async () => {
    await open()
    const io = queue.submit({ type: IoType.WRITE, blockCount: 1, fua: true })
    queue.end(queue.device.take())
    expect(io.isDone).toBe(false)
    const [flush] = queue.device.take()
    expect(headerOf(flush!)).toBe('04000000 00000000 00000000 00000000')
    queue.end([flush!])
    expect(io.statuses).toEqual([Status.SUCCESS])
    queue.close()

    await open({ hasCache: false })
    const through = queue.submit({ type: IoType.WRITE, blockCount: 1, fua: true })
    queue.end(queue.device.take())
    expect(through.statuses).toEqual([Status.SUCCESS])
  })

  it('does not flush what failed', async () => {
    await open()
    const io = queue.submit({ type: IoType.WRITE, blockCount: 1, fua: true })
    queue.end(queue.device.take(), 1)
    expect(io.statuses).toEqual([Status.WRITE_FAULT])
    expect(queue.device.take()).toEqual([])
  })

  it('has more in flight than fits into the ring wait, and starts it in its order', async () => {
    await open({}, 16)
    const ios = Array.from({ length: 12 }, (_, i) =>
      queue.submit({ type: IoType.READ, firstBlock: i, blockCount: 1 }),
    )
    const seen: string[] = []
    for (let chains = queue.device.take(); chains.length > 0; chains = queue.device.take()) {
      expect(chains.length).toBeLessThanOrEqual(5)
      seen.push(...chains.map(chain => headerOf(chain).slice(18, 20)))
      queue.end(chains)
    }
    expect(seen).toEqual(ios.map((_, i) => i.toString(16).padStart(2, '0')))
    expect(ios.flatMap(io => io.statuses)).toEqual(new Array(12).fill(Status.SUCCESS))
  })
})

describe('a READ that is lent its data', () => {
  class Borrower {
    readonly statuses: number[] = []
    readonly io = new BdevIo(this, 1)

    constructor(blockCount: number) {
      this.io.type = IoType.READ
      this.io.blockCount = blockCount
      this.io.lent = true
      this.io.segments.count = 0
    }

    ioDone(io: BdevIo): void {
      this.statuses.push(io.status)
    }
  }

  it('is pointed to where the device put it, until it is released', async () => {
    await open()
    const borrower = new Borrower(8)
    queue.channel.submit(borrower.io)
    queue.poll()
    const [chain] = queue.device.take()
    const { address, length } = chain!.pieces[1]!
    queue.end([chain!])
    expect(borrower.statuses).toEqual([Status.SUCCESS])
    const { segments } = borrower.io
    expect([segments.count, segments.addresses[0], segments.lengths[0]]).toEqual([1, address, length])

    const another = queue.submit({ type: IoType.READ, blockCount: 8 })
    const [other] = queue.device.take()
    expect(other!.pieces[1]!.address).not.toBe(address)
    queue.end([other!])
    expect(another.isDone).toBe(true)

    queue.channel.release(borrower.io)
    queue.submit({ type: IoType.READ, blockCount: 8 })
    queue.submit({ type: IoType.READ, blockCount: 8 })
    expect(queue.device.take().map(({ pieces }) => pieces[1]!.address)).toContain(address)
  })

  it('has as many pieces as requests, in their order', async () => {
    await open({ transferBlocks: 4 })
    const borrower = new Borrower(10)
    queue.channel.submit(borrower.io)
    queue.poll()
    const chains = queue.device.take()
    queue.end([...chains].reverse())
    const { segments } = borrower.io
    expect([...segments.addresses.subarray(0, segments.count)]).toEqual(
      chains.map(({ pieces }) => pieces[1]!.address),
    )
    expect(segments.totalBytes).toBe(10 * 512)
    queue.channel.release(borrower.io)
  })

  it('owes nothing when it fails', async () => {
    await open({ transferBlocks: 4 })
    const borrower = new Borrower(8)
    queue.channel.submit(borrower.io)
    queue.poll()
    const chains = queue.device.take()
    queue.end([chains[0]!])
    queue.end([chains[1]!], 1)
    expect(borrower.statuses).toEqual([Status.UNRECOVERED_READ_ERROR])
    expect([borrower.io.segments.count, queue.channel.outstanding]).toEqual([0, 0])
  })
})

describe('a connection that is lost', () => {
  const read = (firstBlock: number) => queue.submit({ type: IoType.READ, firstBlock, blockCount: 1 })
  const sectors = (chains: readonly Chain[]): number[] =>
    chains.map(({ pieces }) => Buffer.from(bytesOf(pieces[0]!)).readUInt32LE(8))

  it('has what is submitted meanwhile wait for the next one', async () => {
    await open()
    await queue.halt()
    const io = read(3)
    expect(io.isDone).toBe(false)
    await queue.start()
    expect(sectors(queue.device.take())).toEqual([3])
  })

  it('loses nothing and doubles nothing, with a new ring', async () => {
    await open()
    const ios = [1, 2, 3, 4].map(read)
    const chains = queue.device.take()
    queue.device.use(chains[1]!, 513)
    bytesOf(chains[1]!.pieces.at(-1)!)[0] = 0
    // The back end dies before the reactor has looked.
    expect(await queue.halt()).toEqual({ mayResume: true })
    expect(ios.map(io => io.isDone)).toEqual([false, true, false, false])
    expect(await queue.start()).toBe(0)
    const again = queue.device.take()
    expect(sectors(again)).toEqual([1, 3, 4])
    queue.end(again)
    expect(ios.flatMap(io => io.statuses)).toEqual(new Array(4).fill(Status.SUCCESS))
  })

  it('goes on with the ring as it is, from the used index on', async () => {
    await open()
    const ios = [1, 2, 3].map(read)
    const chains = queue.device.take()
    queue.end([chains[0]!, chains[2]!])
    expect(await queue.halt()).toEqual({ mayResume: true })
    const later = read(9)
    expect(await queue.start(true)).toBe(2)
    // The inflight region names the one that was taken; after it comes what was made available since.
    queue.device.resume(3)
    queue.end([chains[1]!, ...queue.device.take()])
    expect([...ios, later].flatMap(io => io.statuses)).toEqual(new Array(4).fill(Status.SUCCESS))
  })

  it('ends what is aborted, which then is never sent again', async () => {
    await open()
    const [first, second] = [read(1), read(2)]
    queue.device.take()
    await queue.halt()
    const waiting = read(3)
    queue.channel.abort(first!.io)
    queue.channel.abort(waiting.io)
    queue.poll()
    expect([first!.statuses, second!.statuses, waiting.statuses]).toEqual([
      [Status.ABORTED_BY_REQUEST],
      [],
      [Status.ABORTED_BY_REQUEST],
    ])
    expect(await queue.halt()).toEqual({ mayResume: false })
    await queue.start()
    expect(sectors(queue.device.take())).toEqual([2])
  })

  it('is given up for I/O that has to end and does not', async () => {
    await open()
    const io = read(1)
    queue.channel.abort(null)
    queue.reactors.advance(1_100_000)
    await queue.reactors.until(() => queue.gaveUp.length > 0)
    expect(queue.gaveUp).toMatchObject([{ controller: 1, why: expect.stringContaining('was to end') }])
    expect(io.isDone).toBe(false)
    expect(await queue.halt()).toEqual({ mayResume: false })
    queue.poll()
    expect(io.statuses).toEqual([Status.ABORTED_BY_REQUEST])
  })

  it('is given up for a ring that no device makes, and the I/O is sent to the next one', async () => {
    await open()
    const io = read(1)
    queue.device.use({ head: 60 }, 1)
    await queue.reactors.until(() => queue.gaveUp.length > 0)
    expect(queue.gaveUp[0]!.why).toMatch(/its ring 0 is broken: used entry 0 names descriptor 60/)
    expect(await queue.halt()).toEqual({ mayResume: false })
    await queue.start()
    queue.end(queue.device.take())
    expect(io.statuses).toEqual([Status.SUCCESS])
  })
})

describe('a back end that has jammed the eventfd of its notifications', () => {
  it('keeps its requests waiting, and not the reactor', async () => {
    await open()
    jamEventfd(queue.memory.rings[0]!.kick)
    const ios = [1, 2].map(firstBlock => queue.submit({ type: IoType.READ, firstBlock, blockCount: 1 }))
    queue.end(queue.device.take())
    expect(ios.flatMap(io => io.statuses)).toEqual([Status.SUCCESS, Status.SUCCESS])
    await queue.call(Topic.CLOSE, CONTROLLER)
  })

  it('does not hold the reactor up by that of the event queue either', async () => {
    await open({ kind: 'scsi' })
    await queue.halt()
    jamEventfd(queue.memory.rings[1]!.kick)
    await queue.start()
    await queue.halt()
    await queue.call(Topic.CLOSE, CONTROLLER)
  })
})

describe('polling', () => {
  const polled = (): number => queue.reactors.reactors[0]!.polled

  it('costs nothing while nothing is in flight', async () => {
    await open()
    expect(polled()).toBe(0)
    queue.submit({ type: IoType.FLUSH })
    expect([polled(), queue.device.wantsInterrupt]).toEqual([1, false])
    queue.end(queue.device.take())
    expect(polled()).toBe(0)
  })

  it('ends after a quiet time, and begins again with an interrupt', async () => {
    await open()
    const io = queue.submit({ type: IoType.FLUSH })
    queue.reactors.advance(1000)
    expect([polled(), queue.device.wantsInterrupt]).toEqual([0, true])
    // Nobody looks any more, until the device says so.
    const chains = queue.device.take()
    queue.end(chains)
    expect(io.isDone).toBe(false)
    queue.interrupt()
    await queue.reactors.until(() => io.isDone)
    expect(polled()).toBe(0)
  })

  it('is not tried again for a device that is slow', async () => {
    await open()
    queue.submit({ type: IoType.FLUSH })
    queue.reactors.advance(1000)
    queue.end(queue.device.take())
    queue.interrupt()
    await queue.reactors.until(() => queue.channel.outstanding === 0)
    queue.submit({ type: IoType.FLUSH })
    expect([polled(), queue.device.wantsInterrupt]).toEqual([0, true])
  })
})
