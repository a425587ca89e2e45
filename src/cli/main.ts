/**
 * The command `qpair`. Exit codes: 0 it is done; 1 the daemon refused or is not there, or a job failed; 2 the command line
 * is wrong; 130 Ctrl-C left a job running.
 */
import { readFileSync } from 'node:fs'
import { text } from 'node:stream/consumers'
import { RpcError } from '../core/errors.ts'
import { DEFAULT_SOCKET } from '../rpc/address.ts'
import { RpcCallError, RpcConnectionError } from '../rpc/client.ts'
import { closest, didYouMean, question } from '../rpc/closest.ts'
import type { Declarations } from '../rpc/method.ts'
import { commandsOfNoun, findTyped, nounsOf, singleCommands, type Typed } from './commands.ts'
import { CONFIG_COMMANDS, runConfigCommand } from './config-commands.ts'
import { readDocuments } from './documents.ts'
import { followJob } from './follow-job.ts'
import { commandHelp, NO_WAIT, nounHelp, OWN_COMMANDS, overview } from './help.ts'
import { findIn, type MethodLists, methodLists } from './method-lists.ts'
import { commandLine } from './options.ts'
import { paint, render, type Terminal, toJson, writeHelp } from './output.ts'
import { parseArgs, UsageError } from './parse-args.ts'
import { runRpcCommand } from './rpc-command.ts'
import { type Connection, withClient } from './session.ts'

interface Invocation {
  readonly connection: Connection
  /** Whether the address was said on the command line. */
  readonly addressGiven: boolean
  readonly json: boolean
  readonly help: boolean
  readonly version: boolean
  readonly rest: readonly string[]
}

/** Runs one command line and returns the exit code. */
export async function main(
  args: readonly string[],
  terminal: Terminal = processTerminal(),
  methods: MethodLists = methodLists,
): Promise<number> {
  try {
    return await run(terminal, methods, readGlobals(terminal, args))
  } catch (error) {
    if (error instanceof UsageError) {
      terminal.writeError(`${paint(terminal, 'red', 'qpair:')} ${error.message}\n`)
      return 2
    }
    if (error instanceof RpcCallError || error instanceof RpcConnectionError || error instanceof RpcError) {
      terminal.writeError(`${paint(terminal, 'red', 'qpair:')} ${error.message}\n`)
      return 1
    }
    throw error
  }
}

/** Options before the command. Those behind it are the command's own, besides --json, --rpc-socket and --help. */
function readGlobals(terminal: Terminal, args: readonly string[]): Invocation {
  let given: string | undefined
  let timeoutMs = 60_000
  let [json, help, version] = [false, false, false]
  let i = 0
  for (; i < args.length && args[i]!.startsWith('-'); i++) {
    const [flag, joined] = splitFlag(args[i]!)
    if (flag === '--json') json = true
    else if (flag === '-h' || flag === '--help') help = true
    else if (flag === '--version') version = true
    else if (flag === '-r' || flag === '--rpc-socket' || flag === '--timeout') {
      if (joined === undefined) i++
      const value = joined ?? args[i]
      if (value === undefined) throw new UsageError(`${flag} needs a value`)
      if (flag !== '--timeout') given = value
      else if (Number(value) > 0) timeoutMs = Number(value) * 1000
      else throw new UsageError(`--timeout is a number of seconds, not ${value}`)
    } else throw new UsageError(`there is no option ${flag} before the command; see qpair --help`)
  }
  const address = given ?? (terminal.env['QPAIR_SOCKET'] || DEFAULT_SOCKET)
  const connection = { address, timeoutMs, retries: 0 }
  return { connection, addressGiven: given !== undefined, json, help, version, rest: args.slice(i) }
}

function splitFlag(arg: string): [flag: string, value: string | undefined] {
  const equals = arg.startsWith('--') ? arg.indexOf('=') : -1
  return equals === -1 ? [arg, undefined] : [arg.slice(0, equals), arg.slice(equals + 1)]
}

