import { afterEach, expect, it } from 'vitest'
import { Prng } from '../../../src/core/prng.ts'
import { answerOf, cut, Guest, header, range, type Sent, sum } from './support.ts'

const BLOCK_SIZE = 1024
const SECTORS = 96
const TYPES = [0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 13, 2, 0x1234_5678]

let guest: Guest

afterEach(() => guest.close())

/** What the specification says of a disk, over plain bytes. */
class Model {
  readonly bytes = new Uint8Array(SECTORS * 512)

  /** The status of a request, and what a read or a GET_ID returns. */
  ask(
    type: number,
    sector: number,
    data: Uint8Array,
    room: number,
  ): { status: number; data: Uint8Array | null } {
    if (type === 0) {
      const end = sector * 512 + room
      if (!this.#isWhole(sector, room) || room === 0) return { status: 1, data: null }
      return { status: 0, data: this.bytes.slice(sector * 512, end) }
    }
    if (type === 1) {
      if (!this.#isWhole(sector, data.length) || data.length === 0) return { status: 1, data: null }
      this.bytes.set(data, sector * 512)
    } else if (type === 11 || type === 13) return { status: this.#zero(type, data), data: null }
    else if (type === 8) return { status: 0, data: Buffer.from('m0'.padEnd(20, '\0')).subarray(0, room) }
    else if (type !== 4) return { status: 2, data: null }
    return { status: 0, data: null }
  }

  #zero(type: number, data: Uint8Array): number {
    const view = new DataView(data.buffer, data.byteOffset, data.length)
    if (data.length === 0 || data.length % 16 > 0 || data.length > 256) return 1
    for (let at = 0; at < data.length; at += 16) {
      const sector = Number(view.getBigUint64(at, true))
      const size = view.getUint32(at + 8, true) * 512
      if (view.getUint32(at + 12, true) > (type === 13 ? 1 : 0)) return 2
      if (!this.#isWhole(sector, size)) return 1
      this.bytes.fill(0, sector * 512, sector * 512 + size)
    }
    return 0
  }

  #isWhole(sector: number, size: number): boolean {
    return (
      (sector * 512) % BLOCK_SIZE === 0 && size % BLOCK_SIZE === 0 && sector * 512 + size <= SECTORS * 512
    )
  }
}

function anySector(prng: Prng): number {
  return prng.oneIn(20)
    ? prng.u32() * 2 ** 20
    : prng.oneIn(10)
      ? prng.below(SECTORS + 4)
      : 2 * prng.below(SECTORS / 2)
}

function anySize(prng: Prng): number {
  return prng.oneIn(10) ? prng.below(3000) : BLOCK_SIZE * prng.below(8)
}

function anyData(prng: Prng, type: number): Uint8Array {
  if (type !== 11 && type !== 13) return prng.fill(new Uint8Array(anySize(prng)))
  const flags = (): number => (prng.oneIn(20) ? prng.u32() : prng.below(2) * (type === 13 ? 1 : 0))
  const ranges = Array.from({ length: prng.below(prng.oneIn(10) ? 20 : 4) }, () =>
    range(anySector(prng), prng.oneIn(20) ? prng.u32() : 2 * prng.below(6), flags()),
  )
  const bytes = new Uint8Array(Buffer.concat(ranges))
  return prng.oneIn(20) ? bytes.subarray(prng.below(16)) : bytes
}

/** Cuts `size` bytes into pieces of at least one byte. */
function anyPlaces(prng: Prng, size: number): number[] {
  const count = prng.oneIn(3) ? prng.below(Math.min(size, 30)) : 0
  const places = new Set(Array.from({ length: count }, () => prng.between(1, size - 1)))
  return [...places].sort((a, b) => a - b)
}

it.each([1, 2, 3, 4])('does what the specification says, whatever it is asked (seed %i)', async seed => {
  const prng = new Prng(seed)
  guest = new Guest()
  await guest.reactors.run(
    guest.bdevs.create('malloc', 'm0', { block_size: BLOCK_SIZE, num_blocks: SECTORS / 2 }),
  )
  guest.open('m0')
  const model = new Model()

  for (let turn = 0; turn < 500; turn++) {
    const sent: { one: Sent; expected: ReturnType<Model['ask']>; what: string }[] = []
    // This bdev does what it is asked at once, so requests that are outstanding together keep their order.
    for (let i = prng.between(1, 8); i > 0; i--) {
      const type = prng.pick(TYPES)
      const sector = anySector(prng)
      const data = type === 0 || type === 8 ? new Uint8Array(0) : anyData(prng, type)
      // Several ranges are several I/Os, and others may come in between.
      const isAlone = type === 11 || type === 13
      if (isAlone) guest.reactors.settle()
      const room = type === 0 ? anySize(prng) : type === 8 ? prng.below(30) : 0
      const all = new Uint8Array(Buffer.concat([header(type, sector), data]))
      const readable = cut(all, ...anyPlaces(prng, all.length))
      const writable = cut(new Uint8Array(room + 1), ...anyPlaces(prng, room + 1)).map(({ length }) => length)
      sent.push({
        one: guest.send(readable, writable),
        expected: model.ask(type, sector, data, room),
        what: `type ${type} at sector ${sector}, ${data.length} bytes of data, room for ${room}, turn ${turn}`,
      })
      if (isAlone) guest.reactors.settle()
    }
    guest.reactors.settle()
    for (const { one, expected, what } of sent) {
      const answer = answerOf(one)
      expect(answer.status, what).toBe(expected.status)
      if (expected.data !== null) {
        expect(Buffer.compare(answer.data.subarray(0, expected.data.length), expected.data), what).toBe(0)
      }
      expect(answer.length, what).toBeGreaterThan(0)
      expect(answer.length, what).toBeLessThanOrEqual(
        sum([
          ...one.request.segments.lengths.subarray(one.request.readableCount, one.request.segments.count),
        ]),
      )
    }
  }
})
