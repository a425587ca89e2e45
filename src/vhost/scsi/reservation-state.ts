/**
 * Reservations of a bdev as a pure function: SPC-4, section 5.13 (persistent) and SPC-2, section 5.5.1 (RESERVE).
 *
 *   nobody registered --REGISTER--> registered --RESERVE--> reserved
 *          ^                           |  ^                   |
 *          +------REGISTER key 0-------+  +------RELEASE------+     PREEMPT takes from others, CLEAR takes from all
 */
import { Asc, ReservationType, ReserveOutAction, ScsiStatus } from '../../spec/scsi.ts'
import type { Registration, Reservations, ReserveAnswer, ReserveOut } from './messages.ts'
import { Attention, Gate } from './shared-units.ts'

/** An initiator that is to be told something, unless it is the one that asked. */
export interface Notice {
  readonly initiator: string
  readonly attention: number
}

export interface Change {
  readonly state: Reservations
  readonly answer: ReserveAnswer
  readonly notices: readonly Notice[]
  /** Whose tasks PREEMPT AND ABORT ends. */
  readonly aborted: readonly string[]
}

export const NOT_RESERVED: Reservations = {
  generation: 0,
  registrations: [],
  type: ReservationType.NONE,
  holder: null,
  simpleHolder: null,
}

/** Registrations to one bdev: what READ FULL STATUS has to say must fit into one answer. */
export const REGISTRATIONS_MAX = 64

const NO_KEY = '0'.repeat(16)
const GOOD: ReserveAnswer = { status: ScsiStatus.GOOD, asc: Asc.NONE }
const CONFLICT: ReserveAnswer = { status: ScsiStatus.RESERVATION_CONFLICT, asc: Asc.NONE }

/** The reservation is every registrant's. */
export const isForAll = (type: number): boolean =>
  type === ReservationType.WRITE_EXCLUSIVE_ALL || type === ReservationType.EXCLUSIVE_ACCESS_ALL

const isForRegistrants = (type: number): boolean =>
  isForAll(type) ||
  type === ReservationType.WRITE_EXCLUSIVE_REGISTRANTS ||
  type === ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS

const isWriteExclusive = (type: number): boolean =>
  type === ReservationType.WRITE_EXCLUSIVE ||
  type === ReservationType.WRITE_EXCLUSIVE_REGISTRANTS ||
  type === ReservationType.WRITE_EXCLUSIVE_ALL

export function isHolder(state: Reservations, initiator: string): boolean {
  if (state.type === ReservationType.NONE) return false
  return isForAll(state.type) ? find(state, initiator) !== undefined : state.holder === initiator
}

/** What an initiator may not do: bits of `Gate`. */
export function gateOf(state: Reservations, initiator: string): number {
  if (state.simpleHolder !== null && state.simpleHolder !== initiator) return Gate.MOST
  if (state.type === ReservationType.NONE || isHolder(state, initiator)) return 0
  if (isForRegistrants(state.type) && find(state, initiator) !== undefined) return 0
  return isWriteExclusive(state.type) ? Gate.WRITES : Gate.READS | Gate.WRITES
}

export function reserveOut(state: Reservations, request: ReserveOut): Change {
  const { action, initiator } = request
  const isHeldElsewhere = state.simpleHolder !== null && state.simpleHolder !== initiator
  // Who has nothing to release has released it.
  if (action === 'release') return done(isHeldElsewhere ? state : { ...state, simpleHolder: null })
  if (isHeldElsewhere) return refused(state, CONFLICT)
  if (action === 'reserve') {
    if (state.registrations.length > 0) return refused(state, CONFLICT)
    return done({ ...state, simpleHolder: initiator })
  }
  if (action === ReserveOutAction.REGISTER) return register(state, request)
  if (action === ReserveOutAction.REGISTER_AND_IGNORE) {
    return register(state, { ...request, key: find(state, initiator)?.key ?? NO_KEY })
  }
  // Everything else is for those who are registered and know their key.
  if (find(state, initiator)?.key !== request.key) return refused(state, CONFLICT)
  switch (action) {
    case ReserveOutAction.RESERVE:
      return reserve(state, request)
    case ReserveOutAction.RELEASE:
      return release(state, request)
    case ReserveOutAction.CLEAR:
      return clear(state, initiator)
    default:
      return preempt(state, request)
  }
}

