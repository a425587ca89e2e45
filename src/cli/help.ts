/** Help at each level, made from the method table. */
import { DEFAULT_SOCKET } from '../rpc/address.ts'
import type { Declarations } from '../rpc/method.ts'
import { type Command, commandsOf, commandsOfNoun, NOUNS, nounsOf, singleCommands } from './commands.ts'
import { type CliOption, commandLine } from './options.ts'
import { placeholder } from './parse-args.ts'

/** Commands that are no methods of the daemon. */
export const OWN_COMMANDS: readonly (readonly [usage: string, summary: string])[] = [
  ['serve', 'Runs the daemon in the foreground.'],
  ['demo', 'Shows two gateways, one multipath disk, and what happens when one is killed.'],
  ['doctor', 'Checks whether the daemon runs well on this machine, and names remedies.'],
  ['host validate', 'Checks whether this machine can run guests, and names remedies.'],
  ['vm lab', 'Starts a small Linux guest with virtual NVMe disks, or with two gateways to break.'],
  ['vm console NAME', 'Puts the serial console of a guest on this terminal; Ctrl-] leaves it.'],
  ['rpc METHOD', "Calls a method with rpc.py's flags, or with parameters as JSON."],
  ['save_config', 'Prints the configuration of the running daemon.'],
  ['load_config', 'Applies a configuration read from a file or from standard input.'],
  ['save_subsystem_config', 'Prints the configuration of one subsystem.'],
  ['load_subsystem_config', 'Applies the configuration of one subsystem.'],
  ['completion SHELL', 'Prints a completion script for bash, zsh or fish.'],
  ['help COMMAND', 'Says more about a command, as --help behind it does.'],
]

export const GLOBAL_OPTIONS: readonly (readonly [flags: string, summary: string])[] = [
  ['-r, --rpc-socket ADDRESS', `the daemon's socket or IP:PORT (QPAIR_SOCKET; else ${DEFAULT_SOCKET})`],
  ['--timeout SECONDS', 'how long to wait for an answer (60)'],
  ['--json', 'print JSON, on a terminal too'],
  ['-h, --help', 'help for whatever stands before it'],
  ['--version', "qpair's version"],
]

/** Behind a command that starts a job. */
export const NO_WAIT = '--no-wait'

/** A first column beyond this has its text on the next line, or one long flag would push all text off the screen. */
const FIRST_COLUMN_MAX = 36

function section(title: string, rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return ''
  const width = Math.max(
    0,
    ...rows.map(([left = '']) => left.length).filter(length => length <= FIRST_COLUMN_MAX),
  )
  const lines = rows.map(([left = '', right = '']) => {
    const gap = left.length > width && right !== '' ? `\n${' '.repeat(width + 4)}` : '  '
    return `  ${left.padEnd(width)}${gap}${right}`.trimEnd()
  })
  return `\n${title}\n${lines.join('\n')}\n`
}

export function overview(methods: Declarations): string {
  const nouns = nounsOf(methods).map(noun => [`${noun} VERB`, NOUNS[noun] ?? ''])
  const singles = singleCommands(methods).map(({ words, method }) => [words[0]!, method.summary])
  return [
    'qpair: virtual NVMe disks in user space\n\nUsage: qpair [OPTIONS] COMMAND [ARGUMENTS]\n',
    section('Commands', [...OWN_COMMANDS, ...singles]),
    section("The daemon's objects (qpair NOUN --help lists the verbs)", nouns),
    section('Options, before the command', GLOBAL_OPTIONS),
  ].join('')
}

export function nounHelp(methods: Declarations, noun: string): string {
  const own = OWN_COMMANDS.flatMap(([usage, summary]) =>
    usage.startsWith(`${noun} `) ? [[usage.slice(noun.length + 1), summary]] : [],
  )
  const rows = commandsOfNoun(methods, noun).map(({ words, method }) => [
    words.slice(1).join(' '),
    method.summary,
  ])
  return `Usage: qpair ${noun} VERB [ARGUMENTS]\n${section('Verbs', [...own, ...rows])}\nqpair ${noun} VERB --help says more.\n`
}

