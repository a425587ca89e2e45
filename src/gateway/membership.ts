/** One life of this daemon in a group: its Ceph client, its lease, what it serves. Ends for good when it is shut out. */
import { randomUUID } from 'node:crypto'
import { type Clock, systemClock } from '../core/clock.ts'
import { SysError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { TransportAddress } from '../nvmf/address.ts'
import type { NvmfTarget } from '../nvmf/target.ts'
import type { Cluster } from '../rbd/cluster.ts'
import type { RbdImages } from '../rbd/images.ts'
import type { Bell } from '../reactor/bell.ts'
import type { MethodCall } from '../rpc/config.ts'
import { AnaState } from '../spec/nvme-log.ts'
import { librados } from '../sys/librados.ts'
import { librbd } from '../sys/librbd.ts'
import { forgetMember } from './forget.ts'
import type { GroupState } from './group-state.ts'
import { joinGroup } from './join.ts'
import { Keeper } from './keeper.ts'
import { memberOf, windowOf } from './lease.ts'
import { News } from './news.ts'
import { RADOS_NAMESPACE, RadosStore } from './rados-store.ts'
import { NvmfServing } from './serving.ts'
import { SharedConfig } from './shared-config.ts'
import { StoreError } from './store.ts'

const log = logger('gateway')

/** An operation on the group's objects that takes longer is given up. */
const OPERATION_MS = 1000
/**
 * Also without news in the lease: a member may have died right after it had changed the configuration, and an address
 * where it cannot be listened may be free by now.
 */
const CONFIG_CHECK_MS = 5000

/**
 * Microseconds of CLOCK_MONOTONIC, as the reactors read it: it goes on while the process is stopped. Timers are Node's.
 */
export const machineClock: Clock = {
  nowUs: () => Number(process.hrtime.bigint()) / 1000,
  after: (delayMs, fire) => systemClock.after(delayMs, fire),
}

export interface GroupOptions {
  readonly group: string
  readonly pool: string
  /** A registered cluster: the group's objects and images are there. */
  readonly cluster: string
  readonly name: string
  readonly address: TransportAddress
  /** As it is shown to others. */
  readonly addressText: string
  readonly leaseMs: number | undefined
}

/** What a membership needs of the daemon. */
export interface MembershipParts {
  readonly nvmf: NvmfTarget
  readonly rbd: RbdImages
  /** By which librados tells of news. */
  readonly bell: Bell
  /** Everything that this daemon has, as calls. */
  readonly config: () => readonly MethodCall[]
  readonly replay: (method: string, params?: unknown) => Promise<unknown>
  /** Does something while no method changes anything. */
  readonly exclusive: <Result>(work: () => Promise<Result>) => Promise<Result>
}

export const leaseObject = (group: string): string => `gateway.${group}.lease`
export const configObject = (group: string): string => `gateway.${group}.config`

export class Membership {
  readonly incarnation: string
  readonly config: SharedConfig
  readonly keeper: Keeper
  readonly #options: GroupOptions
  readonly #parts: MembershipParts
  readonly #cluster: Cluster
  readonly #store: RadosStore
  readonly #news: News
  #isCatchingUp = false
  /** Something was heard that was not looked at yet. */
  #hasNews = false
  /** Why hosts do not reach some subsystem here, so that it is told once. */
  #deafness = ''
  #checkedUs = 0
  #isEnded = false

  private constructor(
    options: GroupOptions,
    parts: MembershipParts,
    connection: { readonly cluster: Cluster; readonly pool: number; readonly store: RadosStore },
    joined: { readonly incarnation: string; readonly state: GroupState },
    lost: (reason: string, isReplaced: boolean) => void,
  ) {
    const { group, cluster, name } = options
    const { incarnation, state } = joined
    const { store } = connection
    this.incarnation = incarnation
    this.#options = options
    this.#parts = parts
    this.#cluster = connection.cluster
    this.#store = store
    const object = leaseObject(group)
    this.#news = new News({
      rados: librados(),
      object: { pool: connection.pool, name: object },
      eventfd: parts.bell.fd,
      heard: () => {
        this.keeper.hurry()
        this.#catchUp()
      },
    })
    const tell = (): void => void this.#news.tell()
    const { first, last } = windowOf(memberOf(state, incarnation)!.number)
    this.config = new SharedConfig({
      store,
      object: configObject(group),
      group,
      own: { cluster, firstCntlid: first, lastCntlid: last },
      config: parts.config,
      replay: parts.replay,
      changed: () => this.#listen(),
      told: tell,
    })
    this.keeper = new Keeper(
      {
        clock: machineClock,
        store,
        object,
        incarnation,
        name,
        serving: new NvmfServing(parts.nvmf, this.config, machineClock),
        events: { changed: news => this.#hear(news), told: tell, lost },
        random: Math.random,
      },
      state,
    )
  }

  /**
   * Becomes a member and serves what it is given. Nothing else may change the daemon meanwhile. Throws `RpcError`, and
   * what the store throws; nothing is left then. `former`: the incarnation before, of a member that was shut out.
   */
  static async enter(
    options: GroupOptions,
    parts: MembershipParts,
    former: string | undefined,
    lost: (reason: string, isReplaced: boolean) => void,
  ): Promise<Membership> {
    const { group, name, addressText, leaseMs, pool } = options
    const cluster = await parts.rbd.clusters.acquire(options.cluster)
    cluster.isManaged = true
    let store: RadosStore | undefined
    try {
      const handle = await librbd().openPool(cluster.handle, pool, RADOS_NAMESPACE)
      if (handle < 0) throw new SysError('rados_ioctx_create', -handle, `of pool ${pool}`)
      store = new RadosStore({
        cluster: cluster.handle,
        pool: handle,
        poolName: pool,
        timeoutMs: OPERATION_MS,
      })
      if (store.instance === '')
        throw new StoreError('Ceph does not say by which address this client is known')
      const incarnation = randomUUID()
      const newcomer = { name, incarnation, instance: store.instance, address: addressText }
      const object = leaseObject(group)
      const state = await joinGroup({ store, clock: machineClock, object, group, newcomer, former, leaseMs })
      const connection = { cluster, pool: handle, store }
      const membership = new Membership(options, parts, connection, { incarnation, state }, lost)
      await membership.#begin()
      return membership
    } catch (error) {
      await store?.close()
      await leaveCluster(parts, cluster)
      throw error
    }
  }

  /** Something may have news for this member, or of it. */
  async #begin(): Promise<void> {
    try {
      this.#parts.bell.listen(sum => this.#news.rung(sum))
      this.#news.ensure()
      // What is wanted is known before the lease runs: opening many images may take longer than that.
      await this.config.read()
      const started = this.keeper.start()
      void this.#news.tell()
      await this.config.apply()
      await started
    } catch (error) {
      // Others would shut this client out after a while.
      await this.keeper.leave(true, 0)
      await this.#news.close()
      throw error
    }
  }

  /** What is wrong at the moment, or nothing. */
  get problem(): string {
    return this.keeper.problem || this.#deafness
  }

  /** Hands over in order. `isForgotten`: the member does not mean to come back. */
  async leave(isForgotten: boolean, timeoutMs: number): Promise<void> {
    await this.keeper.leave(isForgotten, timeoutMs)
    await this.#news.tell()
  }

  /** Throws `RpcError` ENOENT, EBUSY for one that is not gone, and what the store throws. */
  async forget(name: string): Promise<void> {
    const { group } = this.#options
    await forgetMember({ store: this.#store, object: leaseObject(group), group, name })
    void this.#news.tell()
  }

  /** Takes what is shared away from this daemon, and lets go of the cluster. The keeper has ended before. */
  async end(): Promise<void> {
    if (this.#isEnded) return
    this.#isEnded = true
    await this.config.clear()
    await this.close()
  }

  /** Lets go of the cluster only. */
  async close(): Promise<void> {
    this.#isEnded = true
    await this.#news.close()
    await this.#store.close()
    await leaveCluster(this.#parts, this.#cluster)
  }

  /** Every subsystem is reached by this member's address. */
  async #listen(): Promise<void> {
    const { nvmf } = this.#parts
    const { address } = this.#options
    let deafness = ''
    for (const { nqn, isDiscovery, listeners } of nvmf.list()) {
      if (isDiscovery || listeners.size > 0) continue
      try {
        await nvmf.addListener(nqn, address, AnaState.INACCESSIBLE)
      } catch (error) {
        deafness = `hosts do not reach ${nqn} here: ${(error as Error).message}`
        if (deafness !== this.#deafness) log.error(deafness)
      }
    }
    this.#deafness = deafness
    await this.keeper.refresh()
  }

  #hear({ members }: GroupState): void {
    this.#news.ensure()
    const { version } = this.config
    const isBehind = members.some(member => member.isAlive && member.version > version)
    const isDue = machineClock.nowUs() - this.#checkedUs > CONFIG_CHECK_MS * 1000
    if (isBehind || isDue) this.#catchUp()
  }

  /** Looks what the others have changed, once it is nobody's turn to change something here. */
  #catchUp(): void {
    this.#hasNews = true
    if (this.#isCatchingUp) return
    this.#isCatchingUp = true
    this.#parts
      .exclusive(async () => {
        this.#hasNews = false
        this.#checkedUs = machineClock.nowUs()
        if (this.#isEnded) return
        await this.config.catchUp()
        if (this.#deafness !== '') await this.#listen()
      })
      .catch((error: Error) => log.warning(`the group's configuration is not read: ${error.message}`))
      .finally(() => {
        this.#isCatchingUp = false
        if (this.#hasNews && !this.#isEnded) this.#catchUp()
      })
  }
}

async function leaveCluster({ rbd }: MembershipParts, cluster: Cluster): Promise<void> {
  cluster.isManaged = false
  await rbd.clusters.release(cluster)
}
