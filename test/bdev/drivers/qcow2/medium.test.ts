import { mkdtempSync, readdirSync, rmdirSync, statfsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { mediumOf } from '../../../../src/bdev/drivers/qcow2/medium.ts'

const TMPFS = 0x01021994
const devices = readdirSync('/dev')
  .map(name => join('/dev', name))
  .filter(path => statSync(path, { throwIfNoEntry: false })?.isBlockDevice())

it.skipIf(devices.length === 0)(
  'does not take a block device for memory, where its name lies (needs one in /dev)',
  async () => {
    expect(await mediumOf(devices[0]!)).toEqual({ isMemory: false, isLocal: true })
  },
)

it.skipIf(statfsSync('/dev/shm').type !== TMPFS)(
  'takes tmpfs for memory (needs one at /dev/shm)',
  async () => {
    const directory = mkdtempSync('/dev/shm/qpair-medium-')
    expect(await mediumOf(directory)).toEqual({ isMemory: true, isLocal: true })
    rmdirSync(directory)
  },
)

it('may have to ask for the size of a file on a file system that it does not know', async () => {
  expect(await mediumOf('/proc/self/status')).toEqual({ isMemory: false, isLocal: false })
})
