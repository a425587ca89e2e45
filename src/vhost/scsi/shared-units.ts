/**
 * What every thread knows of a controller's units, in one shared `Int32Array`: a few words for each target.
 *
 *   target 0: | attentions | gate | mode | - |   target 1: | attentions | gate | mode | - |   …
 *
 * A queue of a guest may be at home on any reactor, and what one of them is told of (a reset, a capacity that changed) the
 * guest must hear once, from whichever sees the next command. Reading a word is a plain load.
 */
import { Asc } from '../../spec/scsi.ts'

const WORDS = 4

export const UnitWord = {
  /** Unit attention conditions that nobody was told of yet: bits of `Attention`. */
  ATTENTIONS: 0,
  /** What reservations of others forbid: bits of `Gate`. Written by the control thread only. */
  GATE: 1,
  /** Bits of `Mode`. */
  MODE: 2,
} as const
export type UnitWord = (typeof UnitWord)[keyof typeof UnitWord]

/** The lowest one is reported first. */
export const Attention = {
  POWER_ON: 1 << 0,
  NEXUS_LOSS: 1 << 1,
  BUS_DEVICE_RESET: 1 << 2,
  REPORTED_LUNS_CHANGED: 1 << 3,
  CAPACITY_CHANGED: 1 << 4,
  RESERVATIONS_PREEMPTED: 1 << 5,
  RESERVATIONS_RELEASED: 1 << 6,
  REGISTRATIONS_PREEMPTED: 1 << 7,
} as const

const ASC_OF = new Map<number, number>([
  [Attention.POWER_ON, Asc.POWER_ON],
  [Attention.NEXUS_LOSS, Asc.NEXUS_LOSS],
  [Attention.BUS_DEVICE_RESET, Asc.BUS_DEVICE_RESET],
  [Attention.REPORTED_LUNS_CHANGED, Asc.REPORTED_LUNS_CHANGED],
  [Attention.CAPACITY_CHANGED, Asc.CAPACITY_CHANGED],
  [Attention.RESERVATIONS_PREEMPTED, Asc.RESERVATIONS_PREEMPTED],
  [Attention.RESERVATIONS_RELEASED, Asc.RESERVATIONS_RELEASED],
  [Attention.REGISTRATIONS_PREEMPTED, Asc.REGISTRATIONS_PREEMPTED],
])

/** What a command needs; a command is refused when the gate has one of its bits. */
export const Gate = {
  READS: 1,
  WRITES: 2,
  /** A RESERVE (6) of another initiator: it leaves next to nothing. */
  MOST: 4,
} as const

export const Mode = {
  /** MODE SELECT switched the write cache off: every write goes through. */
  WRITE_THROUGH: 1,
} as const

export function makeUnits(targets: number): Int32Array {
  return new Int32Array(new SharedArrayBuffer(targets * WORDS * Int32Array.BYTES_PER_ELEMENT))
}

export const unitWord = (units: Int32Array, target: number, word: UnitWord): number =>
  units[target * WORDS + word]!

export function setUnitWord(units: Int32Array, target: number, word: UnitWord, value: number): void {
  Atomics.store(units, target * WORDS + word, value)
}

export function raiseAttention(units: Int32Array, target: number, attention: number): void {
  Atomics.or(units, target * WORDS + UnitWord.ATTENTIONS, attention)
}

/** Takes away the condition that is to be reported first. Returns its ASC and ASCQ, or 0 when there is none. */
export function takeAttention(units: Int32Array, target: number): number {
  const index = target * WORDS + UnitWord.ATTENTIONS
  for (;;) {
    const before = Atomics.load(units, index)
    const first = before & -before
    if (first === 0) return 0
    // Two reactors may look at the same time: one of them tells the guest.
    if (Atomics.compareExchange(units, index, before, before & ~first) === before) return ASC_OF.get(first)!
  }
}

export function dropAttention(units: Int32Array, target: number, attention: number): void {
  Atomics.and(units, target * WORDS + UnitWord.ATTENTIONS, ~attention)
}
