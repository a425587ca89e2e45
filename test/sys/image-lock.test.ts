import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { lockImage } from '../../src/sys/image-lock.ts'

let directory: string
let fds: number[]
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-image-lock-'))
  writeFileSync(join(directory, 'image'), 'x')
  fds = []
})
afterEach(() => {
  for (const fd of fds) closeSync(fd)
  rmSync(directory, { recursive: true })
})

function open(): number {
  const fd = openSync(join(directory, 'image'), 'r+')
  fds.push(fd)
  return fd
}

it.each([
  [false, false, false],
  [false, true, false],
  [true, false, false],
  [true, true, true],
])(
  'lets one that only reads (%s) be joined by another that only reads (%s): %s',
  (first, second, isTogether) => {
    expect(lockImage(open(), first)).toBe(true)
    expect(lockImage(open(), second)).toBe(isTogether)
  },
)

it('keeps nothing of a lock that was refused, and nothing after it is closed', () => {
  const writer = open()
  expect(lockImage(writer, false)).toBe(true)
  expect(lockImage(open(), true)).toBe(false)
  closeSync(fds.shift()!)
  expect(lockImage(open(), false)).toBe(true)
})
