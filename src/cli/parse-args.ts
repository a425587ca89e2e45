/**
 * Reads command lines as Python's argparse does, so that lines written for `rpc.py` work: `-b NAME`, `-bNAME`, joined
 * switches, `--name VALUE`, `--name=VALUE`, any unambiguous beginning of a long name, dashes or underscores, negative
 * numbers as values, words anywhere between. (node:util's parseArgs knows neither `-l -1` nor beginnings.)
 */
import { resolve } from 'node:path'
import { didYouMean } from '../rpc/closest.ts'
import type { CliOption, CommandLine } from './options.ts'

/** The command line is wrong; nothing was sent. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

type Params = Record<string, unknown>

/** The parameters that these words and flags set. Throws `UsageError`. */
export function parseArgs(line: CommandLine, args: readonly string[]): Params {
  const given = new Map<CliOption, unknown>()
  const words: string[] = []
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!
    if (arg === '--') {
      words.push(...args.slice(i + 1))
      break
    }
    if (arg === '-' || !arg.startsWith('-') || isNegativeNumber(arg)) words.push(arg)
    else if (arg.startsWith('--')) i = takeLong(line, given, args, i)
    else i = takeShort(line, given, args, i)
  }
  takeWords(line, given, words)
  const params = build(given)
  checkRequired(line, given)
  return params
}

const isNegativeNumber = (arg: string): boolean => /^-\d/.test(arg)

/** Takes `--name`, with its value if it has one, and returns the index of the last argument used. */
function takeLong(
  line: CommandLine,
  given: Map<CliOption, unknown>,
  args: readonly string[],
  i: number,
): number {
  const arg = args[i]!
  const equals = arg.indexOf('=')
  const name = (equals === -1 ? arg : arg.slice(0, equals)).slice(2).replaceAll('_', '-')
  const { option, turnsOn } = findLong(line, name)
  if (option.kind === 'switch') {
    if (equals !== -1) throw new UsageError(`--${name} takes no value; --no-${name} is its opposite`)
    given.set(option, turnsOn)
    return i
  }
  if (equals !== -1) {
    set(given, option, `--${name}`, arg.slice(equals + 1))
    return i
  }
  set(given, option, `--${name}`, valueAfter(args, i, `--${name}`, option))
  return i + 1
}

/** Takes `-x`, `-xVALUE`, `-x VALUE` or joined switches `-xyz`. */
function takeShort(
  line: CommandLine,
  given: Map<CliOption, unknown>,
  args: readonly string[],
  i: number,
): number {
  const letters = args[i]!.slice(1)
  // rpc.py has a few long names with one dash: -t1, -k2.
  if (letters.length > 1 && line.options.some(({ on }) => on.includes(letters))) {
    return takeLong(line, given, [...args.slice(0, i), `-${args[i]}`, ...args.slice(i + 1)], i)
  }
  for (let at = 0; at < letters.length; at++) {
    const letter = letters[at]!
    const option = line.options.find(({ on, off }) => on.includes(letter) || off.includes(letter))
    if (option === undefined) throw unknownOption(line, `-${letter}`)
    if (option.kind === 'switch') {
      given.set(option, option.on.includes(letter))
      continue
    }
    const joined = letters.slice(at + 1)
    set(given, option, `-${letter}`, joined === '' ? valueAfter(args, i, `-${letter}`, option) : joined)
    return joined === '' ? i + 1 : i
  }
  return i
}

function findLong(line: CommandLine, name: string): { option: CliOption; turnsOn: boolean } {
  const all = line.options.flatMap(option => [
    ...longNames(option.on).map(long => ({ long, option, turnsOn: true })),
    ...longNames(option.off).map(long => ({ long, option, turnsOn: false })),
  ])
  const exact = all.find(({ long }) => long === name)
  if (exact !== undefined) return exact
  const begun = all.filter(({ long }) => long.startsWith(name))
  const options = new Set(begun.map(({ option }) => option))
  if (options.size === 1) return begun[0]!
  if (options.size === 0) throw unknownOption(line, `--${name}`)
  throw new UsageError(`--${name} may be ${begun.map(({ long }) => `--${long}`).join(' or ')}`)
}

const longNames = (names: readonly string[]): string[] =>
  names.filter(name => name.length > 1).map(name => name.replaceAll('_', '-'))

function unknownOption(line: CommandLine, name: string): UsageError {
  const known = line.options.flatMap(({ on, off }) => longNames([...on, ...off]).map(long => `--${long}`))
  return new UsageError(`there is no option ${name}${didYouMean(name, known)}`)
}

function valueAfter(args: readonly string[], i: number, name: string, { summary }: CliOption): string {
  const value = args[i + 1]
  const about = summary === '' ? '' : `. ${name} is: ${summary}`
  if (value === undefined) throw new UsageError(`${name} needs a value${about}`)
  if (value.length > 1 && value.startsWith('-') && !isNegativeNumber(value)) {
    throw new UsageError(
      `${name} needs a value, and ${value} looks like an option; if it is the value: ${name}=${value}${about}`,
    )
  }
  return value
}

