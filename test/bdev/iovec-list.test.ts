import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { IovecList } from '../../src/bdev/drivers/iovec-list.ts'
import { Segments } from '../../src/bdev/io.ts'
import { Arena, viewAt } from '../../src/sys/memory.ts'

describe('IovecList', () => {
  let arena: Arena
  beforeAll(() => {
    arena = new Arena(1 << 20)
  })
  afterAll(() => arena.close())

  const segmentsOf = (...parts: readonly (readonly [address: number, length: number])[]): Segments => {
    const segments = new Segments(parts.length)
    for (const [address, length] of parts) segments.push(address, length)
    return segments
  }
  /** As the kernel reads them (struct iovec): address and length, 8 bytes each. */
  const read = (list: IovecList, count: number): [bigint, bigint][] => {
    const view = viewAt(list.address, count * 16)
    return Array.from({ length: count }, (_, i) => [
      view.getBigUint64(i * 16, true),
      view.getBigUint64(i * 16 + 8, true),
    ])
  }

  it('lists what begins in the middle of one part and ends in the middle of another', () => {
    const list = new IovecList(arena)
    const segments = segmentsOf([0x7fff_1234_5000, 512], [0x1000, 512], [0x7000_0000_0000, 4096])
    expect(read(list, list.fill(segments, 600, 1000))).toEqual([
      [0x1058n, 424n],
      [0x7000_0000_0000n, 576n],
    ])
    expect(read(list, list.fill(segments, 0, 5120))).toEqual([
      [0x7fff_1234_5000n, 512n],
      [0x1000n, 512n],
      [0x7000_0000_0000n, 4096n],
    ])
  })

  it('lists at most what the kernel takes at once', () => {
    const list = new IovecList(arena)
    const many = segmentsOf(
      ...Array.from({ length: 1500 }, (_, i): [number, number] => [0x10_0000 + i * 512, 512]),
    )
    expect(list.fill(many, 0, 1500 * 512)).toBe(1024)
    expect(read(list, 1024).at(-1)).toEqual([BigInt(0x10_0000 + 1023 * 512), 512n])
    expect(list.fill(many, 1024 * 512, 476 * 512)).toBe(476)
  })

  it('says that there is no memory for the list, and keeps none', () => {
    const small = new Arena(1 << 16)
    const list = new IovecList(small)
    const held: number[] = []
    for (let address = small.allocate(4096); address !== 0; address = small.allocate(4096)) held.push(address)
    expect(held.length).toBeGreaterThan(0)
    while (small.allocate(64) !== 0);
    expect(list.fill(segmentsOf([0x1000, 512]), 0, 512)).toBe(0)
    expect(list.address).toBe(0)
    small.close()
  })
})
