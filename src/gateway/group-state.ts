/**
 * What the members of a group agree on: one object in the pool says who is a member and who serves what. It is read
 * whole and replaced whole, and only by whoever has read its newest version, so every change is made to what is true.
 */
import { z } from 'zod'
import { RpcError } from '../core/errors.ts'

const member = z.strictObject({
  /** Decides the window of controller identifiers; a member that comes back has its number again. */
  number: z.int().min(0),
  name: z.string(),
  /** One life of the member, from joining to leaving or being fenced. */
  incarnation: z.string(),
  /** Its Ceph client, by which it is shut out. */
  instance: z.string(),
  isAlive: z.boolean(),
  /** The incarnation of another gateway that joins under the same name, and is about to shut this one out. */
  successor: z.string().optional(),
  /** When it ended, or was shut out, by the clock of whoever wrote it: milliseconds since 1970. */
  goneSinceMs: z.int().min(0).optional(),
  /** On its way out: it lets go of what it serves, and gets nothing new. */
  isLeaving: z.boolean(),
  /** Grows with every renewal of the lease. */
  beat: z.int().min(0),
  /** Where hosts connect to. */
  address: z.string(),
  /** Of the configuration that it has taken over. */
  version: z.int().min(0),
  /** How many hosts reach each subsystem through it. */
  hosts: z.record(z.string(), z.int().min(0)),
  /** ANA groups that it cannot serve: an image would not open. */
  unable: z.array(z.string()),
})

const groupState = z.strictObject({
  format: z.literal(1),
  /** How long a member that is not heard of may still serve. */
  leaseMs: z.int().min(1),
  members: z.array(member),
  /** The member that serves each ANA group, by number. Whoever is not there, serves nothing. */
  owners: z.record(z.string(), z.int().min(0)),
})

export type Member = z.output<typeof member>
export type GroupState = z.output<typeof groupState>

/** An ANA group of a subsystem: what is served by one member at a time. */
export const groupKey = (nqn: string, anagrpid: number): string => `${nqn} ${anagrpid}`

/** An NQN has no spaces. */
export const nqnOf = (key: string): string => key.slice(0, key.indexOf(' '))
export const anagrpidOf = (key: string): number => Number(key.slice(key.indexOf(' ') + 1))

/** Throws `RpcError` EINVAL for what another version, or somebody else, has written. */
export function parseState(name: string, text: string): GroupState {
  return parseObject(groupState, name, text)
}

export function parseObject<Schema extends z.ZodType>(
  schema: Schema,
  name: string,
  text: string,
): z.output<Schema> {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    throw unreadable(name, (cause as Error).message, cause)
  }
  const result = schema.safeParse(json)
  if (result.success) return result.data
  const [issue] = result.error.issues
  throw unreadable(name, `${issue?.path.join('.')}: ${issue?.message}`)
}

const unreadable = (name: string, what: string, cause?: unknown): RpcError =>
  new RpcError(
    'EINVAL',
    `the object ${name} is not a gateway group's (${what}): all members must be of one version of qpair; ` +
      'if the group is not needed any more, remove it with "rados -N qpair rm"',
    { cause },
  )
