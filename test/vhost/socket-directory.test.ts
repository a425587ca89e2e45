import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { makeSocketDirectory } from '../../src/vhost/socket-directory.ts'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-sockets-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

describe('the directory of vhost sockets', () => {
  it('is made with those above it, once', async () => {
    const path = join(directory, 'run', 'vhost')
    await makeSocketDirectory(path)
    await makeSocketDirectory(path)
    expect(statSync(path).isDirectory()).toBe(true)
  })

  it('cannot be a file, nor under one', async () => {
    const path = join(directory, 'file')
    writeFileSync(path, '')
    await expect(makeSocketDirectory(path)).rejects.toMatchObject({
      code: 'ENOTDIR',
      message:
        `no sockets of vhost controllers can be made in ${path} (-S): it is a file. ` +
        'Give a directory that this user may write to',
    })
    await expect(makeSocketDirectory(join(path, 'vhost'))).rejects.toThrow(`${path}/vhost (-S): ENOTDIR`)
  })

  it('that the system refuses is refused in its words', async () => {
    const path = join(directory, 'x'.repeat(300))
    await expect(makeSocketDirectory(path)).rejects.toMatchObject({
      code: 'ENAMETOOLONG',
      message: expect.stringContaining(`${path} (-S): ENAMETOOLONG`),
    })
  })
})
