/** The command line of a method, derived from its declaration: which words and flags it takes and what they set. */
import { assert } from '../core/assert.ts'
import { type JsonSchema, paramsSchema } from '../rpc/introspection.ts'
import type { AnyMethod, ComputedWord, FlagSpelling, Spelling } from '../rpc/method.ts'

/**
 * `switch` has no value; `list` may be repeated or separated by commas; `pairs` is a repeated KEY=VALUE; `json` is
 * anything that needs more than a word.
 */
export type OptionKind = 'switch' | 'number' | 'text' | 'list' | 'pairs' | 'json'

export interface CliOption {
  /** The parameter, or the dotted path of a member of an object parameter. */
  readonly path: string
  readonly kind: OptionKind
  readonly summary: string
  readonly required: boolean
  readonly choices: readonly string[]
  readonly default: unknown
  /** Elements of a list are numbers. */
  readonly numbers: boolean
  /** Values of pairs are text, also where they look like numbers. */
  readonly texts: boolean
  /** Without dashes; longer than one letter means a long option. */
  readonly on: readonly string[]
  /** What turns a switch off. */
  readonly off: readonly string[]
  readonly computed: ComputedWord<string> | undefined
  /** Accepted for the sake of old command lines, and not sent. */
  readonly dropped: boolean
  /** Accepted, but not named: dropped, or only for the daemon itself. */
  readonly unlisted: boolean
}

export interface CommandLine {
  readonly positional: readonly CliOption[]
  readonly options: readonly CliOption[]
}

type Declared = Pick<AnyMethod<never>, 'params' | 'cli' | 'ignored'>

export function commandLine(method: Declared): CommandLine {
  const schema = paramsSchema(method)
  const options = Object.entries(schema.properties).flatMap(([name, property]) =>
    optionsOf(method, name, property, schema.required.includes(name)),
  )
  for (const [word, computed] of Object.entries(method.cli.computed ?? {})) {
    const target = options.find(({ path }) => path === computed.param)
    const option = makeOption(
      method,
      word,
      { type: 'number', description: computed.summary },
      target?.required === true,
    )
    options.push({ ...option, computed })
  }
  for (const name of method.ignored) {
    const type = isSwitch(method.cli.flags?.[name]) ? 'boolean' : 'string'
    options.push({ ...makeOption(method, name, { type }, false), dropped: true, unlisted: true })
  }
  const distinct = withoutTwins(options)
  const positional = (method.cli.positional ?? []).map(path => {
    const option = distinct.find(each => each.path === path)
    assert(option !== undefined, `${path}, a word of the command line, is a parameter`)
    return option
  })
  return { positional, options: distinct }
}

/** An object parameter is given member by member, so that nobody has to quote JSON. */
function optionsOf(method: Declared, path: string, schema: JsonSchema, required: boolean): CliOption[] {
  if (schema.type !== 'object' || schema.properties === undefined) {
    return [makeOption(method, path, schema, required)]
  }
  return Object.entries(schema.properties).flatMap(([name, member]) =>
    optionsOf(method, `${path}.${name}`, member, required && schema.required?.includes(name) === true),
  )
}

function makeOption({ cli }: Declared, path: string, given: JsonSchema, required: boolean): CliOption {
  const schema = withoutNull(given)
  const kind = kindOf(schema)
  const spelling = cli.flags?.[path] ?? []
  const { on, off } = isSwitch(spelling) ? spelling : { on: spelling, off: [] }
  const offNames = list(off)
  const own = path.split('.').at(-1)!.replaceAll('_', '-')
  return {
    path,
    kind,
    summary: given.description ?? schema.description ?? '',
    required,
    choices: (schema.enum ?? []).map(String),
    default: given.default,
    numbers: kindOf(schema.items ?? {}) === 'number',
    texts: typeof schema.additionalProperties === 'object' && schema.additionalProperties.type === 'string',
    // rpc.py has switches whose plain name turns them off; then that name is not for turning on.
    on: [...list(on), own].filter((name, i, all) => all.indexOf(name) === i && !offNames.includes(name)),
    off: kind === 'switch' ? [...offNames, `no-${own}`] : offNames,
    computed: undefined,
    dropped: false,
    unlisted: schema.internal === true || given.internal === true,
  }
}

const isSwitch = (spelling: FlagSpelling | undefined): spelling is Exclude<FlagSpelling, Spelling> =>
  typeof spelling === 'object' && !Array.isArray(spelling)

const list = (spelling: Spelling = []): readonly string[] =>
  typeof spelling === 'string' ? [spelling] : spelling

/** `host` of two different objects would mean either: then the long path is the name. */
function withoutTwins(options: readonly CliOption[]): CliOption[] {
  return options.map(option => {
    const isTaken = (name: string): boolean =>
      options.some(
        other => other !== option && !option.path.startsWith(`${other.path}.`) && other.on.includes(name),
      )
    if (!option.path.includes('.') || !option.on.some(name => name.length > 1 && isTaken(name))) return option
    const full = option.path.replaceAll(/[._]/g, '-')
    return { ...option, on: [...option.on.filter(name => !isTaken(name)), full] }
  })
}

/** A parameter that may also be null is of the other type: nobody types null. */
function withoutNull(schema: JsonSchema): JsonSchema {
  const others = schema.anyOf?.filter(({ type }) => type !== 'null')
  return others?.length === 1 ? others[0]! : schema
}

function kindOf(schema: JsonSchema): OptionKind {
  switch (schema.type) {
    case 'boolean':
      return 'switch'
    case 'integer':
    case 'number':
      return 'number'
    case 'string':
      return 'text'
    case 'array':
      return ['integer', 'number', 'string'].includes(schema.items?.type ?? '') ? 'list' : 'json'
    case 'object':
      return 'pairs'
    default:
      return schema.anyOf?.some(({ type }) => type === 'object') ? 'pairs' : 'json'
  }
}
