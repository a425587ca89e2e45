/** How results are shown: tables on a terminal, JSON to programs, and as `rpc.py` prints them under `qpair rpc`. */
import { styleText } from 'node:util'
import { foldLines } from '../core/fold-lines.ts'
import type { Declared } from './commands.ts'

/** What the command line has of the world. */
export interface Terminal {
  readonly write: (text: string) => void
  readonly writeError: (text: string) => void
  /** Somebody reads along: tables and colours are of use. */
  readonly isTerminal: boolean
  /** How wide it is, when it is one that has a width. */
  readonly columns?: number | undefined
  readonly env: Readonly<Record<string, string | undefined>>
  readonly readStdin: () => Promise<string>
  /** From now on Ctrl-C calls `tell`, once, instead of ending the program; what is returned undoes that. */
  readonly onInterrupt?: (tell: () => void) => () => void
}

type Style = 'bold' | 'dim' | 'red'

export function paint(terminal: Terminal, style: Style, text: string): string {
  const wanted = terminal.isTerminal && (terminal.env['NO_COLOR'] ?? '') === ''
  return wanted ? styleText(style, text) : text
}

/** Writes a page of help, no wider than the terminal. */
export function writeHelp(terminal: Terminal, help: string): void {
  terminal.write(foldLines(help, terminal.columns))
}

export const toJson = (value: unknown, indent = 2): string => `${JSON.stringify(value, null, indent)}\n`

/**
 * For people and scripts: nothing for "it is done" unless the method has words for it, the plain text for a name, a table where
 * the method has columns. `params` are those of the call.
 */
export function render(
  terminal: Terminal,
  method: Declared,
  result: unknown,
  params: Readonly<Record<string, unknown>> = {},
): string {
  const { columns, text, keepsLines } = method.cli
  // The result came from this method, whose declaration the text belongs to.
  if (terminal.isTerminal && text !== undefined)
    return foldLines(printable(text(result as never, params)), keepsLines ? undefined : terminal.columns)
  if (result === true) return ''
  if (typeof result === 'string') return `${result}\n`
  if (!terminal.isTerminal || columns === undefined) return toJson(result)
  const rows = Array.isArray(result) ? result : [result]
  const titles = columns.map(column =>
    typeof column === 'string' ? column.split('.').at(-1)! : column.title,
  )
  const cells = rows.map(row =>
    // The row came from this method, whose declaration the column belongs to.
    columns.map(column =>
      show(typeof column === 'string' ? member(row, column) : column.value(row as never)),
    ),
  )
  const [head, ...lines] = align([titles.map(title => title.replaceAll('_', ' ').toUpperCase()), ...cells])
  return [paint(terminal, 'bold', head!), ...lines].map(line => `${line}\n`).join('')
}

/** As `rpc.py` prints: nothing for setters, names as shell words, everything else as JSON. */
export function renderLikeRpcPy(method: Declared, result: unknown): string {
  if (result === true) return ''
  if (typeof result === 'string') return `${result}\n`
  const isNames = Array.isArray(result) && result.every(element => typeof element === 'string')
  if (isNames && !/(^|_)get(_|$)/.test(method.name)) return `${result.map(shellWord).join(' ')}\n`
  return toJson(result)
}

/** Quoted for a shell when it holds anything but harmless characters. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`
}

/** Columns as wide as their widest cell, two spaces apart; numbers to the right. */
export function align(rows: readonly (readonly string[])[]): string[] {
  const columnCount = Math.max(...rows.map(row => row.length))
  const widths = Array.from({ length: columnCount }, (_, i) =>
    Math.max(...rows.map(row => row[i]?.length ?? 0)),
  )
  const numeric = widths.map((_, i) => rows.slice(1).every(row => /^-?\d+(\.\d+)?$/.test(row[i] ?? '')))
  return rows.map(row =>
    row
      .map((cell, i) => (numeric[i] ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)))
      .join('  ')
      .trimEnd(),
  )
}

function member(row: unknown, path: string): unknown {
  let value = row
  for (const name of path.split('.')) value = (value as Record<string, unknown> | null | undefined)?.[name]
  return value
}

function show(value: unknown): string {
  if (value === undefined || value === null || value === '') return '-'
  if (typeof value === 'boolean') return value ? 'yes' : 'no'
  if (Array.isArray(value)) return value.length === 0 ? '-' : value.map(show).join(', ')
  if (typeof value === 'string') return printable(value).replaceAll('\n', '?')
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

/** A name chosen by a peer must not steer the terminal. Ends of lines stay. */
const printable = (text: string): string => text.replaceAll(/(?!\n)\p{Cc}/gu, '?')
