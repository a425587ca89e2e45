/**
 * Saving and loading configurations as SPDK's clients do it: the client asks for each subsystem's part and puts the
 * file together; to load, it sends every call of the file that the daemon takes in its present state, starts the
 * framework where it waits for that, and goes on with the rest.
 */
import { existsSync, readFileSync } from 'node:fs'
import type { RpcClient } from '../rpc/client.ts'
import { UsageError } from './parse-args.ts'

/** Any daemon, SPDK's included: these calls are all that is asked of it. */
export type AnyClient = Pick<RpcClient<[]>, 'request'>

interface Call {
  readonly method: string
  readonly params?: Record<string, unknown>
}

/** An entry may be a batch: calls that belong together. */
type Entry = Call | readonly Call[]

interface Subsystem {
  readonly subsystem: string
  readonly config: readonly Entry[] | null
}

/** `names`: only these subsystems and what they depend on. */
export async function saveConfig(
  client: AnyClient,
  names?: readonly string[],
): Promise<{ subsystems: Subsystem[] }> {
  const all = (await client.request('framework_get_subsystems')) as {
    subsystem: string
    depends_on: string[]
  }[]
  const wanted = new Set<string>()
  const want = (name: string): void => {
    const found = all.find(({ subsystem }) => subsystem === name)
    if (found === undefined) {
      throw new UsageError(
        `there is no subsystem ${name}; there are ${all.map(each => each.subsystem).join(', ')}`,
      )
    }
    if (wanted.has(name)) return
    wanted.add(name)
    for (const dependency of found.depends_on) want(dependency)
  }
  for (const name of names ?? all.map(({ subsystem }) => subsystem)) want(name)
  const subsystems: Subsystem[] = []
  for (const { subsystem } of all) {
    if (wanted.has(subsystem)) subsystems.push(await saveSubsystemConfig(client, subsystem))
  }
  return { subsystems }
}

export async function saveSubsystemConfig(client: AnyClient, name: string): Promise<Subsystem> {
  const config = (await client.request('framework_get_config', { name })) as Subsystem['config']
  return { subsystem: name, config }
}

/** Sends what a configuration file says; returns how many calls the daemon's state did not allow any more. */
export async function loadConfig(client: AnyClient, file: object, includeAliases = false): Promise<number> {
  const { subsystems } = file as { subsystems?: Subsystem[] }
  if (!Array.isArray(subsystems)) throw new UsageError('the configuration has no array "subsystems"')
  let open = subsystems.flatMap(({ config }) => config ?? [])
  const aliases = includeAliases ? { include_aliases: true } : {}
  const known = await methodNames(client, aliases)
  checkKnown(open, known)
  if (open.length === 0) {
    if (known.has('framework_start_init')) await startIfWaiting(client)
    return 0
  }
  for (;;) {
    const callable = await methodNames(client, { current: true, ...aliases })
    const left = await sendCallable(client, open, callable)
    const started = callable.has('framework_start_init')
    if (started) await client.request('framework_start_init')
    if (left.length === 0 || (left.length === open.length && !started)) return left.length
    open = left
  }
}

/** The same for one subsystem, in the state that the daemon is in. */
export async function loadSubsystemConfig(client: AnyClient, file: object): Promise<number> {
  const { config } = file as Partial<Subsystem>
  if (config === undefined) throw new UsageError('the configuration has no array "config"')
  const open = config ?? []
  checkKnown(open, await methodNames(client, {}))
  return (await sendCallable(client, open, await methodNames(client, { current: true }))).length
}

/** Reads a configuration: a file, an argument that is JSON itself, or standard input. */
export async function readConfig(
  source: string | undefined,
  readStdin: () => Promise<string>,
): Promise<object> {
  return parse(await readText(source, readStdin))
}

async function readText(source: string | undefined, readStdin: () => Promise<string>): Promise<string> {
  if (source === undefined || source === '-') return readStdin()
  if (existsSync(source)) return readFileSync(source, 'utf8')
  if (source.trimStart().startsWith('{')) return source
  throw new UsageError(`there is no file ${source}`)
}

/** An empty configuration still starts a daemon that waits; one that runs already is as it should be. */
async function startIfWaiting(client: AnyClient): Promise<void> {
  const callable = await methodNames(client, { current: true })
  if (callable.has('framework_start_init')) await client.request('framework_start_init')
}

async function methodNames(client: AnyClient, params: Record<string, boolean>): Promise<Set<string>> {
  return new Set((await client.request('rpc_get_methods', params)) as string[])
}

const callsOf = (entry: Entry): readonly Call[] => (Array.isArray(entry) ? entry : [entry as Call])

/** Nothing is sent when any call of the file is unknown: half a configuration is worse than none. */
function checkKnown(entries: readonly Entry[], known: ReadonlySet<string>): void {
  const unknown = entries.flatMap(callsOf).find(call => !known.has(call?.method))
  if (unknown === undefined) return
  throw new UsageError(
    `the configuration calls ${JSON.stringify(unknown?.method)}, which the daemon does not know`,
  )
}

/** Sends what may be called now, in the file's order, and returns the rest. */
async function sendCallable(
  client: AnyClient,
  entries: readonly Entry[],
  callable: ReadonlySet<string>,
): Promise<Entry[]> {
  const left: Entry[] = []
  for (const entry of entries) {
    const calls = callsOf(entry)
    if (!calls.every(({ method }) => callable.has(method))) left.push(entry)
    else for (const { method, params } of calls) await client.request(method, params)
  }
  return left
}

function parse(text: string): object {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null) return value
  } catch (cause) {
    throw new UsageError(`the configuration is not JSON: ${(cause as Error).message}`, { cause })
  }
  throw new UsageError('the configuration is not a JSON object')
}
