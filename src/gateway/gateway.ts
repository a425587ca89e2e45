/**
 * This daemon as a member of a gateway group:
 *
 *   alone --join--> member --leave--> alone
 *                   |    ^
 *        shut out   v    |  a new Ceph client, the images opened again
 *                  rejoining --another has its name--> replaced
 */
import { hostname } from 'node:os'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { formatTransportAddress, parseTransportAddress } from '../nvmf/address.ts'
import type { RbdClusters } from '../rbd/clusters.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import { DISCOVERY_NQN } from '../spec/nvmf.ts'
import { ReplacedError } from './join.ts'
import { onlyAddress, onlyCluster } from './join-defaults.ts'
import { type GroupOptions, Membership, type MembershipParts, machineClock } from './membership.ts'
import { sharedCalls } from './shared-calls.ts'

const log = logger('gateway')

/** How long a daemon that ends, or leaves, waits until others have taken over. */
const HAND_OVER_MS = 5000
const REJOIN_MS = 1000

/** Methods that change what members share. */
const SHARED =
  /^(bdev_rbd_(create|delete)|nvmf_(create_subsystem|delete_subsystem|subsystem_(add_ns|remove_ns|set_ns_ana_group|add_host|remove_host|allow_any_host)|ns_(add|remove)_host))$/
/** Methods that change what the group decides about each member. */
const MANAGED = /^nvmf_subsystem_(add_listener|remove_listener|listener_set_ana_state)$/

/** As `gateway_join` takes it. */
export interface JoinParams {
  readonly group: string
  readonly pool: string
  readonly cluster_name?: string | undefined
  readonly address?: string | undefined
  readonly name?: string | undefined
  readonly lease_ms?: number | undefined
}

export class Gateway implements Configurable {
  readonly subsystem = 'gateway'
  readonly dependsOn: readonly string[] = ['bdev', 'nvmf']
  /** While the saved configuration is replayed: a group that cannot be joined yet is joined as soon as it can be. */
  isRestoring = false
  readonly #parts: MembershipParts
  #options: GroupOptions | null = null
  /** Null while alone, and between two lives. */
  #membership: Membership | null = null
  /** Why this daemon is in a group and no member of it. */
  #trouble = ''
  /** Another gateway has its name: it does not join again by itself. */
  #isReplaced = false
  /** The incarnation of the life before this one. */
  #former: string | undefined
  #rejoining: Promise<void> = Promise.resolve()

  constructor(parts: MembershipParts) {
    this.#parts = parts
  }

