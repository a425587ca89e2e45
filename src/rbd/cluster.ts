/** A connection to a Ceph cluster: one client of it, until Ceph shuts that out and another takes its place. */
import { errnoNumber, type RpcCode, RpcError, SysError } from '../core/errors.ts'
import { type Librbd, librbd } from '../sys/librbd.ts'
import { readConf } from './cache/sources.ts'

/** How a cluster is reached. What is absent comes from Ceph's own defaults. */
export interface ClusterOptions {
  /** Without `client.`; `admin` by default. */
  readonly user: string | undefined
  /** Beside the file, and stronger. */
  readonly options: Readonly<Record<string, string>>
  /** A ceph.conf. */
  readonly file: string | undefined
  /**
   * Without a file: whether Ceph looks for one ($CEPH_CONF, /etc/ceph/ceph.conf, ~/.ceph/ceph.conf, ./ceph.conf). That
   * there is none is no error.
   */
  readonly searches: boolean
  readonly keyFile: string | undefined
  /** The user's key, base64, where no file may have it: it is neither told nor saved. */
  readonly key?: string | undefined
}

export class Cluster {
  readonly fsid: string
  /** Images that are open, and whoever else has something open under its handle. */
  users = 0
  /**
   * A gateway group decides when another client takes this one's place: its members know each other by their clients, and
   * nothing may be written by one that they do not know.
   */
  isManaged = false
  /** For messages. */
  readonly #what: string
  readonly #options: ClusterOptions
  #handle: number
  /** Clients that were shut out, while images are still open under them. */
  readonly #retired: number[] = []
  #turn: Promise<unknown> = Promise.resolve()

  private constructor(what: string, options: ClusterOptions, handle: number) {
    this.#what = what
    this.#options = options
    this.#handle = handle
    this.fsid = librbd().radosFsid(handle)
  }

  /** `what`: for messages. Throws `RpcError` with what Ceph says. */
  static async connect(what: string, options: ClusterOptions): Promise<Cluster> {
    return new Cluster(what, options, await connect(what, options))
  }

  /** Without `client.`. */
  get user(): string {
    return this.#options.user ?? 'admin'
  }

  /** librados's. */
  get handle(): number {
    return this.#handle
  }

