import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { z } from 'zod'
import type { BdevInfo } from '../../../src/bdev/bdev.ts'
import { IoType } from '../../../src/bdev/io.ts'
import { logSettings } from '../../../src/core/log.ts'
import { Status } from '../../../src/spec/nvme-status.ts'
import type { BlkDescription } from '../../../src/vhost/messages.ts'
import { GuestRequest } from '../../../src/vhost/ring/request.ts'
import { answerOf, cut, Guest, HeldDisk, header, heldDriver, range, raw, sum, UNTOUCHED } from './support.ts'

// Virtual I/O Device specification 1.2, section 5.2.6.
const IN = 0
const OUT = 1
const FLUSH = 4
const GET_ID = 8
const DISCARD = 11
const WRITE_ZEROES = 13
const OK = 0
const IOERR = 1
const UNSUPP = 2

let guest: Guest

const pattern = (size: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length: size }, (_, i) => (i * 7 + seed) & 0xff)

const everything: Partial<BdevInfo> = { supports: new Set(Object.values(IoType)) }

async function openMalloc(
  blockSize = 512,
  description: Partial<BlkDescription> = {},
  blocks = 64,
): Promise<void> {
  guest = new Guest()
  await guest.reactors.run(guest.bdevs.create('malloc', 'm0', { block_size: blockSize, num_blocks: blocks }))
  guest.open('m0', description)
}

async function openHeld(
  info: Partial<BdevInfo> = everything,
  description: Partial<BlkDescription> = {},
): Promise<HeldDisk> {
  const disk = new HeldDisk()
  guest = new Guest([heldDriver(disk, info, z.object({}))])
  await guest.reactors.run(guest.bdevs.create('held', 'h0', {}))
  guest.open('h0', description)
  return disk
}

afterEach(() => guest.close())

describe('a virtio-blk request', () => {
  beforeEach(() => openMalloc())

  it('writes and reads back, and tells how much it wrote into guest memory', () => {
    const data = pattern(1024)
    // OUT at sector 3, by hand.
    expect(guest.ask([raw('01000000 00000000 0300000000000000'), data], [1])).toMatchObject({
      status: OK,
      length: 1,
    })
    expect(guest.ask([raw('00000000 00000000 0300000000000000')], [1024, 1])).toEqual({
      status: OK,
      data,
      length: 1025,
    })
  })

  it.each([
    { name: 'header and data in one piece', readable: [16 + 1024], writable: [1] },
    { name: 'header in pieces', readable: [1, 7, 8, 1024], writable: [1] },
    { name: 'data begins in the header’s last piece', readable: [8, 8 + 512, 512], writable: [1] },
    { name: 'data in many odd pieces', readable: [16, 1, 2, 3, 500, 6, 512], writable: [1] },
    { name: 'more to write than a status', readable: [16, 1024], writable: [7, 3] },
  ])('takes a write however it is cut: $name', ({ readable, writable }) => {
    const data = pattern(1024)
    const all = Buffer.concat([header(OUT, 5), data])
    const places = readable.slice(0, -1).map((_, i) => sum(readable.slice(0, i + 1)))
    const answer = guest.ask(cut(all, ...places), writable)
    expect(answer.status).toBe(OK)
    expect(answer.data.every(byte => byte === UNTOUCHED)).toBe(true)
    expect(guest.ask([header(IN, 5)], [1024, 1]).data).toEqual(data)
  })

  it.each([
    { name: 'data and status in one piece', writable: [1025] },
    { name: 'status behind part of the data', writable: [512, 513] },
    { name: 'data in many odd pieces', writable: [1, 2, 3, 500, 6, 512, 1] },
  ])('takes a read however it is cut: $name', ({ writable }) => {
    const data = pattern(1024)
    guest.ask([header(OUT, 5), data], [1])
    expect(guest.ask(cut(header(IN, 5), 3, 9), writable)).toEqual({ status: OK, data, length: 1025 })
  })

  it.each([
    { name: 'no data', readable: [header(IN)], writable: [1] },
    { name: 'less than a sector', readable: [header(IN)], writable: [511, 1] },
    { name: 'a sector and a byte', readable: [header(OUT), pattern(513)], writable: [1] },
    { name: 'one sector beyond the end', readable: [header(IN, 63)], writable: [1024, 1] },
    {
      name: 'a sector beyond any',
      readable: [raw('00000000 00000000 ffffffffffffffff')],
      writable: [512, 1],
    },
    { name: 'a header that is too short', readable: [header(IN).subarray(0, 15)], writable: [512, 1] },
    { name: 'no header', readable: [], writable: [512, 1] },
  ])('answers $name with IOERR', ({ readable, writable }) => {
    const answer = guest.ask(readable, writable)
    expect(answer).toMatchObject({ status: IOERR, length: 1 })
    expect(answer.data.every(byte => byte === UNTOUCHED)).toBe(true)
  })

  it('reads and writes the last sector', () => {
    expect(guest.ask([header(OUT, 63), pattern(512)], [1]).status).toBe(OK)
    expect(guest.ask([header(IN, 63)], [512, 1])).toMatchObject({ status: OK, data: pattern(512) })
  })

  it.each([2, 3, 7, 9, 14, 0x8000_0000])('answers type %i with UNSUPP', type => {
    expect(guest.ask([header(type)], [512, 1])).toMatchObject({ status: UNSUPP, length: 1 })
  })

  it('flushes', () => {
    expect(guest.ask([header(FLUSH)], [1])).toMatchObject({ status: OK, length: 1 })
  })

  it('answers a request without room for a status with nothing, and says so once', () => {
    const lines: string[] = []
    const { write } = logSettings
    logSettings.write = line => lines.push(line)
    try {
      for (let i = 0; i < 3; i++) {
        const { lengths } = guest.send([header(OUT), pattern(512)], [])
        guest.reactors.settle()
        expect(lengths).toEqual([0])
      }
    } finally {
      logSettings.write = write
    }
    expect(lines).toHaveLength(1)
    expect(lines[0]).toContain('m0: queue 0 has a request of 528 bytes to read and none to write')
    expect(guest.ask([header(IN)], [512, 1]).data).toEqual(new Uint8Array(512))
  })

  it('names itself, and ends the name with NUL where there is room', () => {
    const id = Buffer.alloc(20)
    id.write('m0')
    expect(guest.ask([header(GET_ID)], [20, 1])).toEqual({ status: OK, data: new Uint8Array(id), length: 21 })
    expect(guest.ask([header(GET_ID)], [1, 2])).toMatchObject({ status: OK, data: raw('6d30'), length: 3 })
    const long = guest.ask([header(GET_ID)], [3, 40, 1])
    expect(long).toMatchObject({ status: OK, length: 20 })
    expect(Buffer.from(long.data.subarray(0, 20))).toEqual(id)
    expect(long.data.subarray(20).every(byte => byte === UNTOUCHED)).toBe(true)
  })
})

