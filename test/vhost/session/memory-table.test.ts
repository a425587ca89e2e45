import { mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { createSharedMemory } from '../../../src/sys/shared-memory.ts'
import { closeAll } from '../../../src/sys/unix-message.ts'
import type { MappedRegion } from '../../../src/vhost/messages.ts'
import { MemoryTable, type WantedRegion } from '../../../src/vhost/session/memory-table.ts'
import { SealPolicy } from '../../../src/vhost/session/seals.ts'
import { mappingsOf } from '../../support/descriptors.ts'

const TIB = 2 ** 40
const PAGE = 4096

const descriptors: number[] = []
let warnings: string[]
let adopted: (readonly MappedRegion[])[]
let table: MemoryTable

beforeEach(() => {
  warnings = []
  adopted = []
  table = tableWith(false)
})

afterEach(() => {
  table.close()
  closeAll(descriptors)
  expect(mappingsOf('qpair-table')).toBe(0)
})

const tableWith = (requireSealed: boolean): MemoryTable =>
  new MemoryTable(new SealPolicy(requireSealed, warning => warnings.push(warning)))

const adopt = async (regions: readonly MappedRegion[]): Promise<void> => {
  adopted.push(regions)
}

function sealed(pages = 4): number {
  descriptors.push(createSharedMemory('qpair-table', pages * PAGE))
  return descriptors.at(-1)!
}

/** A plain file, as `-object memory-backend-file` has it: nothing keeps its owner from truncating it. */
function unsealed(): number {
  const directory = mkdtempSync(join(tmpdir(), 'qpair-table-'))
  const descriptor = openSync(join(directory, 'qpair-table'), 'w+')
  writeSync(descriptor, new Uint8Array(4 * PAGE))
  rmSync(directory, { recursive: true })
  descriptors.push(descriptor)
  return descriptor
}

const region = (guestAddress: number, sizeBytes = PAGE, mmapOffset = 0): WantedRegion => ({
  guestAddress,
  userAddress: 0x7f00_0000_0000 + guestAddress,
  sizeBytes,
  mmapOffset,
})

describe('a memory table', () => {
  it('has no more memory than a guest can have', async () => {
    descriptors.push(createSharedMemory('qpair-table', 2 ** 45))
    await table.add(region(0, 2 ** 43), descriptors[0]!, adopt)
    await expect(table.add(region(2 ** 43, 2 ** 43 + 1), descriptors[0]!, adopt)).rejects.toThrow(
      'shares 17592186044417 bytes of memory, more than 17592186044416',
    )
  })

  it('has no more than the tables of others leave of the address space', async () => {
    descriptors.push(createSharedMemory('qpair-table', TIB))
    const others = [0, 1, 2, 3].map(() => tableWith(false))
    // In pieces, since V8 scatters its own over the address space: four of 16 TiB do not always fit.
    for (const other of others) {
      for (let i = 0; i < 16; i++) await other.add(region(i * TIB, TIB), descriptors[0]!, adopt)
    }
    await expect(table.add(region(0), descriptors[0]!, adopt)).rejects.toThrow(
      'has a region of 4096 bytes at guest address 0x0 that is too much: front ends share 64 pieces of together 70368744177664 bytes already',
    )
    others.pop()!.close()
    await table.add(region(0), descriptors[0]!, adopt)
    for (const other of others) other.close()
  })

  it('knows where guest memory ends', async () => {
    expect(table.guestEnd).toBe(0)
    const file = sealed()
    await table.replace([region(8 * PAGE), region(0)], [file, file], adopt)
    expect(table.guestEnd).toBe(9 * PAGE)
  })

  it('maps what is not whole pages', async () => {
    await table.replace([region(0, 100, PAGE + 5)], [sealed()], adopt)
    expect(adopted[0]![0]!.address % PAGE).toBe(5)
  })

  it('maps nothing when one of several regions cannot be', async () => {
    await expect(
      table.replace([region(0), region(PAGE, 5 * PAGE)], [sealed(), sealed()], adopt),
    ).rejects.toThrow(
      'a region of 20480 bytes at guest address 0x1000 that cannot be mapped: mmap up to byte 20480 of a file of 16384',
    )
    expect(mappingsOf('qpair-table')).toBe(0)
    expect(adopted).toEqual([])
  })

  it('keeps everything mapped, the old and the new, when it is not known who uses what', async () => {
    await table.add(region(0), sealed(), adopt)
    const failing = () => Promise.reject(new Error('a reactor does not answer'))
    await expect(table.replace([region(PAGE)], [sealed()], failing)).rejects.toThrow('does not answer')
    expect(mappingsOf('qpair-table')).toBe(2)
    table.close()
    expect(mappingsOf('qpair-table')).toBe(0)
  })

  it('lets user addresses overlap, as two views of the same memory do', async () => {
    const file = sealed()
    const alias = { ...region(4 * PAGE), userAddress: region(0).userAddress }
    await table.replace([region(0), alias], [file, file], adopt)
    expect(adopted[0]).toHaveLength(2)
  })

  it('is empty when the front end says so', async () => {
    await table.add(region(0), sealed(), adopt)
    await table.replace([], [], adopt)
    expect(table.regions).toEqual([])
    expect(mappingsOf('qpair-table')).toBe(0)
  })
})

describe('memory that can be truncated', () => {
  it('is used with one warning for all of it', async () => {
    await table.add(region(0), unsealed(), adopt)
    await table.add(region(PAGE), unsealed(), adopt)
    await table.add(region(2 * PAGE), sealed(), adopt)
    expect(warnings).toEqual([
      'a region of 4096 bytes at guest address 0x0 is in a file that can be truncated, which would end this process. ' +
        '-object memory-backend-memfd,share=on is safe',
    ])
  })

  it('is refused where memory has to be sealed, with what to do', async () => {
    table = tableWith(true)
    await table.add(region(0), sealed(), adopt)
    await expect(table.add(region(PAGE), unsealed(), adopt)).rejects.toThrow(
      /is refused: a region of 4096 bytes at guest address 0x1000 is in a file that can be truncated.*memory-backend-memfd.*vhost_set_options/,
    )
    expect(table.regions).toHaveLength(1)
    expect(warnings).toEqual([])
  })
})