function takeWords(line: CommandLine, given: Map<CliOption, unknown>, words: readonly string[]): void {
  const open = line.positional.filter(option => !given.has(option))
  for (const [i, word] of words.entries()) {
    const option = open[i]
    if (option === undefined) {
      throw new UsageError(
        `there is no place for the word ${JSON.stringify(word)}: if it belongs to an option, name that (--help)`,
      )
    }
    set(given, option, placeholder(option), word)
  }
}

/** How a value is called in usage lines. */
export const placeholder = ({ path }: Pick<CliOption, 'path'>): string =>
  path.split('.').at(-1)!.replaceAll('-', '_').toUpperCase()

function set(given: Map<CliOption, unknown>, option: CliOption, name: string, text: string): void {
  const before = given.get(option)
  switch (option.kind) {
    case 'switch':
      given.set(option, toBoolean(name, text))
      break
    case 'number':
      given.set(option, toNumber(name, text))
      break
    case 'list': {
      const parts = text.split(/[,\s]+/).filter(part => part !== '')
      const values = option.numbers ? parts.map(part => toNumber(name, part)) : parts.map(fromHere)
      given.set(option, [...((before as unknown[] | undefined) ?? []), ...values])
      break
    }
    case 'pairs':
      given.set(option, { ...(before as object | undefined), ...toPairs(option, name, text) })
      break
    case 'json':
      given.set(option, toJson(text))
      break
    case 'text':
      given.set(option, toText(option, name, text))
  }
}

function toText(option: CliOption, name: string, text: string): string {
  if (option.choices.length > 0 && !option.choices.includes(text)) {
    throw new UsageError(
      `${name} is one of ${option.choices.join(', ')}, not ${text}${didYouMean(text, option.choices)}`,
    )
  }
  // rpc.py's short name for the discovery subsystem.
  if (text === 'discovery' && /nqn$/.test(option.path)) return 'nqn.2014-08.org.nvmexpress.discovery'
  return fromHere(text)
}

/** `./disk.raw` is a file where the command is typed, and the daemon is elsewhere. */
const fromHere = (text: string): string => (/^\.\.?\//.test(text) ? resolve(text) : text)

function toNumber(name: string, text: string): number {
  const value = /^-?(\d+|0x[0-9a-f]+|\d+\.\d+)$/i.test(text) ? Number(text) : Number.NaN
  if (Number.isNaN(value)) throw new UsageError(`${name} is a number, not ${text}`)
  return value
}

function toBoolean(name: string, text: string): boolean {
  if (text === 'true') return true
  if (text === 'false') return false
  throw new UsageError(`${name} is true or false, not ${text}`)
}

function toPairs({ texts }: CliOption, name: string, text: string): Params {
  if (text.startsWith('{')) {
    const value = toJson(text)
    if (typeof value === 'object') return value as Params
  }
  const equals = text.indexOf('=')
  if (equals < 1) throw new UsageError(`${name} is KEY=VALUE, not ${text}`)
  const value = text.slice(equals + 1)
  return { [text.slice(0, equals)]: texts ? value : toJson(value) }
}

/** JSON where it is JSON, else the text itself. */
function toJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

function build(given: ReadonlyMap<CliOption, unknown>): Params {
  const params: Params = {}
  const computed: [CliOption, number][] = []
  for (const [option, value] of given) {
    if (option.dropped) continue
    if (option.computed === undefined) setPath(params, option.path, value)
    else computed.push([option, value as number])
  }
  for (const [{ computed: word }, value] of computed)
    setPath(params, word!.param, word!.compute(value, params))
  return params
}

function setPath(params: Params, path: string, value: unknown): void {
  const names = path.split('.')
  const last = names.pop()!
  let object = params
  for (const name of names) {
    object[name] ??= {}
    object = object[name] as Params
  }
  object[last] = value
}

function checkRequired(line: CommandLine, given: ReadonlyMap<CliOption, unknown>): void {
  const set = new Set([...given.keys()].map(({ path, computed }) => computed?.param ?? path))
  // Words first, in their order.
  const ordered = [...new Set([...line.positional, ...line.options])]
  const missing = ordered.filter(
    ({ path, required, computed }) => required && !set.has(computed?.param ?? path),
  )
  // A parameter and the word it is computed from are one thing missing, and the word is how people know it.
  const computedParams = new Set(
    missing.flatMap(({ computed }) => (computed === undefined ? [] : [computed.param])),
  )
  const [first, ...others] = missing.filter(({ path }) => !computedParams.has(path))
  if (first === undefined) return
  const names = [first, ...others].map(option => nameOf(line, option)).join(', ')
  if (others.length > 0) throw new UsageError(`${names} are required`)
  const choices = first.choices.length > 0 ? `: one of ${first.choices.join(', ')}` : ''
  throw new UsageError(`${names} is required${choices}`)
}

/** How an option is called in messages: the word's place, or the long flag. */
function nameOf(line: CommandLine, option: CliOption): string {
  if (line.positional.includes(option)) return placeholder(option)
  return `--${longNames(option.on)[0]}`
}