function register(state: Reservations, { initiator, key, serviceActionKey }: ReserveOut): Change {
  if (key !== (find(state, initiator)?.key ?? NO_KEY)) return refused(state, CONFLICT)
  const others = state.registrations.filter(other => other.initiator !== initiator)
  const next = { ...state, generation: nextGeneration(state) }
  if (serviceActionKey === NO_KEY) return unregister(next, others, initiator)
  if (others.length === REGISTRATIONS_MAX) {
    return refused(state, {
      status: ScsiStatus.CHECK_CONDITION,
      asc: Asc.INSUFFICIENT_REGISTRATION_RESOURCES,
    })
  }
  return done({ ...next, registrations: [...others, { initiator, key: serviceActionKey }] })
}

/** The reservation of who leaves goes with him, that of all registrants with the last one. */
function unregister(state: Reservations, others: readonly Registration[], initiator: string): Change {
  const rest = { ...state, registrations: others }
  if (!isHolder(state, initiator) || (isForAll(state.type) && others.length > 0)) return done(rest)
  const notices = isForRegistrants(state.type) ? tell(others, Attention.RESERVATIONS_RELEASED) : []
  return done({ ...rest, type: ReservationType.NONE, holder: null }, notices)
}

function reserve(state: Reservations, { initiator, type }: ReserveOut): Change {
  if (state.type !== ReservationType.NONE) {
    const isSame = isHolder(state, initiator) && state.type === type
    return isSame ? done(state) : refused(state, CONFLICT)
  }
  return done({ ...state, type, holder: holderFor(type, initiator) })
}

function release(state: Reservations, { initiator, type }: ReserveOut): Change {
  if (!isHolder(state, initiator)) return done(state)
  if (state.type !== type) {
    return refused(state, { status: ScsiStatus.CHECK_CONDITION, asc: Asc.INVALID_RELEASE_OF_RESERVATION })
  }
  const notices = isForRegistrants(type)
    ? tell(without(state, initiator), Attention.RESERVATIONS_RELEASED)
    : []
  return done({ ...state, type: ReservationType.NONE, holder: null }, notices)
}

function clear(state: Reservations, initiator: string): Change {
  const next = { ...NOT_RESERVED, generation: nextGeneration(state) }
  return done(next, tell(without(state, initiator), Attention.RESERVATIONS_PREEMPTED))
}

/** SPC-4, section 5.13.11.2: takes registrations away, and with those of the holder his reservation. */
function preempt(state: Reservations, { action, initiator, type, serviceActionKey }: ReserveOut): Change {
  const isAll = serviceActionKey === NO_KEY && isForAll(state.type)
  const holderKey = state.holder === null ? undefined : find(state, state.holder)?.key
  const takesReservation = isAll || (holderKey !== undefined && holderKey === serviceActionKey)
  if (serviceActionKey === NO_KEY && !takesReservation) {
    return refused(state, { status: ScsiStatus.CHECK_CONDITION, asc: Asc.INVALID_FIELD_IN_PARAMETER_LIST })
  }
  const isMeant = (one: Registration): boolean =>
    (isAll || one.key === serviceActionKey) && !(takesReservation && one.initiator === initiator)
  const removed = state.registrations.filter(isMeant)
  if (removed.length === 0 && !takesReservation) return refused(state, CONFLICT)
  const registrations = state.registrations.filter(one => !isMeant(one))
  const others = removed.filter(one => one.initiator !== initiator)
  const notices = tell(others, Attention.REGISTRATIONS_PREEMPTED)
  let next: Reservations = { ...state, generation: nextGeneration(state), registrations }
  if (takesReservation) {
    if (state.type !== type) {
      notices.push(...tell(without(next, initiator), Attention.RESERVATIONS_RELEASED))
    }
    next = { ...next, type, holder: holderFor(type, initiator) }
  } else if (isForAll(state.type) && registrations.length === 0) {
    next = { ...next, type: ReservationType.NONE, holder: null }
  }
  const aborts = action === ReserveOutAction.PREEMPT_AND_ABORT
  return { ...done(next, notices), aborted: aborts ? others.map(one => one.initiator) : [] }
}

const find = (state: Reservations, initiator: string): Registration | undefined =>
  state.registrations.find(one => one.initiator === initiator)

const without = (state: Reservations, initiator: string): Registration[] =>
  state.registrations.filter(one => one.initiator !== initiator)

const holderFor = (type: number, initiator: string): string | null => (isForAll(type) ? null : initiator)

const nextGeneration = ({ generation }: Reservations): number => (generation + 1) % 0x1_0000_0000

const tell = (whom: readonly Registration[], attention: number): Notice[] =>
  whom.map(({ initiator }) => ({ initiator, attention }))

const done = (state: Reservations, notices: readonly Notice[] = []): Change => ({
  state,
  answer: GOOD,
  notices,
  aborted: [],
})

const refused = (state: Reservations, answer: ReserveAnswer): Change => ({
  state,
  answer,
  notices: [],
  aborted: [],
})
