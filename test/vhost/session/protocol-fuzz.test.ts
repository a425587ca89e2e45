/**
 * A front end that sends nonsense, in a seeded order: plausible messages with some fields wrong, wild ones, cut ones, with
 * descriptors of every kind, and guest memory full of chance. It may be thrown out; the process, its descriptors and its
 * mappings may not notice.
 */
import { openSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Prng } from '../../../src/core/prng.ts'
import { bytesAt } from '../../../src/sys/memory.ts'
import { mapShared } from '../../../src/sys/shared-memory.ts'
import { mappingsOf, openDescriptors, socketPair } from '../../support/descriptors.ts'
import { type FrontEnd, joined, u32s, u64s, VhostLab, wire } from '../front-end.ts'

const SEEDS = Array.from({ length: 20 }, (_, seed) => seed)
const MESSAGES = 80
const GUEST = 0x10_0000
const USER = 0x7f00_0000_0000

let lab: VhostLab
let before: number

beforeEach(() => {
  before = openDescriptors()
})

afterEach(async () => {
  await lab.close()
  expect(lab.lines.filter(line => /failed:|did not end/.test(line))).toEqual([])
  expect(mappingsOf('guest-memory') + mappingsOf('qpair-inflight')).toBe(0)
  expect(openDescriptors()).toBe(before)
})

type Message = readonly [request: number, payload: Uint8Array, descriptors: readonly number[]]

/** Builds one message after the other for one connection. */
class Nonsense {
  readonly #prng: Prng
  /** About one field in so many is wrong: so some connections get far, and others are thrown out at once. */
  readonly #sanity: number
  readonly #features: bigint
  readonly #memory: number
  readonly #event: number
  readonly #others: readonly number[]
  #hasExtraRegion = false

  constructor(prng: Prng, frontEnd: FrontEnd) {
    this.#prng = prng
    this.#sanity = prng.pick([10, 100, 1000])
    this.#features = [28n, 29n, 34n].reduce(
      (features, bit) => (prng.oneIn(3) ? features | (1n << bit) : features),
      0x1_4000_0200n,
    )
    this.#memory = frontEnd.memory(GUEST)
    this.#event = frontEnd.eventfd()
    this.#others = [frontEnd.owns(openSync('/dev/null', 'r')), ...socketPair().map(fd => frontEnd.owns(fd))]
    const view = mapShared(this.#memory, 0, GUEST)
    const bytes = bytesAt(view.address, GUEST)
    // Small numbers look like indexes, flags and lengths.
    for (let at = 0x1000; at < 0x5000; at += 2) bytes[at] = prng.oneIn(2) ? prng.below(8) : 0
    view.unmap()
  }