async function run(terminal: Terminal, methods: MethodLists, invocation: Invocation): Promise<number> {
  const { connection, rest } = invocation
  const [first, ...args] = rest
  if (invocation.version) {
    terminal.write(`${packageVersion()}\n`)
    return 0
  }
  if (first === 'help' && args.length > 0)
    return run(terminal, methods, { ...invocation, help: true, rest: args })
  if (first === undefined || first === 'help') {
    writeHelp(terminal, overview(await methods.all()))
    return first === undefined && !invocation.help ? 2 : 0
  }
  const own = invocation.help ? [...args, '--help'] : args
  switch (first) {
    case 'serve':
      // `qpair -r SOCKET serve` and `qpair serve -r SOCKET` mean the same.
      return (await import('../app/serve.ts')).serve(
        invocation.addressGiven ? ['-r', connection.address, ...own] : own,
      )
    case 'demo':
      return (await import('../app/demo.ts')).demo(own)
    case 'doctor':
      return (await import('../host/doctor.ts')).doctor(own)
    case 'host':
      // The other commands of this noun are methods of the daemon; this one looks at the machine, daemon or not.
      if (args[0] !== 'validate') break
      return (await import('../host/validate.ts')).hostValidate([
        ...own.slice(1),
        ...(invocation.json ? ['--json'] : []),
      ])
    case 'vm':
      // As above: these two have the terminal to themselves.
      if (args[0] === 'lab') return (await import('../vm/lab/lab.ts')).vmLab(own.slice(1))
      if (args[0] !== 'console') break
      return (await import('./vm-console.ts')).runVmConsole(terminal, connection, own.slice(1))
    case 'rpc':
      await runRpcCommand(terminal, methods, connection, own)
      return 0
    case 'completion': {
      const { COMPLETION_HELP, completionScript } = await import('./completion.ts')
      terminal.write(
        own.includes('--help') || own.includes('-h') ? COMPLETION_HELP : completionScript(args[0]),
      )
      return 0
    }
    case 'complete': {
      // Called by the completion scripts: `qpair complete -- WORD…`.
      const { complete } = await import('./completion.ts')
      const words = await complete(methods, args.slice(1))
      terminal.write(words.map(word => `${word}\n`).join(''))
      return 0
    }
  }
  const config = first.replaceAll('-', '_')
  if (CONFIG_COMMANDS.has(config)) await runConfigCommand(terminal, connection, config, own)
  else return runMethodCommand(terminal, methods, invocation, own)
  return 0
}

async function runMethodCommand(
  terminal: Terminal,
  methods: MethodLists,
  invocation: Invocation,
  args: readonly string[],
): Promise<number> {
  const noun = invocation.rest[0]!
  const [verb] = args
  const typed = await findIn(methods, [noun, ...args].join('-'), table => findTyped(table, noun, args))
  if (typed === undefined) {
    const table = await methods.all()
    const isNoun = nounsOf(table).includes(noun)
    if (isNoun && (verb === undefined || verb.startsWith('-'))) writeHelp(terminal, nounHelp(table, noun))
    else throw unknownCommand(table, noun, isNoun ? verb : undefined)
    return 0
  }
  const wantsHelp = args.includes('--help') || args.includes('-h')
  if (!wantsHelp) return runMethod(terminal, invocation, typed)
  writeHelp(terminal, commandHelp(typed.command))
  return 0
}

async function runMethod(
  terminal: Terminal,
  invocation: Invocation,
  { command: { method }, behind }: Typed,
): Promise<number> {
  const { connection, json, rest } = takeOutputFlags(invocation, behind)
  const { job } = method.cli
  const words = job === undefined ? rest : rest.filter(word => word !== NO_WAIT)
  const params = readDocuments(method, parseArgs(commandLine(method), words))
  return withClient(connection, async client => {
    const result = await client.request(method.name, params)
    // The result came from this method, whose declaration says where the number is, if there is one.
    const id = words.length < rest.length ? undefined : job?.(result as never)
    if (id === undefined) {
      terminal.write(json ? toJson(result) : render(terminal, method, result, params))
      return 0
    }
    const { code, ended } = await followJob(terminal, client, id, !json && terminal.isTerminal)
    if (json && ended !== undefined) terminal.write(toJson(ended))
    return code
  })
}

