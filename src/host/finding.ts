/** What a check of the host found, and how a list of findings is shown. */
import { styleText } from 'node:util'
import { foldLines } from '../core/fold-lines.ts'
import type { Host } from './host.ts'

/** `note`: nothing is wrong, and something could be better or is not used here. `fail`: what it is about cannot work. */
export type Level = 'pass' | 'note' | 'warn' | 'fail'

export interface Finding {
  readonly check: string
  readonly level: Level
  /** What is there: a value, a version, the reason why not. */
  readonly found: string
  /** What to do, as exactly as it can be said; absent when there is nothing to do. */
  readonly remedy?: string
}

/** One look at the host. A check that cannot be made is a finding, not an error. */
export type Check = (host: Host) => Finding | Promise<Finding>

export async function findAll(checks: readonly Check[], host: Host): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const check of checks) findings.push(await check(host))
  return findings
}

const COLOURS = { pass: 'green', note: 'cyan', warn: 'yellow', fail: 'red' } as const

/** What stands left of the text: the level, and the check's name padded to `NAME_WIDTH`. */
const NAME_WIDTH = 24
const MARGIN = ' '.repeat(NAME_WIDTH + 8)

/** A line for each finding, its remedy below it. `columns`: the width of the terminal, if it is one. */
export function renderFindings(
  findings: readonly Finding[],
  { isTerminal, columns }: { readonly isTerminal: boolean; readonly columns?: number | undefined },
): string {
  const beside = (text: string): string => foldLines(MARGIN + text, columns).slice(MARGIN.length)
  const line = ({ check, level, found, remedy }: Finding): string => {
    const word = level.toUpperCase()
    const mark = isTerminal ? styleText(COLOURS[level], word) : word
    const below = remedy === undefined ? '' : `${MARGIN}${beside(`-> ${remedy}`)}\n`
    return `${mark}  ${check.padEnd(NAME_WIDTH)}  ${beside(found)}\n${below}`
  }
  return findings.map(line).join('')
}