  /** What an orderly front end sends until two rings run. */
  opening(): Message[] {
    const memory: Message = [5, joined(u32s(1, 0), this.#region(0)), [this.#memory]]
    const rings = [0, 1].flatMap((ring): Message[] =>
      [
        [8, u32s(ring, this.#or(16))],
        [10, u32s(ring, 0)],
        [9, this.#addresses(ring)],
        [12, u64s(ring), [this.#event]],
        [18, u32s(ring, 1)],
      ].map(([request, payload, descriptors = []]) => [request, payload, descriptors] as Message),
    )
    return [[16, u64s(this.#or(0x1b22b)), []], [2, u64s(this.#features), []], memory, ...rings]
  }

  next(): Message {
    if (this.#errs()) return this.#wild()
    const prng = this.#prng
    const ring = this.#or(prng.below(3))
    const event = this.#errs() ? prng.pick([this.#memory, ...this.#others]) : this.#event
    const extra = joined(u64s(0), this.#region(GUEST))
    const kinds: (() => Message)[] = [
      () => [prng.pick([1, 3, 4, 15, 17, 36, 40]), new Uint8Array(0), []],
      () => [2, u64s(this.#features | (prng.oneIn(2) ? 1n << 26n : 0n)), []],
      () => {
        this.#hasExtraRegion = false
        return [5, joined(u32s(1, 0), this.#region(0)), [this.#memory]]
      },
      () => [6, u64s(this.#or(4096), this.#or(0)), [this.#memory]],
      () => [9, this.#addresses(ring), []],
      () => [11, u32s(ring, 0), []],
      () => [12, u64s(ring & 0xff), [event]],
      () => [13, u64s((ring & 0xff) | 0x100), []],
      () => [13, u64s(ring & 0xff), [event]],
      () => [14, u64s(ring & 0xff), [event]],
      () => [18, u32s(ring, this.#or(prng.below(2))), []],
      () => [21, new Uint8Array(0), [this.#errs() ? event : this.#others[1]!]],
      () => [24, joined(u32s(this.#or(0), 60, 0), new Uint8Array(60)), []],
      () => [25, joined(u32s(this.#or(32), 1, 0), new Uint8Array([prng.below(2)])), []],
      () => [31, joined(u64s(0, 0), u32s((this.#or(3) | (128 << 16)) >>> 0, 0)), []],
      () => [34, new Uint8Array(0), []],
      () => [39, u64s(this.#or(prng.pick([0, 1, 15]))), []],
      () => {
        this.#hasExtraRegion = !this.#hasExtraRegion
        return this.#hasExtraRegion ? [37, extra, [this.#memory]] : [38, extra, []]
      },
    ]
    return prng.pick(kinds)()
  }

  #wild(): Message {
    const prng = this.#prng
    const all = [this.#memory, this.#event, ...this.#others]
    const payload = prng.fill(new Uint8Array(prng.pick([0, 8, 12, 16, 40, prng.below(300)])))
    return [prng.below(46), payload, Array.from({ length: prng.below(10) }, () => prng.pick(all))]
  }

  #errs(): boolean {
    return this.#prng.oneIn(this.#sanity)
  }

  #or(value: number): number {
    return this.#errs() ? this.#prng.pick([0, value + 1, this.#prng.u32()]) : value
  }

  #region(guest: number): Uint8Array {
    return u64s(this.#or(guest), this.#or(GUEST), this.#or(USER + guest), this.#or(0))
  }

  #addresses(ring: number): Uint8Array {
    const at = (offset: number): number => this.#or(USER + offset)
    return joined(u32s(ring, this.#prng.below(2)), u64s(at(0x1000), at(0x2000), at(0x3000), this.#or(0x2000)))
  }
}

async function harass(prng: Prng): Promise<void> {
  const frontEnd = await lab.connect()
  const nonsense = new Nonsense(prng, frontEnd)
  const messages = [...nonsense.opening()]
  while (messages.length < MESSAGES) messages.push(nonsense.next())
  const isCutter = prng.oneIn(4)
  for (const [request, payload, descriptors] of messages) {
    const bytes = wire(request, payload, prng.oneIn(3) ? 9 : 1)
    const cut = isCutter && prng.oneIn(5) ? prng.between(1, bytes.length) : bytes.length
    frontEnd.sendRaw(bytes.subarray(0, cut), descriptors)
    if (cut < bytes.length && !prng.oneIn(5)) frontEnd.sendRaw(bytes.subarray(cut))
    for (let round = prng.below(4); round > 0; round--) {
      lab.reactors.poll()
      await new Promise(setImmediate)
    }
    if (!frontEnd.drain()) break
  }
  frontEnd.hangUp()
}

describe.each(['recording', 'real'] as const)('with %s reactors', part => {
  it.each(SEEDS)('survives nonsense, seed %i', async seed => {
    const prng = new Prng(seed)
    lab = new VhostLab(part)
    await lab.open({ options: { requireSealedMemory: prng.oneIn(2) } })
    for (let connection = 0; connection < 4; connection++) await harass(prng)
    await lab.untilEnded()
    // And somebody orderly is served after that.
    const other = await lab.connect()
    expect((await other.ask(1)).payload).toHaveLength(8)
  })
})
