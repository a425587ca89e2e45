/**
 * Connections to Ceph clusters: those that the operator registered by name, and those that an image brought along. Images
 * of one cluster share its connection.
 */
import { type RpcCode, RpcError, SysError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { MethodCall } from '../rpc/config.ts'
import { type Librbd, librbd } from '../sys/librbd.ts'

const log = logger('rbd')

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
}

/** A cluster that the operator named. */
export interface NamedCluster extends ClusterOptions {
  readonly name: string
  /** Accepted and told back: librbd's threads run where the kernel puts them. */
  readonly coreMask: string | undefined
}

/** One connection. */
export interface Cluster {
  readonly handle: number
  readonly fsid: string
  /** Images that are open. */
  users: number
}

interface Unnamed {
  readonly connecting: Promise<Cluster>
  /** Those who wait for the connection, and will use it. */
  waiting: number
}

export class RbdClusters {
  readonly #named = new Map<string, { readonly options: NamedCluster; readonly cluster: Cluster }>()
  /** Without a name, by what they were opened with. */
  readonly #unnamed = new Map<string, Unnamed>()

  /** Throws `RpcError`: EEXIST, ENOTSUP without librbd, EINVAL for an option, and what Ceph says. */
  async register(options: NamedCluster): Promise<void> {
    const { name } = options
    if (this.#named.has(name)) {
      throw new RpcError('EEXIST', `a cluster named ${name} is registered already: choose another name`)
    }
    const cluster = await connect(`the cluster ${name}`, options)
    // Another call may have come first while this one waited.
    if (this.#named.has(name)) {
      await librbd().radosShutdown(cluster.handle)
      throw new RpcError('EEXIST', `a cluster named ${name} is registered already: choose another name`)
    }
    this.#named.set(name, { options, cluster })
    log.notice(`the cluster ${name} is connected: ${cluster.fsid}`)
  }

  /** Throws `RpcError` ENOENT, or EBUSY while images of it are open. */
  async unregister(name: string): Promise<void> {
    const { cluster } = this.#get(name)
    if (cluster.users > 0) {
      throw new RpcError(
        'EBUSY',
        `the cluster ${name} has ${cluster.users} open images: delete their bdevs first (bdev_rbd_delete)`,
      )
    }
    this.#named.delete(name)
    await librbd().radosShutdown(cluster.handle)
  }

  list(): NamedCluster[] {
    return [...this.#named.values()].map(({ options }) => options)
  }

  /** Throws `RpcError` ENOENT naming those there are. */
  get(name: string): NamedCluster {
    return this.#get(name).options
  }

  /** A use of the cluster of that name, or of one without a name that is connected when it is first used. */
  async acquire(nameOrOptions: string | ClusterOptions): Promise<Cluster> {
    if (typeof nameOrOptions === 'string') {
      const { cluster } = this.#get(nameOrOptions)
      cluster.users++
      return cluster
    }
    const key = JSON.stringify(nameOrOptions)
    const unnamed = this.#unnamed.get(key) ?? { connecting: connect('Ceph', nameOrOptions), waiting: 0 }
    this.#unnamed.set(key, unnamed)
    unnamed.waiting++
    try {
      const cluster = await unnamed.connecting
      cluster.users++
      return cluster
    } catch (error) {
      this.#unnamed.delete(key)
      throw error
    } finally {
      unnamed.waiting--
    }
  }

  /** A cluster without a name is left with its last image. */
  async release(cluster: Cluster): Promise<void> {
    cluster.users--
    for (const [key, { connecting, waiting }] of this.#unnamed) {
      if (cluster.users > 0 || waiting > 0 || (await connecting) !== cluster) continue
      // Somebody may have come while this one waited.
      if (cluster.users > 0 || this.#unnamed.get(key)?.waiting !== 0) continue
      this.#unnamed.delete(key)
      await librbd().radosShutdown(cluster.handle)
      return
    }
  }

  config(): MethodCall[] {
    return this.list().map(({ name, user, options, file, keyFile, coreMask }) => ({
      method: 'bdev_rbd_register_cluster',
      params: {
        name,
        ...(user === undefined ? {} : { user_id: user }),
        ...(Object.keys(options).length === 0 ? {} : { config_param: options }),
        ...(file === undefined ? {} : { config_file: file }),
        ...(keyFile === undefined ? {} : { key_file: keyFile }),
        ...(coreMask === undefined ? {} : { core_mask: coreMask }),
      },
    }))
  }

  #get(name: string): { readonly options: NamedCluster; readonly cluster: Cluster } {
    const found = this.#named.get(name)
    if (found !== undefined) return found
    const names = [...this.#named.keys()].slice(0, 10)
    throw new RpcError(
      'ENOENT',
      `there is no cluster ${name}: ${names.length === 0 ? 'none is registered (bdev_rbd_register_cluster)' : `there are ${names.join(', ')}`}`,
    )
  }
}

/** `what`: for messages. */
async function connect(what: string, options: ClusterOptions): Promise<Cluster> {
  const library = librbd()
  const handle = library.radosCreate(options.user ?? 'admin')
  if (handle < 0) throw new SysError('rados_create', -handle)
  try {
    configure(library, what, handle, options)
    const result = await library.radosConnect(handle)
    if (result < 0) throw connectError(what, options, new SysError('rados_connect', -result))
    return { handle, fsid: library.radosFsid(handle), users: 0 }
  } catch (error) {
    await library.radosShutdown(handle)
    throw error
  }
}

function configure(library: Librbd, what: string, handle: number, given: ClusterOptions): void {
  const { options, file, searches, keyFile } = given
  if (file !== undefined || searches) {
    const result = library.radosReadFile(handle, file ?? null)
    if (result < 0 && file !== undefined) {
      throw new RpcError(
        'EINVAL',
        `${what} cannot read ${file}: ${new SysError('rados_conf_read_file', -result).code}; ` +
          'check that the file exists, that the daemon may read it, and that it is a ceph.conf',
      )
    }
  }
  const all = keyFile === undefined ? options : { ...options, keyring: keyFile }
  for (const [option, value] of Object.entries(all)) {
    if (library.radosSet(handle, option, value) >= 0) continue
    throw new RpcError(
      'EINVAL',
      `${what}: Ceph refuses the option ${option} = ${value}: see the names in "ceph config ls"`,
    )
  }
}

const CONNECT_CODES: ReadonlyMap<string, RpcCode> = new Map([
  ['ENOENT', 'ENOENT'],
  ['ETIMEDOUT', 'ETIMEDOUT'],
  ['EACCES', 'EACCES'],
  ['EPERM', 'EACCES'],
])

function connectError(what: string, { user = 'admin', file }: ClusterOptions, cause: SysError): RpcError {
  const where = file ?? 'the default ceph.conf'
  const badKey =
    `the key of client.${user} is not the cluster's, or the keyring has none for that user: ` +
    `compare with "ceph auth get client.${user}"`
  const remedies: Record<string, string> = {
    ENOENT: `there is no keyring with a key for client.${user}, or no monitor in ${where}: give keyring and mon_host, or a config_file that has them`,
    EACCES: badKey,
    EPERM: badKey,
    ETIMEDOUT: `no monitor of ${where} answers: check mon_host and the network, "ceph -s" there`,
    EINVAL: `${where} names no monitor that can be reached: give mon_host`,
  }
  const remedy = remedies[cause.code] ?? 'see the log of the monitors'
  const code = CONNECT_CODES.get(cause.code) ?? 'EINVAL'
  return new RpcError(code, `${what} cannot be reached as client.${user}: ${cause.code}; ${remedy}`, {
    cause,
  })
}
