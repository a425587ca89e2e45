/**
 * The names that QEMU has for RBD images, read as QEMU reads them:
 *
 *   rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][:KEY=VALUE…]     a backslash takes the next character as it is
 *   json:{"driver":"rbd","pool":…,"image":…}               the same as options of QEMU's block layer, nested or dotted
 *
 * Of the keys, `id` is the user and `conf` the file; every other one is an option of Ceph's.
 */
import { RpcError } from '../core/errors.ts'

export interface RbdName {
  readonly pool: string
  /** Empty for the pool's default one. */
  readonly namespace: string
  readonly image: string
  /** Read only. */
  readonly snapshot: string | undefined
  /** Without `client.`. */
  readonly user: string | undefined
  /** A ceph.conf; Ceph searches for one when absent. */
  readonly file: string | undefined
  /** Ceph's options, by their names with underscores. */
  readonly options: Readonly<Record<string, string>>
}

/** Throws `RpcError` INVALID_PARAMS that names the part that is wrong. No message holds the value of an option. */
export function parseRbdName(name: string): RbdName {
  if (name.startsWith('rbd:')) return parseColons(name.slice(4))
  if (name.startsWith('json:')) return parseJson(name.slice(5))
  throw bad('begins neither with "rbd:" nor with "json:": write rbd:POOL/IMAGE')
}

function bad(what: string): RpcError {
  return new RpcError('INVALID_PARAMS', `the name of the image ${what}`)
}

/** What a name needs and what it may have, checked for both forms. */
function checked(parts: Partial<RbdName>): RbdName {
  const { pool, image, snapshot, namespace = '', user, file, options = {} } = parts
  if (pool === undefined || pool === '') throw bad('has no pool: write rbd:POOL/IMAGE')
  if (image === undefined || image === '') throw bad(`has no image behind the pool ${pool}`)
  if (snapshot === '') throw bad(`has no snapshot behind the "@" of ${pool}/${image}`)
  return { pool, namespace, image, snapshot, user, file, options }
}

function parseColons(text: string): RbdName {
  const [pool, path] = cut(text, '/')
  // QEMU would look for a pool of that name. It is the image that was forgotten, before options with a path in them.
  const isOption = find(pool, ':') >= 0 && find(pool, '=') >= 0
  if (path === undefined || isOption) throw bad('has no "/" between pool and image: write rbd:POOL/IMAGE')
  // As in QEMU the first "@" is the snapshot's, wherever it stands: one in an option is to be escaped.
  const isSnapshot = find(path, '@') >= 0
  const [beforeAt, behindAt] = isSnapshot ? cut(path, '@') : [undefined, path]
  const [beforeColon, rest] = cut(behindAt!, ':')
  const [first, second] = cut(beforeAt ?? beforeColon, '/')
  return checked({
    pool: unescaped(pool),
    namespace: second === undefined ? '' : unescaped(first),
    image: unescaped(second ?? first),
    snapshot: isSnapshot ? unescaped(beforeColon) : undefined,
    ...parsePairs(rest),
  })
}

function parsePairs(text: string | undefined): Pick<RbdName, 'user' | 'file' | 'options'> {
  const pairs = new Map<string, string>()
  for (let rest = text; rest !== undefined; ) {
    const [key, behind] = cut(rest, '=')
    if (behind === undefined) throw bad(`has the option ${unescaped(key)} without "=" and a value`)
    const [value, next] = cut(behind, ':')
    pairs.set(optionName(unescaped(key)), unescaped(value))
    rest = next
  }
  const user = pairs.get('id')
  const file = pairs.get('conf')
  pairs.delete('id')
  pairs.delete('conf')
  return { user, file, options: Object.fromEntries(pairs) }
}

/** Ceph takes spaces and dashes for underscores. */
const optionName = (key: string): string => key.replaceAll(/[ -]/g, '_')

