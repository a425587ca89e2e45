/**
 * What the control thread and the reactors tell each other about SCSI beside what `vhost/messages.ts` has: tasks of one
 * guest that may be on any reactor, and reservations, which belong to a bdev and not to a controller.
 */

export const ScsiTopic = {
  /** From a reactor that has its first SCSI device: it listens to TASKS. */
  JOIN: 'vhost.scsi.join',
  /** From a reactor: `ManageTasks`, answered with how many tasks it concerned when those that were to end have ended. */
  MANAGE: 'vhost.scsi.manage',
  /** To a reactor: `SelectTasks`, answered in the same way. */
  TASKS: 'vhost.scsi.tasks',
  /** From a reactor: `ReserveOut`, answered with `ReserveAnswer` when it is in force on every reactor. */
  RESERVE_OUT: 'vhost.scsi.reserve-out',
  /** From a reactor: the bdev's name, answered with its `Reservations`. */
  RESERVE_IN: 'vhost.scsi.reserve-in',
} as const

/** The tasks that all conditions hold for. */
export interface SelectTasks {
  /** Of one front end; null for any. */
  readonly nexus: number | null
  /** Of one controller; null for any. */
  readonly initiator: string | null
  readonly bdev: string
  /** The driver's 64 bits, as two halves; null for all tasks. */
  readonly id: readonly [low: number, high: number] | null
  /** What tasks that are stopped are answered with, a `ScsiResponse`; null only counts them. */
  readonly stopWith: number | null
}

export interface ManageTasks extends SelectTasks {
  readonly initiator: string
  readonly target: number
  /** What is reset besides; null: nothing. */
  readonly reset: 'unit' | 'nexus' | null
}

export interface Registration {
  readonly initiator: string
  /** 16 hexadecimal digits. */
  readonly key: string
}

/** The reservations of a bdev, shared by all controllers that show it. */
export interface Reservations {
  /** PRGENERATION. */
  readonly generation: number
  readonly registrations: readonly Registration[]
  /** A `ReservationType`: NONE when it is not reserved. */
  readonly type: number
  /** Who holds the reservation; null when nobody does, and when all registrants do. */
  readonly holder: string | null
  /** Who holds it by RESERVE (6). */
  readonly simpleHolder: string | null
}

export interface ReserveOut {
  readonly bdev: string
  readonly initiator: string
  /** A `ReserveOutAction`, or RESERVE (6) and RELEASE (6). */
  readonly action: number | 'reserve' | 'release'
  readonly type: number
  readonly key: string
  readonly serviceActionKey: string
}

export interface ReserveAnswer {
  /** A `ScsiStatus`. */
  readonly status: number
  /** ASC and ASCQ of an ILLEGAL REQUEST where the status is CHECK CONDITION. */
  readonly asc: number
}
