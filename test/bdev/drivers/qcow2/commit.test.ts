/** What a commit brings to the file, when, and in what order. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { parseHeader } from '../../../../src/bdev/drivers/qcow2/header.ts'
import { type CreateOptions, checkImage, createImage } from '../../../../src/bdev/drivers/qcow2/image.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { Machine, SECTOR } from './simulation.ts'

/** What one slice of an L2 table maps: 64 entries of 8 bytes. The machine's cache has room for 16 slices. */
const SLICE_SECTORS = 64

let directory: string
let path: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-commit-'))
  path = join(directory, 'image')
})
afterAll(() => rmSync(directory, { recursive: true }))

async function newMachine(
  sectors: number,
  options: Omit<CreateOptions, 'sizeBytes'> = {},
  prng = new Prng(1),
) {
  rmSync(path, { force: true })
  await createImage(path, { sizeBytes: sectors * SECTOR, clusterSize: 512, ...options })
  const machine = new Machine(readFileSync(path), null, true, prng)
  machine.open()
  return machine
}

/** Has the file end what was begun last, and lose everything that was not synced. */
class LastFirst extends Prng {
  override below(limit: number): number {
    return limit - 1
  }
}

describe('tables that changed', () => {
  /** How many syncs there were after a write to each of so many slices. */
  const syncsOf = async (slices: number): Promise<number> => {
    const machine = await newMachine(slices * SLICE_SECTORS)
    let syncs = 0
    machine.file.fails = operation => {
      if (operation === 'sync') syncs++
      return 0
    }
    for (let slice = 0; slice < slices; slice++) {
      expect(machine.finish(machine.write(slice * SLICE_SECTORS, 1, slice + 1))).toBe(0)
    }
    return syncs
  }

  it('wait for a flush while all fit into the cache', async () => expect(await syncsOf(16)).toBe(0))

  it('are written before it where they do not', async () => expect(await syncsOf(17)).toBeGreaterThan(0))
})

describe('a refcount table', () => {
  it('is written as it was when the commit began: a block made since may not be in the file', async () => {
    const machine = await newMachine(512, { refcountBits: 64 }, new LastFirst(1))
    const table = parseHeader(readFileSync(path), machine.file.sizeBytes).refcountTableOffset
    // More clusters than a block counts, so that there is a new one to name.
    expect(machine.finish(machine.write(0, 70, 1))).toBe(0)
    let isSyncing = false
    const sync = machine.file.sync.bind(machine.file)
    machine.file.sync = waiter => {
      isSyncing = true
      sync(waiter)
    }
    let isTableWritten = false
    machine.file.fails = (operation, offset) => {
      isTableWritten ||= operation === 'write' && offset === table
      return 0
    }
    const flush = machine.flush()
    while (!isSyncing) machine.step()
    expect(machine.finish(machine.write(128, 70, 2))).toBe(0)
    expect(isTableWritten).toBe(false)
    while (!isTableWritten) machine.step()
    // Of what was written since the sync began, that sector alone gets to the medium.
    const written = machine.file.afterKill().subarray(table, table + SECTOR)
    const image = machine.file.afterPowerCut()
    image.set(written, table)
    writeFileSync(path, image)
    expect(await checkImage(path)).toMatchObject({ corruptions: 0 })
    expect(machine.finish(flush)).toBe(0)
  })
})