/** Where the first such character stands that is not escaped, or -1. */
function find(text: string, character: string): number {
  for (let i = 0; i < text.length; i++) {
    if (text[i] === character) return i
    if (text[i] === '\\') i++
  }
  return -1
}

/** What is before the first such character and what is behind it; undefined when there is none. */
function cut(text: string, character: string): readonly [string, string | undefined] {
  const at = find(text, character)
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)]
}

const unescaped = (text: string): string => text.replaceAll(/\\(.)/gs, '$1')

type Json = Record<string, unknown>

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function parseJson(text: string): RbdName {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (cause) {
    // The parser's own words may repeat a key.
    throw new RpcError('INVALID_PARAMS', 'the name of the image is not JSON behind "json:"', { cause })
  }
  if (!isObject(parsed)) throw bad('has no object behind "json:"')
  const node = flatten(parsed)
  // A format that changes nothing may lie above it.
  if (node['driver'] === undefined || node['driver'] === 'raw') {
    const below = Object.entries(node).filter(([key]) => key.startsWith('file.'))
    if (below.length > 0)
      return parseNode(Object.fromEntries(below.map(([key, value]) => [key.slice(5), value])))
  }
  return parseNode(node)
}

/** `{"server":[{"host":"a"}]}` and `{"server.0.host":"a"}` mean the same: both become the second. */
function flatten(node: Json, prefix = ''): Record<string, string> {
  const flat: Record<string, string> = {}
  for (const [key, value] of Object.entries(node)) {
    if (isObject(value) || Array.isArray(value)) {
      Object.assign(flat, flatten(value as Json, `${prefix}${key}.`))
    } else if (value !== null) flat[prefix + key] = String(value)
  }
  return flat
}

/** Members of QEMU's node, of which one says nothing about the image. */
const IGNORED = /^(node-name|read-only|auto-read-only|discard|detect-zeroes|force-share|cache\..*)$/

function parseNode(node: Record<string, string>): RbdName {
  const { driver, filename, ...rest } = node
  if (filename !== undefined && (driver === undefined || driver === 'rbd')) {
    if (!filename.startsWith('rbd:')) throw bad('has a filename that does not begin with "rbd:"')
    return parseRbdName(filename)
  }
  if (driver !== 'rbd') throw bad(`has the driver ${driver ?? '(none)'}, not rbd`)
  const parts: { -readonly [member in keyof RbdName]?: RbdName[member] } = {}
  const lists = new Map<string, string>()
  for (const [key, value] of Object.entries(rest)) {
    if (key === 'pool' || key === 'namespace' || key === 'image' || key === 'snapshot' || key === 'user') {
      parts[key] = value
    } else if (key === 'conf') parts.file = value
    else if (/^(server\.\d+\.(host|port)|auth-client-required\.\d+)$/.test(key)) lists.set(key, value)
    else if (key === 'key-secret') {
      throw bad(`has a key-secret (${value}), which only that QEMU knows: write rbd:…:key=… or use a keyring`)
    } else if (!IGNORED.test(key)) throw bad(`has ${key}, which is not supported here`)
  }
  return checked({ ...parts, options: { ...addresses(lists), ...methodsOf(lists) } })
}

function addresses(lists: ReadonlyMap<string, string>): Record<string, string> {
  const hosts: string[] = []
  for (let i = 0; lists.has(`server.${i}.host`); i++) {
    const host = lists.get(`server.${i}.host`)!
    const port = lists.get(`server.${i}.port`)
    if (port === undefined) throw bad(`has the server ${host} without a port`)
    hosts.push(host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`)
  }
  return hosts.length === 0 ? {} : { mon_host: hosts.join(';') }
}

function methodsOf(lists: ReadonlyMap<string, string>): Record<string, string> {
  const methods = [...lists].flatMap(([key, value]) => (key.startsWith('auth-') ? [value] : []))
  return methods.length === 0 ? {} : { auth_client_required: methods.join(';') }
}