describe('virtio-blk ranges', () => {
  beforeEach(async () => {
    await openMalloc()
    guest.ask([header(OUT), new Uint8Array(64 * 512).fill(0xff)], [1])
  })

  const zeroed = (): number[] => {
    const { data } = guest.ask([header(IN)], [64 * 512, 1])
    return Array.from({ length: 64 }, (_, sector) => sector).filter(sector =>
      data.subarray(sector * 512, sector * 512 + 512).every(byte => byte === 0),
    )
  }

  it.each([
    { name: 'zeroes', type: WRITE_ZEROES, flags: 0 },
    { name: 'zeroes and gives back', type: WRITE_ZEROES, flags: 1 },
    { name: 'discards', type: DISCARD, flags: 0 },
  ])('$name each of several', ({ type, flags }) => {
    const ranges = [range(2, 3, flags), range(40, 0, flags), range(63, 1, flags)]
    expect(guest.ask([header(type), ...ranges], [1])).toMatchObject({ status: OK, length: 1 })
    expect(zeroed()).toEqual([2, 3, 4, 63])
  })

  it('takes ranges however they are cut', () => {
    const all = Buffer.concat([header(WRITE_ZEROES), range(1, 1), range(3, 1)])
    expect(guest.ask(cut(all, 5, 21, 33, 47), [1]).status).toBe(OK)
    expect(zeroed()).toEqual([1, 3])
  })

  it.each([
    { name: 'a discard with the unmap flag', request: [header(DISCARD), range(0, 1, 1)], status: UNSUPP },
    { name: 'an unknown flag', request: [header(WRITE_ZEROES), range(0, 1, 2)], status: UNSUPP },
    { name: 'the highest flag', request: [header(WRITE_ZEROES), range(0, 1, 0x8000_0000)], status: UNSUPP },
    { name: 'no range', request: [header(DISCARD)], status: IOERR },
    { name: 'part of a range', request: [header(DISCARD), range(0, 1).subarray(1)], status: IOERR },
    { name: 'a range over the end', request: [header(DISCARD), range(63, 2)], status: IOERR },
    { name: 'a range beyond any', request: [header(WRITE_ZEROES), range(2 ** 55, 1)], status: IOERR },
    {
      name: 'more ranges than the configuration allows',
      request: [header(DISCARD), ...Array.from({ length: 17 }, () => range(0, 1))],
      status: IOERR,
    },
  ])('refuses $name', ({ request, status }) => {
    expect(guest.ask(request, [1])).toMatchObject({ status, length: 1 })
    expect(zeroed()).toEqual([])
  })

  it('stops at the first range that is refused', () => {
    expect(guest.ask([header(DISCARD), range(1, 1), range(64, 1), range(2, 1)], [1]).status).toBe(IOERR)
    expect(zeroed()).toEqual([1])
  })
})

