import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { stateIdentity } from '../../src/app/state-identity.ts'
import { logSettings } from '../../src/core/log.ts'

let directories: string[]
beforeEach(() => {
  directories = [1, 2].map(() => mkdtempSync(join(tmpdir(), 'qpair-identity-')))
})
afterEach(() => {
  for (const directory of directories) rmSync(directory, { recursive: true })
  vi.restoreAllMocks()
})

it('is the same each time, and another one elsewhere', async () => {
  const [one, other] = directories as [string, string]
  const identity = await stateIdentity(one)
  expect(identity).toMatch(/^[0-9a-f-]{36}$/)
  expect(await stateIdentity(one)).toBe(identity)
  expect(await stateIdentity(other)).not.toBe(identity)
})

it('is nothing where it cannot be kept, which is said', async () => {
  const logged: string[] = []
  vi.spyOn(logSettings, 'write').mockImplementation(line => void logged.push(line))
  expect(await stateIdentity(join(directories[0]!, 'absent'))).toBe('')
  expect(logged.join('')).toContain('the state directory gets no identity of its own: ENOENT')
})
