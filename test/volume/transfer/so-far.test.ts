import { readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { PIECE_BYTES, type Source } from '../../../src/volume/transfer/copy.ts'
import { isSameSoFar } from '../../../src/volume/transfer/so-far.ts'
import { identityOf } from '../../../src/volume/transfer/source.ts'
import { partialName, partialStateName } from '../../../src/volume/volume-name.ts'
import { Storage } from '../support.ts'

const DONE = 40 * PIECE_BYTES + 700
const { signal } = new AbortController()

function disk(content: Buffer, onRead: (end: number) => void = () => {}): Source {
  return {
    sizeBytes: content.length,
    async *ranges() {},
    async read({ bytes }, offset, length) {
      onRead(offset + length)
      content.copy(bytes, 0, offset, offset + length)
    },
    async close() {},
  }
}

describe('what a copy has come to', () => {
  const content = Buffer.alloc(DONE + PIECE_BYTES, 0x11)

  it.each([
    ['at its beginning', 0],
    ['in its last byte', DONE - 1],
  ])('is not gone on with when it differs %s', async (_, at) => {
    const other = Buffer.from(content)
    other[at] = 0x22
    expect(await isSameSoFar(disk(other), disk(content), DONE, signal)).toBe(false)
  })

  it('may be followed by anything, which nobody reads', async () => {
    const other = Buffer.from(content)
    other[DONE] = 0x22
    const ends: number[] = []
    const source = disk(other, end => ends.push(end))
    expect(await isSameSoFar(source, disk(content), DONE, signal)).toBe(true)
    expect([ends.length, Math.max(...ends)]).toEqual([16, DONE])
  })

  it('is nothing that could differ before the first note', async () => {
    expect(await isSameSoFar(disk(content), disk(content), 0, signal)).toBe(true)
  })

  it('is not there when the copy is shorter than its note says', async () => {
    expect(await isSameSoFar(disk(content), disk(content.subarray(0, 512)), DONE, signal)).toBe(false)
  })
})

describe('an import that goes on', () => {
  let storage: Storage
  beforeEach(async () => {
    storage = new Storage()
    await storage.directoryPool('vms')
  })
  afterEach(() => storage.close())

  const inPool = (name: string): string => storage.path('vms', name)

  /** A raw disk with this byte everywhere, or an image of it. */
  async function source(name: string, byte: number, format: string): Promise<string> {
    const raw = storage.path(`${name}.raw`)
    writeFileSync(raw, Buffer.alloc(4 << 20, byte))
    if (format === 'raw') return raw
    const file = storage.path(`${name}.${format}`)
    await storage.job('volume_import', { pool: 'vms', name, source: raw })
    await storage.job('volume_save', { volume: name, file, format })
    await storage.call('volume_delete', { volume: name })
    return file
  }

  it.each([
    ['raw', 'qcow2'],
    ['qcow2', 'raw'],
  ])('begins anew when it has what another source had (%s to %s)', async (from, to) => {
    const [before, now] = [await source('before', 0x11, from), await source('now', 0x22, from)]
    await storage.job('volume_import', { pool: 'vms', name: 'half', source: before, format: to })
    renameSync(inPool('half'), inPool(partialName('new')))
    const note = { source: now, format: to, identity: await identityOf(now), doneBytes: 3 << 20 }
    writeFileSync(inPool(partialStateName('new')), JSON.stringify(note))
    await storage.call('pool_refresh', { pool: 'vms' })

    const begun = { pool: 'vms', name: 'new', source: now, format: to }
    expect(await storage.job('volume_import', { ...begun, resume: true })).toMatchObject({
      state: 'completed',
    })
    expect(storage.logged.join('')).toContain(`${now} is no longer what`)
    await storage.job('volume_save', { volume: 'new', file: storage.path('out'), format: 'raw' })
    expect(readFileSync(storage.path('out')).equals(Buffer.alloc(4 << 20, 0x22))).toBe(true)
    expect(readdirSync(inPool(''))).toEqual(['new'])
  })
})
