import { afterEach, describe, expect, it } from 'vitest'
import { Segments } from '../../../src/bdev/io.ts'
import { bytesAt, mapAnonymous, unmap } from '../../../src/sys/memory.ts'
import { DirtyLog } from '../../../src/vhost/ring/dirty-log.ts'
import { GuestMemory } from '../../../src/vhost/ring/guest-memory.ts'
import { GuestRam, sharedPart, userOf } from '../guest.ts'

const MIB = 1 << 20
let ram: GuestRam
afterEach(() => ram.free())

/** Two regions of 1 MiB: guest addresses 0 and 2 MiB. */
function twoRegions(): GuestMemory {
  ram = new GuestRam(MIB, 2)
  // Not in the order of their addresses.
  return new GuestMemory([ram.regions[1]!, ram.regions[0]!])
}

function translated(memory: GuestMemory, address: number, length: number): [number, number][] | null {
  const target = new Segments(1)
  if (!memory.translate(address, length, target)) return null
  return Array.from({ length: target.count }, (_, i) => [target.addresses[i]!, target.lengths[i]!])
}

/** `locateGuest` of an address in one piece. */
const located = (memory: GuestMemory, address: number, length: number): number =>
  memory.locateGuest(address % 2 ** 32, Math.floor(address / 2 ** 32), length)

describe('translation', () => {
  it('finds the region of an address, whichever was found before', () => {
    const memory = twoRegions()
    const [low, high] = ram.regions
    for (let round = 0; round < 2; round++) {
      expect(translated(memory, 0, MIB)).toEqual([[low!.address, MIB]])
      expect(translated(memory, 3 * MIB - 1, 1)).toEqual([[high!.address + MIB - 1, 1]])
    }
  })

  it.each([
    [MIB, 1],
    [MIB - 1, 2],
    [0, 4 * MIB],
    [2 * MIB - 1, 2],
    [3 * MIB, 1],
    [2 ** 63, 512],
    [2 ** 64 - 4096, 4096],
    [0, 2 ** 32 - 1],
  ])('refuses %d and %d bytes on, outside or partly so', (address, length) => {
    const memory = twoRegions()
    expect(translated(memory, address, length)).toBeNull()
    expect(located(memory, address, length)).toBe(-1)
    expect(memory.hostOfUser(userOf(address), length)).toBe(0)
  })

  it('cuts a range at the border of two regions, and has no single place for it', () => {
    ram = new GuestRam(MIB, 2)
    const [low, high] = ram.regions
    const memory = new GuestMemory([low!, { ...high!, guestAddress: MIB }])
    expect(translated(memory, MIB - 100, 300)).toEqual([
      [low!.address + MIB - 100, 100],
      [high!.address, 200],
    ])
    expect(located(memory, MIB - 100, 300)).toBe(-1)
  })

  it('takes addresses of the front end, and gives those of the guest', () => {
    const memory = twoRegions()
    const high = ram.regions[1]!
    expect(memory.hostOfUser(high.userAddress + 16, 32)).toBe(high.address + 16)
    expect(memory.guestOf(high.address + 16)).toBe(2 * MIB + 16)
    expect(memory.guestOf(4096)).toBe(-1)
  })

  it('knows nothing of a region that is gone', () => {
    const memory = twoRegions()
    expect(translated(memory, 0, 16)).not.toBeNull()
    memory.replace([ram.regions[1]!])
    expect(translated(memory, 0, 16)).toBeNull()
    expect(translated(memory, 2 * MIB, 16)).not.toBeNull()
  })

  it('refuses regions beyond what can be computed with', () => {
    ram = new GuestRam()
    expect(() => new GuestMemory([{ ...ram.regions[0]!, guestAddress: 2 ** 53 }])).toThrow('beyond 2^52')
  })
})

describe('views', () => {
  it('shows what lies across the border of two windows', () => {
    ram = new GuestRam(4096)
    const size = 2 ** 31
    const address = mapAnonymous(size)
    const memory = new GuestMemory([{ guestAddress: 0, userAddress: 0, sizeBytes: size, address }])
    for (const offset of [2 ** 29 - 2, 2 ** 30 - 2, 0, size - 4]) {
      bytesAt(address + offset, 4).set([1, 2, 3, 4])
      const at = memory.locate(address + offset, 4)
      expect(memory.view.getUint32(at, true)).toBe(0x0403_0201)
      // By guest address, with another window in view.
      memory.locate(address + (offset < 2 ** 30 ? size - 4 : 0), 4)
      const place = located(memory, offset, 4)
      expect(memory.view.getUint32(place, true)).toBe(0x0403_0201)
    }
    unmap(address, size)
  })
})

describe('dirty log', () => {
  it('has a bit for each page that a range touches, the first in the lowest bit of the first byte', () => {
    const memory = twoRegions()
    const part = sharedPart(4096)
    memory.log = new DirtyLog(part)
    memory.mark(ram.regions[0]!.address + 4095, 2)
    memory.mark(ram.regions[1]!.address + 9 * 4096, 1)
    const bytes = bytesAt(part.address, part.sizeBytes)
    expect(bytes[0]).toBe(0b11)
    // 2 MiB are 512 pages: page 521 is bit 1 of byte 65.
    expect(bytes[65]).toBe(0b10)
    expect(bytes.reduce((sum, byte) => sum + byte, 0)).toBe(5)
    unmap(part.address, part.sizeBytes)
  })

  it('has every bit of a long range, and none beside it', () => {
    const part = sharedPart(4096)
    new DirtyLog(part).mark(13 * 4096, 1000 * 4096)
    const bytes = [...bytesAt(part.address, 128)]
    // Pages 13 to 1012: from bit 5 of byte 1 to bit 4 of byte 126.
    expect(bytes.slice(0, 3)).toEqual([0, 0b1110_0000, 0xff])
    expect(bytes.slice(2, 126).every(byte => byte === 0xff)).toBe(true)
    expect(bytes.slice(126)).toEqual([0b0001_1111, 0])
    unmap(part.address, part.sizeBytes)
  })

  it('marks nothing beyond its end', () => {
    const memory = twoRegions()
    const part = sharedPart(4096)
    memory.log = new DirtyLog({ ...part, sizeBytes: 1 })
    memory.mark(ram.regions[0]!.address, MIB)
    expect([...bytesAt(part.address, 3)]).toEqual([0xff, 0, 0])
    unmap(part.address, part.sizeBytes)
  })
})