export function methodList(methods: Declarations): string {
  const rows = methods.map(({ name, summary }) => [name, summary])
  return `Usage: qpair rpc [-s ADDRESS] [-p PORT] [-t SECONDS] [-r RETRIES] [--dry-run] METHOD [FLAGS | JSON]\n${section('Methods', rows)}`
}

export function commandHelp({ words, method }: Command): string {
  const line = commandLine(method)
  // A word is listed once, among the arguments, unless it has a letter too.
  const options = line.options.filter(
    option => !option.unlisted && (!line.positional.includes(option) || option.on.length > 1),
  )
  const others = commandsOf(method).filter(command => command.words.join(' ') !== words.join(' '))
  return [
    `${method.summary}\n\nUsage: qpair ${usage(words, line.positional, line.options)}\n`,
    section(
      'Arguments',
      line.positional.map(option => [placeholder(option), describe(option)]),
    ),
    section('Options', [
      ...options.map(option => [spellings(option), describe(unlessWord(option, line.options))]),
      ...(method.cli.job === undefined
        ? []
        : [[NO_WAIT, 'print what the daemon answered, and leave the job to itself']]),
    ]),
    section(
      'Errors',
      Object.entries(method.errors).map(([code, when]) => [code, when]),
    ),
    section('Also', [
      ...others.map(command => [`qpair ${command.words.join(' ')}`]),
      [`qpair rpc ${method.name}`],
    ]),
  ].join('')
}

function usage(
  words: readonly string[],
  positional: readonly CliOption[],
  options: readonly CliOption[],
): string {
  const flags = options.filter(
    option => option.required && !positional.includes(option) && !isComputed(option, options),
  )
  return [
    ...words,
    ...(options.length > flags.length ? ['[OPTIONS]'] : []),
    ...flags.map(option => `--${longest(option)} ${placeholder(option)}`),
    ...positional.map(option => (option.required ? placeholder(option) : `[${placeholder(option)}]`)),
  ].join(' ')
}

/** Whether a word of the command line stands for this parameter. */
const isComputed = ({ path }: CliOption, options: readonly CliOption[]): boolean =>
  options.some(({ computed }) => computed?.param === path)

/** A parameter that a word of the command line stands for is not required beside it. */
function unlessWord(option: CliOption, options: readonly CliOption[]): CliOption {
  const word = options.find(({ computed }) => computed?.param === option.path)
  if (word === undefined) return option
  return { ...option, required: false, summary: `${option.summary}, instead of ${placeholder(word)}` }
}

const longest = ({ on }: CliOption): string => on.findLast(name => name.length > 1) ?? on[0]!

/** `-t, --trtype TRTYPE`. */
export function spellings(option: CliOption): string {
  // The opposite of a switch is worth a line where the switch is on by itself.
  const off = option.off.filter(name => option.default === true || !name.startsWith('no-'))
  const names = [...option.on, ...off].sort((a, b) => Math.min(a.length, 2) - Math.min(b.length, 2))
  const dashed = names.map(name => (name.length === 1 ? `-${name}` : `--${name}`)).join(', ')
  switch (option.kind) {
    case 'switch':
      return dashed
    case 'pairs':
      return `${dashed} KEY=VALUE`
    case 'json':
      return `${dashed} JSON`
    case 'number':
      return `${dashed} N`
    default:
      // The option has said the rest.
      return `${dashed} ${placeholder(option).split('_').at(-1)}`
  }
}

/** That a switch is off and a list is empty goes without saying. */
const saysNothing = (value: unknown): boolean =>
  value === undefined || value === false || value === '' || ['[]', '{}'].includes(JSON.stringify(value))

/** As it is typed. */
const plain = (value: unknown): string => (typeof value === 'string' ? value : JSON.stringify(value))

/** What an option means, with what is allowed and what holds without it. */
export function describe(option: CliOption): string {
  const notes = [
    ...(option.choices.length > 0 ? [option.choices.join(', ')] : []),
    ...(option.required ? ['required'] : []),
    ...(saysNothing(option.default) ? [] : [`default ${plain(option.default)}`]),
    ...(option.kind === 'list' || option.kind === 'pairs' ? ['may be repeated'] : []),
  ]
  return notes.length === 0 ? option.summary : `${option.summary} (${notes.join('; ')})`.trimStart()
}
