/** `qpair rpc`: command lines of SPDK's `rpc.py` word for word, or any method with its parameters as JSON. */
import { isIP } from 'node:net'
import { didYouMean } from '../rpc/closest.ts'
import { type Declared, findMethod } from './commands.ts'
import { CONFIG_COMMANDS, runConfigCommand } from './config-commands.ts'
import { readDocuments } from './documents.ts'
import { commandHelp, methodList } from './help.ts'
import { findIn, type MethodLists } from './method-lists.ts'
import { commandLine } from './options.ts'
import { renderLikeRpcPy, type Terminal, toJson, writeHelp } from './output.ts'
import { parseArgs, UsageError } from './parse-args.ts'
import { type Connection, withClient } from './session.ts'

interface RpcPyOptions {
  readonly connection: Connection
  readonly dryRun: boolean
  readonly rest: readonly string[]
}

export async function runRpcCommand(
  terminal: Terminal,
  methods: MethodLists,
  defaults: Connection,
  args: readonly string[],
): Promise<void> {
  const { connection, dryRun, rest } = readOptions(defaults, args)
  const [name, ...words] = rest
  if (name === undefined || name === '-h' || name === '--help') {
    writeHelp(terminal, methodList(await methods.all()))
    return
  }
  if (CONFIG_COMMANDS.has(name)) {
    await runConfigCommand(terminal, connection, name, words)
    return
  }
  const method = await findIn(methods, name, table => findMethod(table, name))
  if (method !== undefined && (words.includes('--help') || words[0] === '-h')) {
    writeHelp(terminal, commandHelp({ words: ['rpc', method.name], method }))
    return
  }
  const params = await readParams(methods, method, name, words)
  if (dryRun) {
    terminal.write(`Request:\n${toJson({ method: name, params })}`)
    return
  }
  await withClient(connection, async client => {
    const result = await client.request(name, params)
    terminal.write(method === undefined ? toJson(result) : renderLikeRpcPy(method, result))
  })
}

/** Flags as the method declares them; a method that is not known here may still be sent with JSON. */
async function readParams(
  methods: MethodLists,
  method: Declared | undefined,
  name: string,
  words: readonly string[],
): Promise<Readonly<Record<string, unknown>>> {
  const first = words[0]
  if (words.length === 1 && first!.trimStart().startsWith('{')) return parseJson(first!)
  if (method !== undefined) return readDocuments(method, parseArgs(commandLine(method), words))
  if (words.length === 0) return {}
  const table = await methods.all()
  const hint = didYouMean(
    name,
    table.map(each => each.name),
  )
  const otherwise = 'o send it all the same, give its parameters as JSON'
  throw new UsageError(`qpair has no method ${name}${hint}${hint === '' ? '; t' : ' T'}${otherwise}`)
}

function parseJson(text: string): Record<string, unknown> {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new UsageError(`the parameters are not JSON: ${(cause as Error).message}`, { cause })
  }
}

/** The flags of rpc.py itself, which stand before the method. */
function readOptions(defaults: Connection, args: readonly string[]): RpcPyOptions {
  let { address, timeoutMs, retries } = defaults
  let port = '5260'
  let dryRun = false
  let i = 0
  for (; i < args.length && args[i]!.startsWith('-'); i++) {
    const flag = args[i]!
    if (flag === '-h' || flag === '--help') break
    if (flag === '--dry-run') dryRun = true
    else if (flag === '-v') continue
    else if (['-s', '-p', '-t', '-r', '--verbose'].includes(flag)) {
      i++
      const value = args[i]
      if (value === undefined) throw new UsageError(`${flag} needs a value`)
      if (flag === '-s') address = value
      else if (flag === '-p') port = value
      else if (flag === '-t') timeoutMs = positive(flag, value) * 1000
      else if (flag === '-r') retries = positive(flag, value)
    } else
      throw new UsageError(`${flag} is not an option of qpair rpc; options of a method stand behind its name`)
  }
  if (isIP(address) !== 0) address = isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`
  return { connection: { address, timeoutMs, retries }, dryRun, rest: args.slice(i) }
}

function positive(flag: string, text: string): number {
  const value = Number(text)
  if (!(value >= 0)) throw new UsageError(`${flag} is a number, not ${text}`)
  return value
}