describe('a virtio-blk disk', () => {
  it('takes whole blocks only when those are larger than a sector', async () => {
    await openMalloc(4096)
    expect(guest.ask([header(OUT, 8), pattern(4096)], [1]).status).toBe(OK)
    expect(guest.ask([header(IN, 8)], [4096, 1]).data).toEqual(pattern(4096))
    expect(guest.ask([header(IN, 9)], [4096, 1]).status).toBe(IOERR)
    expect(guest.ask([header(IN, 8)], [512, 1]).status).toBe(IOERR)
    expect(guest.ask([header(DISCARD), range(8, 4)], [1]).status).toBe(IOERR)
    expect(guest.ask([header(DISCARD), range(4, 8)], [1]).status).toBe(IOERR)
    expect(guest.ask([header(DISCARD), range(8, 8)], [1]).status).toBe(OK)
  })

  it('refuses every change when it is read only', async () => {
    await openMalloc(512, { readOnly: true })
    expect(guest.ask([header(OUT), pattern(512)], [1]).status).toBe(IOERR)
    expect(guest.ask([header(DISCARD), range(0, 1)], [1]).status).toBe(IOERR)
    expect(guest.ask([header(WRITE_ZEROES), range(0, 1)], [1]).status).toBe(IOERR)
    expect(guest.ask([header(IN)], [512, 1])).toMatchObject({ status: OK, data: new Uint8Array(512) })
    expect(guest.ask([header(FLUSH)], [1]).status).toBe(OK)
  })

  it('asks for stable storage with every change when the guest does not flush', async () => {
    const disk = await openHeld(everything, { writeThrough: true })
    guest.send([header(OUT, 4), pattern(512)], [1])
    guest.send([header(IN, 4)], [512, 1])
    guest.send([header(WRITE_ZEROES), range(7, 2)], [1])
    guest.send([header(FLUSH)], [1])
    await guest.device.update({ kind: 'blk', bdev: 'h0', readOnly: false, writeThrough: false, serial: 'h0' })
    guest.send([header(OUT, 4), pattern(512)], [1])
    expect(disk.asked.filter(asked => !asked.startsWith('read'))).toEqual([
      'write 4+1 fua',
      'write_zeroes 7+2 fua',
      'flush 0+0',
      'write 4+1',
    ])
    for (const io of disk.ios) io.complete(Status.SUCCESS)
    guest.reactors.settle()
  })

  it.each([
    [Status.SUCCESS, OK],
    [Status.INVALID_OPCODE, UNSUPP],
    [Status.INVALID_FIELD, IOERR],
    [Status.LBA_OUT_OF_RANGE, IOERR],
    [Status.CAPACITY_EXCEEDED, IOERR],
    [Status.NAMESPACE_WRITE_PROTECTED, IOERR],
    [Status.ABORTED_BY_REQUEST, IOERR],
    [Status.UNRECOVERED_READ_ERROR, IOERR],
  ])('tells the guest of status %i by %i', async (status, told) => {
    const disk = await openHeld()
    const sent = guest.send([header(IN)], [512, 1])
    expect(sent.lengths).toEqual([])
    disk.ios[0]!.complete(status)
    expect(sent.lengths).toEqual([])
    guest.reactors.settle()
    expect(answerOf(sent)).toMatchObject({ status: told, length: status === Status.SUCCESS ? 513 : 1 })
  })

  it('tells UNSUPP of what its bdev cannot do', async () => {
    await openHeld({ supports: new Set([IoType.READ, IoType.WRITE]) })
    expect(guest.ask([header(DISCARD), range(0, 1)], [1]).status).toBe(UNSUPP)
  })

  it('does large requests piece by piece, and not at all when they go over the end', async () => {
    const blocks = (9 << 20) / 512
    await openMalloc(512, {}, blocks)
    const data = pattern(9 << 20)
    expect(guest.ask([header(OUT), data], [1])).toMatchObject({ status: OK, length: 1 })
    const answer = guest.ask([header(IN)], [3 << 20, (6 << 20) + 1])
    expect(answer).toMatchObject({ status: OK, length: (9 << 20) + 1 })
    expect(Buffer.compare(answer.data, data)).toBe(0)
    expect(guest.ask([header(OUT, 1), new Uint8Array(9 << 20)], [1]).status).toBe(IOERR)
    expect(guest.ask([header(IN)], [512, 1]).data).toEqual(data.subarray(0, 512))
  })

  it('goes on with one large request in a round, however many there are', async () => {
    const disk = await openHeld()
    const sent = [0, 1].map(() => guest.send([header(IN)], [9 << 20, 1]))
    const inTurn = (rounds: number): number[] =>
      Array.from({ length: rounds }, () => {
        guest.reactors.poll()
        return disk.asked.length
      })
    for (const io of [...disk.ios]) io.complete(Status.SUCCESS)
    expect(inTurn(3)).toEqual([3, 4, 4])
    for (const io of disk.ios.slice(-2)) io.complete(Status.SUCCESS)
    expect(inTurn(3)).toEqual([5, 6, 6])
    for (const io of disk.ios.slice(-2)) io.complete(Status.SUCCESS)
    guest.reactors.settle()
    expect(sent.map(one => answerOf(one).status)).toEqual([OK, OK])
  })

  it('ends a large request with its first piece that fails', async () => {
    const disk = await openHeld()
    const sent = guest.send([header(IN, 3)], [9 << 20, 1])
    disk.ios[0]!.complete(Status.SUCCESS)
    guest.reactors.settle()
    disk.ios[1]!.complete(Status.UNRECOVERED_READ_ERROR)
    guest.reactors.settle()
    expect(disk.asked).toEqual(['read 3+8192', 'read 8195+8192'])
    expect(answerOf(sent)).toMatchObject({ status: IOERR, length: 1 })
  })

  it('uses a request again, whatever it was before', async () => {
    await openMalloc()
    const request = new GuestRequest(guest, 0)
    const pieces = cut(pattern(1024), ...Array.from({ length: 40 }, (_, i) => i + 1))
    for (const [readable, writable] of [
      [[header(OUT, 1), ...pieces], [1]],
      [[header(WRITE_ZEROES), range(9, 1), range(11, 2)], [1]],
      [[header(FLUSH)], [1]],
      [[header(IN, 1)], [1024, 1]],
    ] as const) {
      const sent = guest.send(readable, writable, request)
      guest.reactors.settle()
      expect(answerOf(sent).status).toBe(OK)
      if (writable[0] === 1024) expect(answerOf(sent).data).toEqual(pattern(1024))
    }
  })

  it('answers with IOERR once its bdev was taken away, and lets go of it when the last I/O has ended', async () => {
    const disk = await openHeld()
    const sent = [1, 2, 3].map(sector => guest.send([header(IN, sector)], [512, 1]))
    const large = guest.send([header(IN)], [8 << 20, 1])
    let isUpdated = false
    const gone = { kind: 'blk', bdev: null, readOnly: false, writeThrough: false, serial: 'h0' } as const
    const update = guest.device.update(gone).then(() => {
      isUpdated = true
    })
    expect(disk.aborted).toEqual(disk.ios)
    expect(guest.ask([header(IN)], [512, 1]).status).toBe(IOERR)
    expect(guest.ask([header(FLUSH)], [1]).status).toBe(IOERR)
    expect(guest.ask([header(GET_ID)], [20, 1]).status).toBe(OK)
    for (const i of [1, 3, 0]) disk.ios[i]!.complete(Status.SUCCESS)
    guest.reactors.settle()
    await Promise.resolve()
    expect(isUpdated).toBe(false)
    disk.ios[2]!.complete(Status.ABORTED_BY_REQUEST)
    await guest.reactors.run(update)
    // The second piece of the large one found no bdev any more.
    expect([...sent, large].map(one => answerOf(one).status)).toEqual([OK, OK, IOERR, IOERR])
    await guest.reactors.run(guest.bdevs.remove('h0'))
  })

  it('starts nothing more of a request that is to end, and says that it was stopped', async () => {
    const disk = await openHeld()
    const sent = guest.send([header(WRITE_ZEROES), range(0, 1), range(1, 1)], [1])
    const other = guest.send([header(WRITE_ZEROES), range(0, 1), range(1, 1)], [1])
    guest.device.abort(sent.request)
    expect(disk.aborted).toEqual([disk.ios[0]])
    for (const io of [...disk.ios]) io.complete(Status.SUCCESS)
    guest.reactors.settle()
    expect(sent.lengths).toEqual([1])
    expect(sent.request.io.status).toBe(Status.ABORTED_BY_REQUEST)
    expect(disk.asked).toEqual(['write_zeroes 0+1', 'write_zeroes 0+1', 'write_zeroes 1+1'])
    disk.ios[2]!.complete(Status.SUCCESS)
    guest.reactors.settle()
    expect(answerOf(other).status).toBe(OK)
  })

  it('does not open a bdev that is not there', async () => {
    await openMalloc()
    expect(() => guest.open('m1')).toThrow('there is no bdev m1')
  })
})
