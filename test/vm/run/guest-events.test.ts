import { afterEach, beforeEach, expect, it } from 'vitest'
import { logSettings } from '../../../src/core/log.ts'
import { reportEvent } from '../../../src/vm/run/guest-events.ts'

const { write } = logSettings
let lines: string[]
beforeEach(() => {
  lines = []
  logSettings.write = line => lines.push(line)
})
afterEach(() => {
  logSettings.write = write
})

// What QEMU 7.2 sends when a file system is full.
const FULL = {
  ...{ device: '', 'node-name': 'disk-vda', operation: 'write', nospace: true },
  reason: 'No space left on device',
}

it('says which disk has stopped a guest, and what to do', () => {
  reportEvent('web', { event: 'BLOCK_IO_ERROR', data: { ...FULL, action: 'stop' } })
  expect(lines).toEqual([
    expect.stringContaining(
      'guest web stands still, its disk vda has failed to write: there is no room for its data. Mend that, and qpair vm resume web',
    ),
  ])
})

it('says nothing of errors that the guest hears of itself, and of other events', () => {
  reportEvent('web', { event: 'BLOCK_IO_ERROR', data: { ...FULL, action: 'report' } })
  reportEvent('web', { event: 'STOP', data: {} })
  expect(lines).toEqual([])
})

it('is not brought down by what is no text', () => {
  const odd = { toString: 1 }
  const data = { action: 'stop', 'node-name': odd, operation: odd, reason: odd, nospace: odd }
  reportEvent('web', { event: 'BLOCK_IO_ERROR', data })
  expect(lines).toEqual([expect.stringContaining('its disk unknown has failed to work: no reason given')])
})
