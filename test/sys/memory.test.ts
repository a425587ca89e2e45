import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { mmap } from '../../src/sys/libc.ts'
import { Arena, BufferPool, bytesAt, unmap } from '../../src/sys/memory.ts'

const ARENA_SIZE = 16 << 20

let arena: Arena
let pool: BufferPool

beforeEach(() => {
  arena = new Arena(ARENA_SIZE)
  pool = new BufferPool(arena)
})
afterEach(() => arena.close())

/** Takes buffers of a size until there is none. */
function drain(sizeBytes: number): number[] {
  const taken: number[] = []
  for (let address = pool.acquire(sizeBytes); address !== 0; address = pool.acquire(sizeBytes)) {
    taken.push(address)
  }
  return taken
}

describe('the buffer pool', () => {
  it.each([
    [131072, 4096],
    [4096, 131072],
    [65536, BufferPool.MAX_SIZE],
  ])(
    'has buffers of another size once those of %d bytes that used all memory are back: %d',
    (first, next) => {
      for (const address of drain(first)) pool.release(address, first)
      const count = drain(next).length
      expect(count * next).toBeGreaterThan(ARENA_SIZE / 2)
    },
  )

  it('cuts no span anew of which a buffer is in use', () => {
    const [kept, ...others] = drain(65536)
    for (const address of others) pool.release(address, 65536)
    for (const address of drain(4096)) expect(address < kept! || address >= kept! + 65536).toBe(true)
  })

  it('never hands out a byte twice, whatever sizes come and go', () => {
    const sizes = [512, 4096, 5000, 16384, 65536, 100_000, 131072, 1 << 18, 1 << 20]
    const owner = new Int32Array(ARENA_SIZE / 4096)
    const held: { address: number; size: number }[] = []
    let collisions = 0
    let recycled = 0
    const mark = ({ address, size }: { address: number; size: number }, by: number): void => {
      const page = arena.offsetOf(address) / 4096
      for (let i = page; i < page + Math.ceil(size / 4096); i++) {
        if (owner[i] !== 0 && by !== 0) collisions++
        owner[i] = by
      }
    }
    for (let step = 1; step < 20_000; step++) {
      const size = sizes[(step * 7 + (step >> 5)) % sizes.length]!
      const address = (step >> 9) % 2 === 0 ? pool.acquire(size) : 0
      if (address !== 0) {
        held.push({ address, size })
        mark(held.at(-1)!, step)
      } else if (held.length > 0) {
        const one = held.splice((step * 31) % held.length, 1)[0]!
        mark(one, 0)
        pool.release(one.address, one.size)
        recycled++
      }
    }
    expect(collisions).toBe(0)
    expect(recycled).toBeGreaterThan(1000)
  })

  it('leaves room for what is not a buffer', () => {
    drain(4096)
    expect(arena.allocate(65536)).toBeGreaterThan(0)
  })
})

it('shows memory in the first GiB of addresses, where heaps of the C library may lie', () => {
  const [readWrite, privateAnonymous] = [3, 0x22]
  // Where the process's own heap lies, which is not the same each time, the kernel chooses another address.
  const hints = Array.from({ length: 60 }, (_, i) => (i + 1) * 2 ** 24)
  const tried = hints.map(hint => mmap(hint, 4096, readWrite, privateAnonymous, -1, 0))
  const address = Math.min(...tried)
  expect(address).toBeLessThan(2 ** 30)
  bytesAt(address + 8, 2).set([1, 2])
  expect([...bytesAt(address + 7, 4)]).toEqual([0, 1, 2, 0])
  for (const each of tried) unmap(each, 4096)
})
