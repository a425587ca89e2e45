import { afterEach, describe, expect, it } from 'vitest'
import type { Segments } from '../../../src/bdev/io.ts'
import { Prng } from '../../../src/core/prng.ts'
import type { GuestRequest } from '../../../src/vhost/ring/request.ts'
import type { Ring } from '../../../src/vhost/ring/ring.ts'
import { found, Virtqueue, type VirtqueueOptions } from '../../support/virtqueue.ts'
import { Killed, watching } from '../../support/watched-memory.ts'

/** More than the stores of any life. */
const FOR_EVER = 1e9

interface Added {
  readonly segments: Segments
  readonly readableCount: number
}

/**
 * A driver that lives on while one device after the other is killed, each before one of its stores to shared memory. The
 * driver refuses what comes back twice; what never comes back is missing at the end.
 */
class Lives {
  readonly queue: Virtqueue
  readonly #prng: Prng
  readonly #inFlight = new Map<number, Added>()
  /** Tokens in the order in which devices took them, and which of them the driver has not got back. */
  readonly #order: number[] = []
  #token = 0
  completed = 0
  recovered = 0
  kills = 0

  constructor(options: VirtqueueOptions, seed: number) {
    this.queue = new Virtqueue({ ...options, hasInflight: true })
    this.#prng = new Prng(seed)
  }

  /** A device that is killed before its store number `stores`, or not at all. Returns whether it was killed. */
  live(stores: number, rounds: number): boolean {
    let left = stores
    const store = (): void => {
      if (left-- === 0) throw new Killed()
    }
    try {
      watching({ store }, () => this.#work(rounds))
      return false
    } catch (error) {
      if (!(error instanceof Killed)) throw error
      this.kills++
      return true
    }
  }

  #work(rounds: number): void {
    const taken: GuestRequest[] = []
    const ring = this.queue.openDevice()
    for (let request = ring.takeInflight(); request !== null; request = ring.takeInflight()) {
      this.recovered++
      this.#check(request)
      taken.push(request)
    }
    // In the order in which they were taken, whenever that was.
    const tokens = taken.map(request => this.queue.tokenOf(request))
    expect(tokens).toEqual(this.#order.filter(token => tokens.includes(token)))
    for (let round = 0; round < rounds; round++) {
      this.add()
      for (let left = this.#prng.below(5); left > 0 && this.#take(ring, taken); left--);
      this.#answer(ring, taken, this.#prng.below(taken.length + 1))
      this.reap()
    }
    while (this.#take(ring, taken));
    this.#answer(ring, taken, taken.length)
  }

  #take(ring: Ring, taken: GuestRequest[]): boolean {
    const request = ring.take()
    if (request === null) return false
    this.#check(request)
    const token = this.queue.tokenOf(request)
    this.#order.splice(this.#order.indexOf(token), this.#order.includes(token) ? 1 : 0)
    this.#order.push(token)
    taken.push(request)
    return true
  }

  #check(request: GuestRequest): void {
    const token = this.queue.tokenOf(request)
    const { segments, readableCount } = this.#inFlight.get(token)!
    expect(found(request)).toEqual(this.queue.expected(segments, readableCount))
    request.isOutstanding = true
  }

  #answer(ring: Ring, taken: GuestRequest[], count: number): void {
    for (let i = 0; i < count; i++) {
      const [request] = taken.splice(this.#prng.below(taken.length), 1)
      request!.isOutstanding = false
      ring.put(request!, request!.writableBytes)
    }
    ring.publish()
  }

  add(): void {
    for (let left = this.#prng.below(5); left > 0; left--) {
      const length = Math.min(this.queue.size, this.#prng.between(1, 3))
      const segments = this.queue.buffer(this.#prng, this.#token, length)
      if (!this.queue.driver.add(segments, 1, this.#token)) break
      this.#inFlight.set(this.#token++, { segments, readableCount: 1 })
    }
    this.queue.driver.publish()
  }

  reap(): void {
    for (let token = this.queue.driver.next(); token >= 0; token = this.queue.driver.next()) {
      if (!this.#inFlight.delete(token)) throw new Error(`buffer ${token} came back, and was not there`)
      this.completed++
    }
  }

  /** Whether every buffer came back. */
  get isComplete(): boolean {
    return this.#inFlight.size === 0 && this.completed === this.#token
  }
}

let lives: Lives
afterEach(() => lives.queue.close())

describe.each([
  { isPacked: false, sizes: [1, 4, 8] },
  { isPacked: true, sizes: [1, 2, 3, 5, 8] },
])('a device of a ring that is killed, packed: $isPacked', ({ isPacked, sizes }) => {
  it.each(sizes)('loses and doubles nothing, wherever it was: size %i', size => {
    let isKilled = true
    let recovered = 0
    for (let stores = 0; isKilled; stores++) {
      lives?.queue.close()
      lives = new Lives({ isPacked, size, tableEntries: stores % 2 === 0 ? 0 : 4 }, size)
      isKilled = lives.live(stores, 12)
      // The driver goes on, or not, before there is a device again.
      if (stores % 3 > 0) lives.reap()
      if (stores % 3 > 1) lives.add()
      lives.live(FOR_EVER, 2)
      lives.reap()
      recovered += lives.recovered
      expect(lives.isComplete, `killed before store ${stores}`).toBe(true)
    }
    expect(recovered).toBeGreaterThan(10 * size)
  })

  it.each(sizes)('loses and doubles nothing when it is killed again and again: size %i', size => {
    for (let seed = 1; seed <= 40; seed++) {
      const prng = new Prng(seed)
      lives?.queue.close()
      lives = new Lives({ isPacked, size, tableEntries: 4 * prng.below(2) }, seed)
      for (let life = 0; life < 30; life++) {
        lives.live(prng.below(prng.oneIn(2) ? 20 : 200), 3)
        if (prng.oneIn(2)) lives.reap()
        if (prng.oneIn(2)) lives.add()
      }
      lives.live(FOR_EVER, 2)
      lives.reap()
      expect(lives.isComplete, `seed ${seed}`).toBe(true)
      expect(lives.kills).toBeGreaterThan(5)
    }
  })
})