  get options(): GroupOptions {
    if (this.#options !== null) return this.#options
    throw new RpcError('ENOENT', 'this daemon is in no gateway group: gateway_join makes it a member of one')
  }

  get membership(): Membership | null {
    return this.#membership
  }

  get isReplaced(): boolean {
    return this.#isReplaced
  }

  get trouble(): string {
    return this.#membership?.problem || this.#trouble
  }

  /** Throws `RpcError`: EEXIST, EBUSY, INVALID_PARAMS, ENOENT, ENOSPC, and what Ceph says. */
  async join(params: JoinParams): Promise<void> {
    if (this.#options !== null) {
      const { group, name } = this.#options
      throw new RpcError(
        'EEXIST',
        `this daemon is in the gateway group ${group} already, as ${name}: leave it first (gateway_leave)`,
      )
    }
    const options = toOptions(params, this.#parts.rbd.clusters)
    this.#checkAlone(options)
    this.#options = options
    this.#former = undefined
    this.#isReplaced = false
    try {
      this.#membership = await this.#enter(options)
    } catch (error) {
      const refusal = asRefusal(options, error as Error)
      if (this.isRestoring) {
        this.#trouble = refusal.message
        log.error(`${refusal.message}. It is tried again until it can be`)
        this.#rejoining = this.#rejoin(options)
        return
      }
      this.#options = null
      this.#parts.nvmf.lease[0] = Number.POSITIVE_INFINITY
      throw refusal
    }
    log.notice(`member ${options.name} of gateway group ${options.group}`)
  }

  /** Hands over what is served here, and takes the group's configuration away. */
  async leave(): Promise<void> {
    const { group } = this.options
    const membership = this.#membership
    await membership?.leave(true, HAND_OVER_MS)
    await membership?.end()
    this.#membership = null
    this.#options = null
    this.#parts.nvmf.lease[0] = Number.POSITIVE_INFINITY
    log.notice(`left gateway group ${group}`)
  }

  /** Throws `RpcError`: ENOENT, EBUSY for a member that is not gone, EAGAIN. */
  async forget(name: string): Promise<void> {
    const { group } = this.options
    if (this.#membership === null) {
      throw new RpcError(
        'EAGAIN',
        `this daemon is no member of gateway group ${group} now: ask another member`,
      )
    }
    try {
      await this.#membership.forget(name)
    } catch (error) {
      if (error instanceof RpcError) throw error
      const { message } = error as Error
      throw new RpcError(
        'EAGAIN',
        `gateway ${name} is not forgotten: ${message}; try again, or on another member`,
      )
    }
  }

  /** The daemon ends, and comes back. */
  async stop(): Promise<void> {
    const membership = this.#membership
    this.#membership = null
    this.#options = null
    await membership?.leave(false, HAND_OVER_MS)
    await membership?.close()
    // The cluster goes next, which an attempt to join again still uses.
    const patience = new Promise<void>(resolve => void machineClock.after(HAND_OVER_MS, resolve))
    await Promise.race([this.#rejoining, patience])
  }

  config(): MethodCall[] {
    if (this.#options === null) return []
    const { group, pool, cluster, addressText, name, leaseMs } = this.#options
    return [
      {
        method: 'gateway_join',
        params: {
          group,
          pool,
          cluster_name: cluster,
          address: addressText,
          name,
          ...(leaseMs === undefined ? {} : { lease_ms: leaseMs }),
        },
      },
    ]
  }

  /** The group keeps it, so the daemon's own saved configuration must not. */
  keeps(call: MethodCall): boolean {
    if (this.#options === null) return false
    const nqn = call.params?.['nqn']
    const isOfSubsystem = call.method.startsWith('nvmf_') && nqn !== undefined && nqn !== DISCOVERY_NQN
    return isOfSubsystem || sharedCalls([call], this.#options.cluster).length > 0
  }

  /** The method changes what members share, one after the other. */
  shares(method: string): boolean {
    return this.#options !== null && SHARED.test(method)
  }

  /** Around every method that changes something: what members share is changed for all of them, or not at all. */
  async change(method: string, given: unknown, run: (params: unknown) => Promise<unknown>): Promise<unknown> {
    const options = this.#options
    if (options === null || method.startsWith('gateway_')) return run(given)
    const params = (given ?? {}) as Readonly<Record<string, unknown>>
    if (MANAGED.test(method) && params['nqn'] !== DISCOVERY_NQN && params['nqn'] !== 'discovery') {
      throw new RpcError(
        'EBUSY',
        `${method}: the gateway group ${options.group} decides about listeners and ANA states; ` +
          `subsystems are reached at ${options.addressText} here (gateway_join)`,
      )
    }
    if (!SHARED.test(method)) return run(given)
    const membership = this.#membership
    if (membership === null || membership.keeper.leaseLeftMs === 0) {
      throw new RpcError(
        'EAGAIN',
        `this daemon has no lease in gateway group ${options.group} at the moment (${this.trouble || 'joining'}), so it ` +
          'cannot change what members share: try again, or on another member',
      )
    }
    const changed = this.#checked(method, params, options)
    return membership.config.change(() => run(changed))
  }

  /** The parameters as the group wants them. Throws `RpcError` INVALID_PARAMS for what it cannot have. */
  #checked(method: string, params: Readonly<Record<string, unknown>>, options: GroupOptions): unknown {
    if (method === 'nvmf_create_subsystem')
      return this.#membership!.config.localize(checkSubsystem(params, options))
    if (method !== 'nvmf_subsystem_add_ns') return params
    const name = (params['namespace'] as { bdev_name?: unknown } | undefined)?.bdev_name
    if (typeof name !== 'string') return params
    const isShared = sharedCalls(this.#parts.config(), options.cluster).some(
      call => call.method === 'bdev_rbd_create' && call.params?.['name'] === name,
    )
    if (isShared) return params
    throw new RpcError(
      'INVALID_PARAMS',
      `${name} is not an RBD image of the cluster ${options.cluster}, so the other members of gateway group ${options.group} ` +
        `do not have it: open one with bdev_rbd_create and cluster_name ${options.cluster}`,
    )
  }

  #enter(options: GroupOptions): Promise<Membership> {
    return Membership.enter(options, this.#parts, this.#former, (reason, isReplaced) =>
      this.#lost(options, reason, isReplaced),
    )
  }

  #checkAlone({ group, cluster }: GroupOptions): void {
    const { nvmf, rbd } = this.#parts
    if (nvmf.transport === null) {
      throw new RpcError(
        'INVALID_PARAMS',
        'there is no TCP transport for the listeners of the group: create it first with nvmf_create_transport',
      )
    }
    rbd.clusters.get(cluster)
    const [own] = sharedCalls(this.#parts.config(), cluster)
    if (own === undefined) return
    const { nqn, name } = own.params ?? {}
    throw new RpcError(
      'EBUSY',
      `this daemon has ${nqn === undefined ? `the image ${name}` : `the subsystem ${nqn}`} of its own, which the members of ` +
        `gateway group ${group} do not share: delete it, join, and create it then`,
    )
  }

  #lost(options: GroupOptions, reason: string, isReplaced: boolean): void {
    if (this.#options !== options) return
    this.#trouble = reason
    this.#isReplaced = isReplaced
    log.error(`gateway ${options.name} is no member of group ${options.group} any more: ${reason}`)
    if (isReplaced) log.error('it does not join again by itself: give each member its own name')
    void this.#parts
      .exclusive(() => this.#bury(options))
      .then(() => {
        if (!isReplaced) this.#rejoining = this.#rejoin(options)
      })
  }

  /** Takes away what is left of a life that is over. */
  async #bury(options: GroupOptions): Promise<void> {
    const membership = this.#membership
    if (this.#options !== options || membership === null) return
    this.#membership = null
    this.#former = membership.incarnation
    await membership.end()
  }

  /** With another Ceph client, since the old one is shut out for good. */
  async #rejoin(options: GroupOptions): Promise<void> {
    while (this.#options === options) {
      try {
        await this.#parts.exclusive(async () => {
          if (this.#options !== options) return
          await this.#parts.rbd.clusters.reconnect(options.cluster)
          const membership = await this.#enter(options)
          if (this.#options !== options) {
            await forgo(membership)
            return
          }
          this.#membership = membership
          this.#trouble = ''
          log.notice(`gateway ${options.name} is a member of group ${options.group} again`)
        })
        return
      } catch (error) {
        const { message } = error as Error
        if (message !== this.#trouble) log.warning(`gateway ${options.name} cannot join again: ${message}`)
        this.#trouble = message
        if (error instanceof ReplacedError) {
          this.#isReplaced = true
          return
        }
      }
      await new Promise<void>(resolve => void machineClock.after(REJOIN_MS, resolve))
    }
  }
}

/** The daemon ends meanwhile. */
async function forgo(membership: Membership): Promise<void> {
  await membership.leave(false, 0)
  await membership.close()
}

function toOptions(params: JoinParams, clusters: RbdClusters): GroupOptions {
  const cluster = params.cluster_name ?? onlyCluster(clusters.list().map(({ name }) => name))
  const given = params.address ?? onlyAddress()
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(given)
  if (match === null) {
    throw new RpcError(
      'INVALID_PARAMS',
      `address "${given}" is not an address and a port, such as 192.168.1.10:4420 or [fd00::10]:4420`,
    )
  }
  const address = parseTransportAddress({ trtype: 'TCP', traddr: (match[1] ?? match[2])!, trsvcid: match[3] })
  if (/^(0\.0\.0\.0|[0:]*)$/.test(address.traddr) || Number(address.trsvcid) === 0) {
    throw new RpcError(
      'INVALID_PARAMS',
      `address ${given} is none that a host can connect to: give that of this machine on the hosts' network, and a port`,
    )
  }
  return {
    group: params.group,
    pool: params.pool,
    cluster,
    name: params.name ?? hostname(),
    address,
    addressText: formatTransportAddress(address),
    leaseMs: params.lease_ms,
  }
}

function checkSubsystem(params: Readonly<Record<string, unknown>>, { group }: GroupOptions): MethodCall {
  for (const name of ['min_cntlid', 'max_cntlid']) {
    if (params[name] === undefined || params[name] === null) continue
    throw new RpcError(
      'INVALID_PARAMS',
      `${name} ${params[name]}: gateway group ${group} gives each member controller identifiers of its own; leave it out`,
    )
  }
  if (params['ana_reporting'] === false) {
    throw new RpcError(
      'INVALID_PARAMS',
      `ana_reporting false: hosts must hear which member of gateway group ${group} serves a namespace; leave it out`,
    )
  }
  return { method: 'nvmf_create_subsystem', params }
}

function asRefusal({ group, pool, cluster }: GroupOptions, error: Error): RpcError {
  if (error instanceof RpcError) return error
  const what = `gateway group ${group} cannot be joined in pool ${pool} of cluster ${cluster}`
  return new RpcError(
    'EAGAIN',
    `${what}: ${error.message}; check that the pool exists, that the user may write to it (osd 'profile rbd pool=${pool}') ` +
      "and shut out clients (mon 'profile rbd'), and that the cluster is healthy",
    { cause: error },
  )
}
