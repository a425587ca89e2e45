/** Where what is said about the cache of an image is found: librbd, a ceph.conf, options, the cluster. */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { RpcError } from '../../core/errors.ts'
import { whereItBegins } from '../../core/relative-path.ts'
import { librbd } from '../../sys/librbd.ts'
import type { ClusterOptions } from '../cluster.ts'
import { ConfFile, FATAL_REASON } from './conf-file.ts'
import { builtInDefaults, CACHE_OPTIONS, type CacheOption, type CacheValues, parseValue } from './options.ts'
import type { LiveConfig, SomeValues, SourceKind, Value } from './rules.ts'

export interface Defaults {
  readonly values: CacheValues
  readonly from: string
}

/** A file as it is now, and what it says. */
export interface ReadConf {
  /** Undefined when there is none. */
  readonly path: string | undefined
  readonly searched: readonly string[]
  readonly values: SomeValues
  /** Reading it would end this process, for the reason that `problems` has. */
  readonly isFatal: boolean
  /** What a reader of the file may take for a setting and Ceph does not, or why it refuses the file. */
  readonly problems: readonly string[]
}

/** Those of a Ceph release such as `0.80`; without one, of the librbd on this machine. */
export async function readDefaults(release: string | undefined): Promise<Defaults> {
  if (release !== undefined) {
    return { values: builtInDefaults(release), from: `built into librbd of Ceph ${release}` }
  }
  const newest = builtInDefaults('16')
  try {
    const library = librbd()
    // Nothing has been read into it: it has what is built in.
    const handle = library.radosCreate('admin')
    const values = Object.fromEntries(
      CACHE_OPTIONS.map(option => {
        const text = library.radosGet(handle, option)
        return [option, (text === undefined ? undefined : parseValue(option, text)) ?? newest[option]]
      }),
    ) as CacheValues
    await library.radosShutdown(handle)
    return { values, from: `built into librbd ${library.version}` }
  } catch (error) {
    if (!(error instanceof RpcError)) throw error
    return { values: newest, from: 'built into librbd of Ceph 15 and newer (there is none on this machine)' }
  }
}

export interface SearchPlaces {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly home: string
  readonly directory: string
}

const processPlaces = (): SearchPlaces => ({
  env: process.env,
  home: homedir(),
  directory: process.cwd(),
})

/** Where librados looks for a ceph.conf that nobody named, in this order. */
export function searchOf({ env, home, directory }: SearchPlaces): string[] {
  const named = (env['CEPH_CONF'] ?? '').split(/[;,=\s]+/).filter(path => path !== '')
  if (named.length > 0) return named
  return ['/etc/ceph/ceph.conf', join(home, '.ceph/ceph.conf'), join(directory, 'ceph.conf')]
}

/**
 * The file that counts for a client: `path` where somebody named one, else the first that is found. Throws `RpcError`
 * ENOENT for a named one that cannot be read.
 */
export function readConf(
  { user = 'admin', file, searches }: Pick<ClusterOptions, 'user' | 'file' | 'searches'>,
  places = processPlaces(),
): ReadConf {
  const searched = file !== undefined ? [file] : searches ? searchOf(places) : []
  for (const path of searched) {
    const text = readText(path, file !== undefined)
    if (text !== undefined) return { path, searched, ...valuesOf(path, new ConfFile(text), user) }
  }
  const documented = join(places.home, '.ceph/config')
  const misplaced = file === undefined && searches && readText(documented, false) !== undefined
  return {
    path: undefined,
    searched,
    values: {},
    isFatal: false,
    problems: misplaced
      ? [`${documented} is not read, though Ceph's documentation has it: name it ceph.conf`]
      : [],
  }
}

/** Undefined when it is not there. */
function readText(path: string, isNamed: boolean): string | undefined {
  let text: string | undefined
  try {
    text = readFile(path)
  } catch (cause) {
    const { code = '' } = cause as NodeJS.ErrnoException
    // Of the default places librados tries the next one.
    if (!isNamed) return undefined
    throw new RpcError(
      'ENOENT',
      `${path} cannot be read: ${code}; give a ceph.conf that the daemon may read${whereItBegins(path)}`,
      { cause },
    )
  }
  if (text === undefined) {
    throw new RpcError('EINVAL', `${path} is no ceph.conf: give a file, of at most ${CONF_SIZE_MAX} bytes`)
  }
  return text
}

