import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { createSnapshot, imageInfo } from '../../src/bdev/drivers/qcow2/image.ts'
import { QUIET } from '../../src/volume/pool.ts'
import { wipeFile } from '../../src/volume/wipe.ts'
import { Storage } from './support.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
const PIECE = 64 << 10
const AT = 32 * MIB

let directory: string
let path: string

/** A thin volume with something in the middle. */
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-wipe-'))
  path = join(directory, 'thin')
  const fd = openSync(path, 'w')
  writeSync(fd, Buffer.alloc(PIECE, 0x11), 0, PIECE, AT)
  closeSync(fd)
  truncateSync(path, SIZE)
})
afterEach(() => rmSync(directory, { recursive: true }))

const piece = (): Buffer => readFileSync(path).subarray(AT, AT + PIECE)

describe.each(['zero', 'random', 'trim'] as const)('wiping with %s', algorithm => {
  it('leaves nothing of what was there, and the holes and the size as they are', async () => {
    await wipeFile(path, algorithm, QUIET)
    expect(piece().includes(Buffer.alloc(16, 0x11))).toBe(false)
    expect(piece().equals(Buffer.alloc(PIECE))).toBe(algorithm !== 'random')
    expect(statSync(path).size).toBe(SIZE)
    expect(statSync(path).blocks * 512).toBeLessThan(MIB)
  })

  it('begins where it is told to', async () => {
    await wipeFile(path, algorithm, QUIET, AT + PIECE)
    expect(piece().equals(Buffer.alloc(PIECE, 0x11))).toBe(true)
  })
})

describe('a qcow2 image that is wiped', () => {
  let storage: Storage
  beforeEach(async () => {
    storage = new Storage()
    await storage.directoryPool('vms')
  })
  afterEach(() => storage.close())

  it.each([
    { compat: '1.1', cluster_size: '128K', extended_l2: 'on', refcount_bits: '32' },
    { compat: '0.10', cluster_size: '4K' },
  ])('is empty, and what it was made as: %o', async features => {
    await storage.call('volume_create', {
      ...{ pool: 'vms', name: 'q', capacity: '64M', format: 'qcow2', features },
    })
    const before = await imageInfo(storage.path('vms/q'))
    await createSnapshot(storage.path('vms/q'), 'one')
    expect(await storage.job('volume_wipe', { volume: 'q' })).toMatchObject({ state: 'completed' })
    expect(await imageInfo(storage.path('vms/q'))).toEqual(before)
    expect(readdirSync(storage.path('vms'))).toEqual(['q'])
  })
})