  /** Does something while nobody else does something that a change of the client would disturb. */
  alone<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work)
    this.#turn = turn.catch(() => {})
    return turn
  }

  /** Counts a user, who is to use `handle` only after that: a change of the client is not in progress then. */
  acquire(): Promise<Cluster> {
    return this.alone(async () => {
      this.users++
      return this
    })
  }

  /**
   * Connects as another client and has `move` open under it what was open under this one. Throws what `connect` and `move`
   * throw; what was moved before stays with the new client, and `move` is to be tried again.
   */
  async changeClient(move: (count: () => void) => Promise<void>): Promise<void> {
    const previous = this.#handle
    this.#handle = await connect(this.#what, this.#options)
    let moved = 0
    try {
      await move(() => moved++)
    } catch (error) {
      if (moved > 0) this.#retired.push(previous)
      else {
        await librbd().radosShutdown(this.#handle)
        this.#handle = previous
      }
      throw error
    }
    for (const handle of [...this.#retired.splice(0), previous]) await librbd().radosShutdown(handle)
  }

  /** Nothing is open any more. */
  async leave(): Promise<void> {
    for (const handle of [...this.#retired.splice(0), this.#handle]) await librbd().radosShutdown(handle)
  }
}

async function connect(what: string, options: ClusterOptions): Promise<number> {
  const library = librbd()
  const handle = library.radosCreate(options.user ?? 'admin')
  if (handle < 0) throw new SysError('rados_create', -handle)
  const refused = (cause: SysError): RpcError =>
    connectError(what, options, inForceOf(library, handle), cause)
  try {
    configure(library, what, handle, options)
    const result = await library.radosConnect(handle)
    if (result < 0) throw refused(new SysError('rados_connect', -result))
    if (!(await hearsFsid(library, handle))) {
      throw refused(new SysError('rados_cluster_fsid', errnoNumber('ETIMEDOUT')))
    }
    return handle
  } catch (error) {
    await library.radosShutdown(handle)
    throw error
  }
}

/**
 * Waits until the monitors have told which cluster this is; false when they have not in time. They do so in a message of
 * its own, which may come after the one that ends `rados_connect`. What hosts know an image by is derived from it, and
 * has to be the same on every gateway.
 */
async function hearsFsid(library: Librbd, handle: number): Promise<boolean> {
  const deadlineMs = performance.now() + FSID_TIMEOUT_MS
  while (library.radosFsid(handle) === UNKNOWN_FSID) {
    if (performance.now() > deadlineMs) return false
    await new Promise(resolve => setTimeout(resolve, 1))
  }
  return true
}

function configure(library: Librbd, what: string, handle: number, given: ClusterOptions): void {
  const { options, file, searches, keyFile, key } = given
  if (file !== undefined || searches) {
    const { isFatal, problems } = readConf(given)
    if (isFatal) throw new RpcError('EINVAL', `${what} cannot use its ceph.conf: ${problems[0]}`)
    const result = library.radosReadFile(handle, file ?? null)
    if (result < 0 && file !== undefined) {
      throw new RpcError(
        'EINVAL',
        `${what} cannot use ${file}: ${new SysError('rados_conf_read_file', -result).code}; ` +
          (problems[0] ?? 'check that it is a ceph.conf'),
      )
    }
  }
  if (library.radosGet(handle, MOUNT_TIMEOUT) === CEPHS_MOUNT_TIMEOUT_S) {
    library.radosSet(handle, MOUNT_TIMEOUT, MOUNT_TIMEOUT_S)
  }
  // Stronger than file and monitors, and weaker than the options behind it: on only where the operator asks for it.
  library.radosSet(handle, 'rbd_cache', 'false')
  const all = {
    ...options,
    ...(keyFile === undefined ? {} : { keyring: keyFile }),
    ...(key === undefined ? {} : { key }),
  }
  for (const [option, value] of Object.entries(all)) {
    if (library.radosSet(handle, option, value) >= 0) continue
    throw new RpcError(
      'EINVAL',
      // Without the value, which may be a key under a wrong name.
      `${what} cannot take the option ${option}, or its value: see "ceph config help ${option}"`,
    )
  }
  const messenger = library.radosGet(handle, 'ms_type')
  if (messenger === undefined || MESSENGERS.includes(messenger)) return
  throw new RpcError(
    'EINVAL',
    `${what} cannot use ms_type = ${messenger}: librados ends the whole process when it has no such messenger; leave it out`,
  )
}

/** That every librados has. */
const MESSENGERS: readonly string[] = ['async', 'async+posix']

/** How long monitors have to answer. Ceph's own time is too long for a daemon that starts with one cluster of several down. */
const MOUNT_TIMEOUT = 'client_mount_timeout'
const MOUNT_TIMEOUT_S = '20'
const CEPHS_MOUNT_TIMEOUT_S = '300'

const UNKNOWN_FSID = '00000000-0000-0000-0000-000000000000'
const FSID_TIMEOUT_MS = 20_000

const CONNECT_CODES: ReadonlyMap<string, RpcCode> = new Map([
  ['ENOENT', 'ENOENT'],
  ['ETIMEDOUT', 'ETIMEDOUT'],
  ['EACCES', 'EACCES'],
  ['EPERM', 'EACCES'],
  ['EOPNOTSUPP', 'ENOENT'],
  ['EINVAL', 'EHOSTUNREACH'],
])

/** What librados had in force; empty where that is nothing. */
interface InForce {
  readonly monitors: string
  /** Paths with commas between. */
  readonly keyrings: string
}

function inForceOf(library: Librbd, handle: number): InForce {
  const told = (option: string): string => library.radosGet(handle, option) ?? ''
  return { monitors: told('mon_host'), keyrings: told('keyring') }
}

function connectError(what: string, given: ClusterOptions, inForce: InForce, cause: SysError): RpcError {
  const { user = 'admin', options } = given
  const conf = confOf(given)
  const where = options['mon_host'] === undefined ? conf.name : 'the option mon_host'
  const hasKey = options['key'] !== undefined || given.key !== undefined
  const keyrings = inForce.keyrings.split(',').filter(path => path !== '')
  const noKey =
    `there is no keyring with a key for client.${user}: name it with the option keyring, or in ${conf.name}` +
    (keyrings.length === 0 ? '' : `; looked at ${keyrings.join(', ')}`)
  const noMonitor = `there is no monitor in ${where}: give mon_host, or a config_file that has it; ${conf.absence}`
  const badKey =
    `the key of client.${user} is not the cluster's, or the keyring has none for that user: ` +
    `compare with "ceph auth get client.${user}"`
  const remedies: Record<string, string> = {
    ENOENT: inForce.monitors === '' ? noMonitor : noKey,
    EACCES: badKey,
    EPERM: badKey,
    ETIMEDOUT: `no monitor of ${where} answers: check mon_host and the network, "ceph -s" there`,
    EINVAL:
      `${where} names no monitor that can be reached: give mon_host; a host name in it has to be known to DNS` +
      (hasKey ? '; or the key is none of Ceph: "ceph auth get-key" prints one' : ''),
    // librados's word for having no key to show.
    EOPNOTSUPP: noKey,
  }
  const remedy = remedies[cause.code] ?? 'see the log of the monitors'
  const code = CONNECT_CODES.get(cause.code) ?? 'EINVAL'
  return new RpcError(code, `${what} cannot be reached as client.${user}: ${cause.code}; ${remedy}`, {
    cause,
  })
}

/** The ceph.conf that counts, for messages; and when it says nothing of monitors, why. */
function confOf(given: ClusterOptions): { readonly name: string; readonly absence: string } {
  const { path, searched, problems } = readConf(given)
  if (path !== undefined) return { name: path, absence: `${path} has none` }
  if (searched.length > 0) {
    return { name: 'a ceph.conf', absence: [`there is no ${searched.join(', ')}`, ...problems].join('; ') }
  }
  return { name: 'the options', absence: 'beside options no ceph.conf is read unless it is named' }
}