/** --json and --rpc-socket may also stand behind the command. */
function takeOutputFlags(
  { connection, json }: Invocation,
  args: readonly string[],
): Pick<Invocation, 'connection' | 'json' | 'rest'> {
  const rest: string[] = []
  let { address } = connection
  let wantsJson = json
  for (let i = 0; i < args.length; i++) {
    const [flag, joined] = splitFlag(args[i]!)
    if (flag === '--json') wantsJson = true
    else if (flag === '--rpc-socket') {
      if (joined === undefined) i++
      const value = joined ?? args[i]
      if (value === undefined) throw new UsageError('--rpc-socket needs a value')
      address = value
    } else rest.push(args[i]!)
  }
  return { connection: { ...connection, address }, json: wantsJson, rest }
}

function unknownCommand(table: Declarations, noun: string, verb: string | undefined): UsageError {
  if (verb === undefined) {
    const nouns = [
      ...OWN_COMMANDS.map(([usage]) => usage.split(' ')[0]!),
      ...singleCommands(table).map(({ words }) => words[0]!),
      ...nounsOf(table),
    ]
    const isMethod = table.some(({ name }) => name === noun)
    const hint = isMethod ? `; a method is called with: qpair rpc ${noun}` : meantCommand(table, noun, nouns)
    return new UsageError(`there is no command ${noun}${hint}${see('qpair --help', hint)}`)
  }
  const verbs = commandsOfNoun(table, noun).map(({ words }) => words[1]!)
  // `snapshot` of volumes is the beginning of several.
  const begun = verbs.filter(each => each.startsWith(`${verb}-`)).map(each => each.slice(verb.length + 1))
  if (begun.length > 0) {
    return new UsageError(
      `${noun} ${verb} has another word behind it: ${begun.join(', ')}; see qpair ${noun} --help`,
    )
  }
  const hint = didYouMean(verb, verbs)
  return new UsageError(`there is no command ${noun} ${verb}${hint}${see(`qpair ${noun} --help`, hint)}`)
}

/** The command that somebody meant who typed `vol`, or `vol-list` as virsh has it; ready to be put behind a message. */
function meantCommand(table: Declarations, typed: string, names: readonly string[]): string {
  const [head, ...tail] = typed.split('-')
  const noun = tail.length > 0 ? meant(head!, nounsOf(table)) : undefined
  if (noun === undefined) return question(meant(typed, names))
  const verbs = commandsOfNoun(table, noun).map(({ words }) => words[1]!)
  const verb = meant(tail.join('-'), verbs)
  return question(verb && `${noun} ${verb}`)
}

/** The nearest name, or the only one that begins so. */
function meant(typed: string, names: readonly string[]): string | undefined {
  const [begun, ...others] = names.filter(name => name.startsWith(typed))
  return closest(typed, names) ?? (others.length === 0 ? begun : undefined)
}

/** Where to read on, behind a hint that may have been a question. */
const see = (where: string, hint: string): string => (hint.endsWith('?') ? ` See ${where}` : `; see ${where}`)

function packageVersion(): string {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  return version
}

function processTerminal(): Terminal {
  return {
    write: output => void process.stdout.write(output),
    writeError: output => void process.stderr.write(output),
    isTerminal: process.stdout.isTTY === true,
    columns: process.stdout.columns,
    env: process.env,
    readStdin: () => text(process.stdin),
    onInterrupt: tell => {
      process.once('SIGINT', tell)
      return () => void process.off('SIGINT', tell)
    },
  }
}
