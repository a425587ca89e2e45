import { afterEach, beforeEach, expect, it } from 'vitest'
import { logger, logSettings } from '../../src/core/log.ts'

const { write } = logSettings
let printed = ''

beforeEach(() => {
  printed = ''
  logSettings.write = line => {
    printed += line
  }
})
afterEach(() => {
  logSettings.write = write
})

it('lets no name that a peer gave begin a line of its own or steer a terminal', () => {
  const name = 'nqn.x\n2026-11-21T10:00:00.000Z ERROR bdev: disk0 is lost\r\u001b[2J\u009b1m'
  logger('nvmf').warning(`host ${name} is lost`)
  expect(printed.trimEnd().split('\n').slice(1)).toEqual([
    '    2026-11-21T10:00:00.000Z ERROR bdev: disk0 is lost\\x0d\\x1b[2J\\x9b1m is lost',
  ])
  expect(printed.endsWith('\n')).toBe(true)
})
