import { describe, expect, it } from 'vitest'
import type { Logger } from '../../src/core/log.ts'
import { limitLines } from '../../src/core/log-limit.ts'

/** A logger whose lines are kept, and a clock that a test moves. */
function limited(): { readonly log: Logger; readonly lines: string[]; advance(ms: number): void } {
  const lines: string[] = []
  let nowMs = 5000
  const keep = (level: string) => (message: string) => void lines.push(`${level} ${message}`)
  const log = {
    error: keep('error'),
    warning: keep('warning'),
    notice: keep('notice'),
    info: keep('info'),
    debug: keep('debug'),
  }
  return {
    log: limitLines(log, () => nowMs),
    lines,
    advance: ms => {
      nowMs += ms
    },
  }
}

describe('a limited logger', () => {
  it('writes what there is, at its level', () => {
    const { log, lines } = limited()
    log.error('a')
    log.warning('b')
    log.notice('c')
    log.info('d')
    log.debug('e')
    expect(lines).toEqual(['error a', 'warning b', 'notice c', 'info d', 'debug e'])
  })

  it('writes 100 lines at once, then one each second, and says how many are missing', () => {
    const { log, lines, advance } = limited()
    for (let i = 0; i < 170; i++) log.notice(`line ${i}`)
    expect(lines).toHaveLength(100)
    advance(999)
    log.notice('too early')
    advance(1)
    log.warning('in time')
    log.notice('too late')
    expect(lines.slice(100)).toEqual(['warning in time (71 before this one left out)'])
    advance(2000)
    log.notice('x')
    log.notice('y')
    log.notice('z')
    expect(lines.slice(101)).toEqual(['notice x (1 before this one left out)', 'notice y'])
  })

  it('has no more than 100 lines to give after a long silence', () => {
    const { log, lines, advance } = limited()
    advance(1e9)
    for (let i = 0; i < 170; i++) log.notice('x')
    expect(lines).toHaveLength(100)
  })
})
