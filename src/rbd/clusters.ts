/**
 * Connections to Ceph clusters: those that the operator registered by name, and those that an image brought along. Images
 * of one cluster share its connection.
 */
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { MethodCall } from '../rpc/config.ts'
import { Cluster, type ClusterOptions } from './cluster.ts'

const log = logger('rbd')

/** A cluster that the operator named. */
export interface NamedCluster extends ClusterOptions {
  readonly name: string
  /** Accepted and told back: librbd's threads run where the kernel puts them. */
  readonly coreMask: string | undefined
}

interface Unnamed {
  readonly connecting: Promise<Cluster>
  /** Those who wait for the connection, and will use it. */
  waiting: number
}

interface Named {
  readonly options: NamedCluster
  readonly cluster: Cluster
  /** A storage pool brought it, and not the operator. */
  readonly isBrought: boolean
}

export class RbdClusters {
  readonly #named = new Map<string, Named>()
  /** Without a name, by what they were opened with. */
  readonly #unnamed = new Map<string, Unnamed>()

  /** Throws `RpcError`: EEXIST, ENOTSUP without librbd, EINVAL for an option, and what Ceph says. */
  async register(options: NamedCluster): Promise<void> {
    const there = this.#named.get(options.name)
    // Saved with images that are open of it, and its pool came first.
    if (there?.isBrought && isSame(there.options, options)) return
    await this.#connect(options, false)
  }

  /**
   * For a storage pool, which has a cluster of its own name: one that is there with the same options will do, and one
   * that nobody uses is replaced. Throws as `register`, and `RpcError` EBUSY when the options of one in use differ.
   */
  async bring(options: NamedCluster): Promise<void> {
    const there = this.#named.get(options.name)
    if (there !== undefined) {
      if (isSame(there.options, options)) return
      await this.unregister(options.name)
    }
    await this.#connect(options, true)
  }

  /** The opposite, whether the pool brought it or the saved configuration: one that images are open of stays with them. */
  async takeBack(name: string): Promise<void> {
    if (this.#named.get(name)?.cluster.users === 0) await this.unregister(name)
  }

  async #connect(options: NamedCluster, isBrought: boolean): Promise<void> {
    const { name } = options
    const refuse = (): RpcError =>
      new RpcError('EEXIST', `a cluster named ${name} is registered already: choose another name`)
    if (this.#named.has(name)) throw refuse()
    const cluster = await Cluster.connect(`the cluster ${name}`, options)
    // Another call may have come first while this one waited.
    if (this.#named.has(name)) {
      await cluster.leave()
      throw refuse()
    }
    this.#named.set(name, { options, cluster, isBrought })
    log.notice(`the cluster ${name} is connected: ${cluster.fsid}`)
  }

  /** Throws `RpcError` ENOENT, or EBUSY while images of it are open. */
  async unregister(name: string): Promise<void> {
    const { cluster } = this.#get(name)
    if (cluster.isManaged) {
      throw new RpcError(
        'EBUSY',
        `the cluster ${name} is that of the gateway group: have this daemon leave it first (gateway_leave)`,
      )
    }
    if (cluster.users > 0) {
      throw new RpcError(
        'EBUSY',
        `the cluster ${name} has ${cluster.users} open image${cluster.users === 1 ? '' : 's'}: delete their bdevs first (bdev_rbd_delete)`,
      )
    }
    this.#named.delete(name)
    await cluster.leave()
  }

  /**
   * Connects to a cluster again, as another client: Ceph may have shut the old one out. Throws `RpcError` EBUSY while
   * images of it are open, and what connecting throws; then the old connection stays.
   */
  async reconnect(name: string): Promise<void> {
    const { options, cluster, isBrought } = this.#get(name)
    if (cluster.users > 0) {
      throw new RpcError('EBUSY', `the cluster ${name} has ${cluster.users} open images, and is still needed`)
    }
    const fresh = await Cluster.connect(`the cluster ${name}`, options)
    this.#named.set(name, { options, cluster: fresh, isBrought })
    await cluster.leave()
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
      return this.#get(nameOrOptions).cluster.acquire()
    }
    const key = JSON.stringify(nameOrOptions)
    const unnamed = this.#unnamed.get(key) ?? {
      connecting: Cluster.connect('Ceph', nameOrOptions),
      waiting: 0,
    }
    this.#unnamed.set(key, unnamed)
    unnamed.waiting++
    try {
      return await (await unnamed.connecting).acquire()
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
      await cluster.leave()
      return
    }
  }

  /** One that a pool brought comes back with it; as long as images are open of it, they may come first. */
  config(): MethodCall[] {
    const kept = [...this.#named.values()].filter(({ isBrought, cluster }) => !isBrought || cluster.users > 0)
    return kept.map(({ options: { name, user, options, file, keyFile, coreMask } }) => ({
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

  #get(name: string): Named {
    const found = this.#named.get(name)
    if (found !== undefined) return found
    const names = [...this.#named.keys()].slice(0, 10)
    throw new RpcError(
      'ENOENT',
      `there is no cluster ${name}: ${names.length === 0 ? 'none is registered (bdev_rbd_register_cluster)' : `there are ${names.join(', ')}`}`,
    )
  }
}

/** Whether both reach the same cluster in the same way. A key in memory is not compared: saved calls have none. */
function isSame(one: NamedCluster, other: NamedCluster): boolean {
  const told = ({ key: _, options, ...rest }: NamedCluster): string =>
    JSON.stringify([Object.entries(options).sort(), Object.entries(rest).sort()])
  return told(one) === told(other)
}