/** Far more than any has. */
const CONF_SIZE_MAX = 1 << 20

/** Undefined for what librados would read until memory is used up, or wait for: /dev/zero, a pipe, a huge file. */
function readFile(path: string): string | undefined {
  const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    if (fstatSync(file).isFIFO()) return undefined
    const bytes = Buffer.alloc(CONF_SIZE_MAX + 1)
    let size = 0
    // What is no file, such as /dev/null, does not tell its size.
    for (let count = -1; count !== 0 && size < bytes.length; size += count) {
      count = readSync(file, bytes, size, bytes.length - size, null)
    }
    return size > CONF_SIZE_MAX ? undefined : bytes.toString('utf8', 0, size)
  } finally {
    closeSync(file)
  }
}

type Contents = Pick<ReadConf, 'values' | 'isFatal' | 'problems'>

function valuesOf(path: string, conf: ConfFile, user: string): Contents {
  const { problem } = conf
  if (problem !== undefined) {
    const isFatal = problem.reason === FATAL_REASON
    const consequence = isFatal
      ? 'librados ends the whole process when it reads that'
      : 'librados refuses the whole file and nothing in it counts'
    return { values: {}, isFatal, problems: [`${path}:${problem.line} ${problem.reason}: ${consequence}`] }
  }
  const sections = [`client.${user}`, 'client', 'global']
  const values: { [option in CacheOption]?: Value } = {}
  const problems: string[] = []
  for (const option of CACHE_OPTIONS) {
    const found = conf.get(option, sections)
    if (found === undefined) continue
    const value = parseValue(option, found.text)
    const from = `${path}:${found.line}`
    if (value === undefined) problems.push(`${from} has ${option} = ${found.text}, which Ceph does not take`)
    else values[option] = { value, kind: 'file', from }
  }
  for (const section of sections) {
    for (const name of conf.names(section)) {
      if (!name.includes('-') || !CACHE_OPTIONS.some(option => option === name.replaceAll('-', '_'))) continue
      const { line } = conf.get(name, [section])!
      problems.push(
        `${path}:${line} has ${name}, which Ceph does not know: write ${name.replaceAll('-', '_')}`,
      )
    }
  }
  return { values, isFatal: false, problems }
}

/** What options say that were given beside the file, and which of them Ceph refuses. */
export function fromOptions(
  options: Readonly<Record<string, string>>,
): Pick<ReadConf, 'values' | 'problems'> {
  const values: { [option in CacheOption]?: Value } = {}
  const problems: string[] = []
  // As Ceph takes names: with blanks for underscores.
  const named = new Map(
    Object.entries(options).map(([name, text]) => [name.trim().replaceAll(/\s+/g, '_'), text]),
  )
  for (const option of CACHE_OPTIONS) {
    const text = named.get(option)
    if (text === undefined) continue
    const value = parseValue(option, text)
    if (value === undefined) problems.push(`the option ${option} = ${text} is one that Ceph does not take`)
    else values[option] = { value, kind: 'option', from: `the option ${option}` }
  }
  return { values, problems }
}

/** What an open image has in force. Reading it asks the cluster. */
export async function readLive(image: number, path: string): Promise<LiveConfig> {
  const found = await librbd().imageConfig(image)
  const stored: { [option in CacheOption]?: Value } = {}
  const config: { [option in CacheOption]?: string } = {}
  for (const option of CACHE_OPTIONS) {
    const entry = found.get(option)
    const value = entry === undefined ? undefined : parseValue(option, entry.value)
    if (entry === undefined || value === undefined) continue
    if (entry.source === 'config') config[option] = value
    else
      stored[option] = { value, kind: entry.source satisfies SourceKind, from: storedBy(entry.source, path) }
  }
  return { stored, config }
}

const storedBy = (kind: 'pool' | 'image', path: string): string =>
  `rbd config ${kind} set ${kind === 'pool' ? path.split('/')[0] : path}`
