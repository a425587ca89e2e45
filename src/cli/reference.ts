/** The reference pages of methods and commands, rendered from the method table. */
import { RpcError } from '../core/errors.ts'
import { type JsonSchema, jsonSchema, paramsSchema } from '../rpc/introspection.ts'
import type { AnyMethod, Declarations } from '../rpc/method.ts'
import { commandsOf, commandsOfNoun, NOUNS, nounsOf } from './commands.ts'
import { commandHelp, GLOBAL_OPTIONS, OWN_COMMANDS } from './help.ts'

type Declared = AnyMethod<never>

const NOTE = '<!-- Made from the method table by `npm run docs`. Do not edit. -->\n'

const STATES = {
  startup: 'before `framework_start_init`',
  runtime: 'after `framework_start_init`',
  any: 'at any time',
}

/** docs/reference/rpc.md */
export function renderRpcReference(methods: Declarations): string {
  return [
    NOTE,
    '# JSON-RPC methods\n',
    `The daemon speaks JSON-RPC 2.0 as SPDK does: over a Unix socket (\`/var/tmp/spdk.sock\`) or a TCP port, texts one after
another without framing, parameters by name, batches allowed. A request has at most 256 KiB, 64 levels of nesting, and an
id of at most 128 characters. Answers come in the order of the requests of their connection. \`rpc.discover\` returns this
page as an OpenRPC document.\n`,
    `Parameters that a method does not know are refused. A null counts as absent. Numbers are JSON numbers; \`uint64\` goes up
to 2^53 − 1. Every method answers −32602 to bad parameters, with a message that says which and why; −1 when called in the
wrong state; −32601 when it does not exist. Other codes are negative errno numbers. What changes the saved configuration
is saved before it is answered.\n`,
    ...methods.map(({ name }) => `- [\`${name}\`](#${anchor(name)})`),
    '',
    ...methods.map(renderMethod),
  ].join('\n')
}

const anchor = (name: string): string => name.replaceAll('.', '')

function renderMethod(method: Declared): string {
  const schema = paramsSchema(method)
  const params = Object.entries(schema.properties).flatMap(([name, property]) =>
    paramRows(name, property, schema.required.includes(name)),
  )
  const notes = [
    `Called ${STATES[method.state]}.`,
    ...(method.saves ? ['Saved.'] : []),
    ...(method.relaxed ? ['Unknown parameters are ignored.'] : []),
    ...(method.aliases.length > 0 ? [`Also called ${code(method.aliases)}.`] : []),
    ...(method.ignored.length > 0 ? [`Accepted and ignored: ${code(method.ignored)}.`] : []),
  ]
  const errors = Object.entries(method.errors).map(([name, when]) => {
    // Every key of `errors` is a code that RpcError takes.
    const { number } = new RpcError(name as keyof typeof method.errors, '')
    return `| ${number} ${name} | ${when} |`
  })
  return [
    `## ${method.name}\n`,
    `${method.summary}\n`,
    `${notes.join(' ')}\n`,
    table('| parameter | type | | default |', params),
    `Result: ${typeOf(jsonSchema(method.result, 'output'))}\n`,
    table('| error | when |', errors),
  ].join('\n')
}

function table(head: string, rows: readonly string[]): string {
  if (rows.length === 0) return ''
  return [head, head.replaceAll(/[^|]+/g, '---'), ...rows, ''].join('\n')
}

function paramRows(path: string, schema: JsonSchema, required: boolean): string[] {
  const standard = schema.default === undefined ? '' : `\`${JSON.stringify(schema.default)}\``
  const name = required ? `**\`${path}\`**` : `\`${path}\``
  const row = `| ${name} | ${typeOf(schema)} | ${cell(schema.description ?? '')} | ${standard} |`
  const members = Object.entries(schema.properties ?? {}).flatMap(([member, property]) =>
    paramRows(`${path}.${member}`, property, schema.required?.includes(member) === true),
  )
  return [row, ...members]
}

const cell = (text: string): string => text.replaceAll('|', '\\|')
const code = (names: readonly string[]): string => names.map(name => `\`${name}\``).join(', ')

