import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import {
  copyFileSparsely,
  createRaw,
  dataRanges,
  reflink,
  resizeRaw,
  writeError,
} from '../../../src/volume/formats/raw.ts'
import { QUIET } from '../../../src/volume/pool.ts'

const MIB = 2 ** 20
let directory: string
let path: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-raw-'))
  path = join(directory, 'disk')
})
afterEach(() => rmSync(directory, { recursive: true }))

/** Bytes of the file system that a file takes. */
const taken = (name: string): number => statSync(name).blocks * 512

describe('createRaw', () => {
  it('makes a thin file that takes no room', async () => {
    await createRaw(path, 512 * MIB, 'off', QUIET)
    expect([statSync(path).size, taken(path)]).toEqual([512 * MIB, 0])
  })

  it('reserves all of a file and tells how far it is', async () => {
    const told: number[] = []
    await createRaw(path, 300 * MIB, 'full', { ...QUIET, report: done => void told.push(done) })
    expect(taken(path)).toBeGreaterThanOrEqual(300 * MIB)
    expect(told).toEqual([128 * MIB, 256 * MIB, 300 * MIB])
  })

  it('leaves nothing behind when it is ended', async () => {
    const abort = new AbortController()
    const making = createRaw(path, 300 * MIB, 'full', { report: () => abort.abort(), signal: abort.signal })
    await expect(making).rejects.toMatchObject({ name: 'AbortError' })
    expect(existsSync(path)).toBe(false)
  })

  it('refuses more than the file system has, before it writes anything', async () => {
    await expect(createRaw(path, 2 ** 50, 'full', QUIET)).rejects.toMatchObject({
      code: 'ENOSPC',
      message: expect.stringMatching(/1024 TiB are to be reserved and .* left/),
    })
    expect(existsSync(path)).toBe(false)
  })

  it('does not touch a file that is there', async () => {
    writeFileSync(path, 'mine')
    await expect(createRaw(path, MIB, 'off', QUIET)).rejects.toMatchObject({ code: 'EEXIST' })
    expect(readFileSync(path, 'utf8')).toBe('mine')
  })
})

describe('resizeRaw', () => {
  it('grows by a hole, and by reserved blocks when that is asked for', async () => {
    await createRaw(path, MIB, 'off', QUIET)
    await resizeRaw(path, 10 * MIB, false, QUIET)
    expect([statSync(path).size, taken(path)]).toEqual([10 * MIB, 0])
    await resizeRaw(path, 30 * MIB, true, QUIET)
    expect(statSync(path).size).toBe(30 * MIB)
    expect(taken(path)).toBeGreaterThanOrEqual(20 * MIB)
  })
})

describe('copyFileSparsely', () => {
  it('copies data where it is and keeps the holes', async () => {
    const file = await open(path, 'w')
    await file.truncate(64 * MIB)
    await file.write(Buffer.alloc(MIB, 0x11), 0, MIB, 8 * MIB)
    await file.close()
    const copy = join(directory, 'copy')
    await copyFileSparsely(path, copy, QUIET)
    expect(readFileSync(copy).equals(readFileSync(path))).toBe(true)
    expect(taken(copy)).toBeLessThan(4 * MIB)
  })

  it('writes what a write has left over, as one does that fills the file system', async () => {
    writeFileSync(path, Buffer.alloc(MIB, 0x11))
    const file = await open(path)
    const handles = Object.getPrototypeOf(file) as FileHandle
    await file.close()
    const write = handles.write as (...given: unknown[]) => Promise<never>
    vi.spyOn(handles, 'write').mockImplementation(function (this: FileHandle, ...given: unknown[]) {
      const [bytes, from, length, at] = given
      return write.call(this, bytes, from, Math.ceil(Number(length) / 2), at)
    })
    const copy = join(directory, 'copy')
    await copyFileSparsely(path, copy, QUIET).finally(() => vi.restoreAllMocks())
    expect(readFileSync(copy).equals(readFileSync(path))).toBe(true)
  })

  it('does not overwrite', async () => {
    writeFileSync(path, 'from')
    writeFileSync(join(directory, 'copy'), 'to')
    await expect(reflink(path, join(directory, 'copy'))).rejects.toMatchObject({ code: 'EEXIST' })
    await expect(copyFileSparsely(path, join(directory, 'copy'), QUIET)).rejects.toMatchObject({
      code: 'EEXIST',
    })
    expect(readFileSync(join(directory, 'copy'), 'utf8')).toBe('to')
  })
})

describe('dataRanges', () => {
  it('yields what is no hole, from where it is asked on', async () => {
    const file = await open(path, 'w+')
    await file.truncate(16 * MIB)
    await file.write(Buffer.alloc(MIB, 1), 0, MIB, 2 * MIB)
    await file.write(Buffer.alloc(MIB, 1), 0, MIB, 8 * MIB)
    expect([...dataRanges(file.fd, 0, 16 * MIB)]).toEqual([
      [2 * MIB, 3 * MIB],
      [8 * MIB, 9 * MIB],
    ])
    expect([...dataRanges(file.fd, 8.5 * MIB, 16 * MIB)]).toEqual([[8.5 * MIB, 9 * MIB]])
    expect([...dataRanges(file.fd, 10 * MIB, 16 * MIB)]).toEqual([])
    await file.close()
  })
})

it('says of a file system that is full what makes room', () => {
  const full = Object.assign(new Error('ENOSPC'), { code: 'ENOSPC', syscall: 'mkdir' })
  expect(writeError('/srv/fast', full)).toMatchObject({
    code: 'ENOSPC',
    message: expect.stringMatching(/^\/srv\/fast cannot be written: ENOSPC, .*no room left: delete a volume/),
  })
})
