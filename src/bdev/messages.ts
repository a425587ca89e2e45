/** What the control thread and the reactors tell each other about devices. */
import type { BdevInfo } from './bdev.ts'
import type { IoCounters } from './iostat.ts'

export const Topic = {
  /** `AddMessage`, answered when the replica is there. */
  ADD: 'bdev.add',
  /** The device's name; answered when nothing is outstanding on its channel and the channel is closed. */
  REMOVE: 'bdev.remove',
  /** `ResizeMessage`, answered when the new size holds. */
  RESIZE: 'bdev.resize',
  /** `TellMessage`, answered when the channel, if there is one, has heard it. */
  TELL: 'bdev.tell',
  /** `IostatMessage`, answered with `IostatAnswer`. */
  IOSTAT: 'bdev.iostat',
} as const

export interface AddMessage {
  readonly info: BdevInfo
  /** One word: see `ChannelState.lock`. */
  readonly lock: SharedArrayBuffer
}

export interface ResizeMessage {
  readonly name: string
  readonly blockCount: number
}

export interface TellMessage {
  readonly name: string
  readonly message: unknown
}

export type ResetMode = 'all' | 'maxmin' | 'error' | 'none'

export interface IostatMessage {
  readonly names: readonly string[]
  /** Applied after the counters were read. */
  readonly reset: ResetMode
}

export interface ReactorIostat {
  readonly counters: IoCounters
  /** I/Os outstanding at this moment. */
  readonly outstanding: number
  /** False when nothing on this reactor has the device open. */
  readonly isOpen: boolean
}

/** In the order of the names. */
export type IostatAnswer = readonly ReactorIostat[]