/** A type in a few words, members included: `array of {name, size?}`. */
function typeOf(schema: JsonSchema): string {
  if (schema.const !== undefined) return `\`${JSON.stringify(schema.const)}\``
  if (schema.enum !== undefined) return schema.enum.map(value => `\`${value}\``).join(', ')
  if (schema.anyOf !== undefined) return schema.anyOf.map(typeOf).join(' or ')
  if (schema.type === 'array')
    return `array of ${schema.items === undefined ? 'values' : typeOf(schema.items)}`
  if (schema.type === 'integer') return integerName(schema)
  if (schema.type === 'object' && schema.properties !== undefined) {
    const members = Object.entries(schema.properties).map(([name, member]) => {
      const inner = hasMembers(member) ? `: ${typeOf(member)}` : ''
      return `${name}${schema.required?.includes(name) ? '' : '?'}${inner}`
    })
    return `{${members.join(', ')}}`
  }
  if (schema.type === 'object' && typeof schema.additionalProperties === 'object') {
    return `object of ${typeOf(schema.additionalProperties)}`
  }
  return schema.type ?? 'any value'
}

/** Whether a member is worth opening: an object with known members, or an array of such. */
const hasMembers = (schema: JsonSchema): boolean =>
  schema.properties !== undefined || (schema.items !== undefined && hasMembers(schema.items))

/** SPDK's name of the range, or the range. */
function integerName({ minimum = 0, maximum = 0 }: JsonSchema): string {
  const names: Readonly<Record<string, string>> = {
    [`0 ${2 ** 8 - 1}`]: 'uint8',
    [`0 ${2 ** 16 - 1}`]: 'uint16',
    [`0 ${2 ** 32 - 1}`]: 'uint32',
    [`0 ${Number.MAX_SAFE_INTEGER}`]: 'uint64',
    [`${-(2 ** 31)} ${2 ** 31 - 1}`]: 'int32',
    [`${-Number.MAX_SAFE_INTEGER} ${Number.MAX_SAFE_INTEGER}`]: 'integer',
  }
  const name = names[`${minimum} ${maximum}`]
  if (name !== undefined) return name
  return maximum === Number.MAX_SAFE_INTEGER ? `integer from ${minimum}` : `integer, ${minimum} to ${maximum}`
}

/** docs/reference/cli.md */
export function renderCliReference(methods: Declarations): string {
  const own = OWN_COMMANDS.map(([usage, summary]) => `| \`qpair ${usage}\` | ${summary} |`)
  const options = GLOBAL_OPTIONS.map(([flags, summary]) => `| \`${flags}\` | ${summary} |`)
  const nouns = nounsOf(methods)
  // Each method is described once: under its shortest command, or among those without a noun.
  const singles = methods.map(method => commandsOf(method)[0]).filter(command => command?.words.length === 1)
  return [
    NOTE,
    '# Commands\n',
    `\`qpair NOUN VERB\` calls the method of that name: \`bdev_get_bdevs\` is \`qpair bdev get-bdevs\`, or \`qpair bdev list\`.
\`qpair rpc METHOD\` takes command lines of SPDK's \`rpc.py\` as they are, or parameters as JSON. On a terminal results are
tables; programs get JSON, and so does everybody with \`--json\`. Exit codes: 0 it is done, 1 the daemon refused or is not
there, or the job failed, 2 the command line is wrong, 130 Ctrl-C left a job running.\n`,
    table('| command | |', own),
    table('| option, before the command | |', options),
    '## Without a noun\n',
    ...singles.map(command => page(command!)),
    ...nouns.flatMap(noun => [
      `## ${noun}: ${NOUNS[noun] ?? ''}\n`,
      ...commandsOfNoun(methods, noun)
        .filter(({ words, method }) => commandsOf(method)[0]!.words.join(' ') === words.join(' '))
        .map(page),
    ]),
  ].join('\n')
}

const page = (command: Parameters<typeof commandHelp>[0]): string =>
  `### qpair ${command.words.join(' ')}\n\n\`\`\`text\n${commandHelp(command)}\`\`\`\n`
