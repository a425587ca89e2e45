/** The RPC methods of gateway groups. */
import { z } from 'zod'
import { method } from '../rpc/method.ts'
import { done } from '../rpc/params.ts'
import type { Gateway } from './gateway.ts'
import type { Member } from './group-state.ts'
import type { Keeper } from './keeper.ts'
import { ownedBy } from './lease.ts'
import { showText } from './show-text.ts'

/** What the methods find in the application. */
export interface GatewayContext {
  readonly gateway: Gateway
}

const word = z.string().regex(/^[\w.-]{1,64}$/, 'up to 64 letters, digits, dots, dashes and underscores')

const MemberRow = z.object({
  name: z.string(),
  number: z.int(),
  /** `alive`, `leaving`, or `gone`. */
  state: z.enum(['alive', 'leaving', 'gone']),
  is_self: z.boolean(),
  address: z.string(),
  silent_ms: z.int().describe('How long nothing was heard of it'),
  gone_since: z.string().optional().describe('When it ended, or was shut out: 2026-01-31T23:59:59.000Z'),
  config_version: z.int(),
  ana_groups: z.array(z.object({ nqn: z.string(), anagrpid: z.int() })),
  unable: z.array(z.string()),
})

const GroupDescription = z.object({
  group: z.string(),
  pool: z.string(),
  cluster_name: z.string(),
  name: z.string(),
  /**
   * `serving`: it has a lease. `waiting`: it has none. `rejoining`: it is no member at the moment. `replaced`: another
   * has its name, and it does not join again by itself.
   */
  state: z.enum(['serving', 'waiting', 'rejoining', 'replaced']),
  problem: z.string(),
  lease_ms: z.int(),
  lease_left_ms: z.int(),
  config_version: z.int(),
  members: z.array(MemberRow),
})

function describe(gateway: Gateway): z.input<typeof GroupDescription> {
  const { group, pool, cluster, name } = gateway.options
  const { membership, trouble } = gateway
  const common = { group, pool, cluster_name: cluster, name, problem: trouble }
  if (membership === null) {
    const state = gateway.isReplaced ? 'replaced' : 'rejoining'
    return { ...common, state, lease_ms: 0, lease_left_ms: 0, config_version: 0, members: [] }
  }
  const { keeper, config } = membership
  const { state, leaseLeftMs } = keeper
  return {
    ...common,
    state: leaseLeftMs > 0 ? 'serving' : 'waiting',
    lease_ms: state.leaseMs,
    lease_left_ms: Math.round(leaseLeftMs),
    config_version: config.version,
    members: state.members.map(member => describeMember(member, keeper)),
  }
}

function describeMember(member: Member, keeper: Keeper): z.input<typeof MemberRow> {
  const { name, number, incarnation, isAlive, isLeaving, goneSinceMs, address, version, unable } = member
  const gone = goneSinceMs === undefined ? {} : { gone_since: new Date(goneSinceMs).toISOString() }
  return {
    name,
    number,
    state: isLeaving ? 'leaving' : isAlive ? 'alive' : 'gone',
    is_self: member === keeper.me,
    address,
    silent_ms: Math.round(
      goneSinceMs === undefined ? keeper.silentMs(incarnation) : Math.max(0, Date.now() - goneSinceMs),
    ),
    ...gone,
    config_version: version,
    ana_groups: ownedBy(keeper.state, number).map(toAnaGroup),
    unable: [...unable],
  }
}

function toAnaGroup(key: string): { nqn: string; anagrpid: number } {
  const [nqn, anagrpid] = key.split(' ')
  return { nqn: nqn!, anagrpid: Number(anagrpid) }
}

export const gatewayMethods = [
  method({
    name: 'gateway_join',
    summary: 'Makes this daemon a member of a group of gateways that serve the same images.',
    params: z.object({
      group: word.describe('The group; made when there is none of that name'),
      pool: z.string().min(1).describe('The pool that has what the members agree on'),
      cluster_name: z
        .string()
        .min(1)
        .optional()
        .describe('The registered cluster of the pool and of the images; the only one when absent'),
      address: z
        .string()
        .optional()
        .describe("Where hosts reach this member: 192.168.1.10:4420; the machine's only address when absent"),
      name: word.optional().describe("Of this member; the machine's name when absent"),
      lease_ms: z
        .int()
        .min(1000)
        .max(600_000)
        .optional()
        .describe('Of a new group: how long a member that is not heard of may still serve (default 5000)'),
    }),
    result: done,
    errors: {
      EEXIST: 'this daemon is in a group already',
      EBUSY: 'it has subsystems or images of its own',
      ENOENT: 'no cluster has that name, or none is registered',
      EINVAL: 'the group has another lease, or its objects are not readable',
      ENOSPC: 'the group is full',
      EAGAIN: 'Ceph does not answer, or refuses',
    },
    saves: true,
    run: async (params, { gateway }: GatewayContext) => {
      await gateway.join(params)
      return true as const
    },
  }),
  method({
    name: 'gateway_leave',
    summary: 'Hands over what this daemon serves, and takes the configuration of the group away from it.',
    params: z.object({}),
    result: done,
    errors: { ENOENT: 'this daemon is in no group' },
    saves: true,
    run: async (_, { gateway }: GatewayContext) => {
      await gateway.leave()
      return true as const
    },
  }),
  method({
    name: 'gateway_forget',
    summary: 'Takes a member that is gone, and does not come back, off the list of members.',
    params: z.object({ name: word.describe('Of the member') }),
    result: done,
    errors: {
      ENOENT: 'this daemon is in no group, or the group has no such member',
      EBUSY: 'the member is not gone',
      EAGAIN: 'Ceph does not answer, or this daemon is no member at the moment',
    },
    cli: { positional: ['name'] },
    run: async ({ name }, { gateway }: GatewayContext) => {
      await gateway.forget(name)
      return true as const
    },
  }),
  method({
    name: 'gateway_show',
    summary: 'Tells of the group: members, their leases, and which ANA groups each of them serves.',
    params: z.object({}),
    result: GroupDescription,
    errors: { ENOENT: 'this daemon is in no group' },
    concurrent: true,
    cli: { text: showText },
    run: (_, { gateway }: GatewayContext) => describe(gateway),
  }),
]
