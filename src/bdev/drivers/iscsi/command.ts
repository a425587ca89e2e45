/** One SCSI command: its CDB, parameters and list of iovecs in memory that libiscsi reads. Pooled by whoever uses it. */

import type { Reactor } from '../../../reactor/reactor.ts'
import { IOVEC_SIZE } from '../../../spec/io-uring.ts'
import { TransferDirection } from '../../../sys/libiscsi.ts'
import { memset } from '../../../sys/memory.ts'
import { type IoType, type Segments, IoType as Type } from '../../io.ts'

const TWO_32 = 2 ** 32
/** CDB, parameters, iovecs. */
export const COMMAND_BYTES = 512
const PARAMETERS_AT = 16
const IOVECS_AT = 64
const IOVECS_MIN = (COMMAND_BYTES - IOVECS_AT) / IOVEC_SIZE

export const CommandState = { IDLE: 0, QUEUED: 1, RUNNING: 2 } as const

/** Hears of the end of commands that it started, never from inside `Session.start`. */
export interface CommandOwner {
  /** With an NVMe status. The owner has the command back. */
  commandEnded(command: Command, status: number): void
}

export class Command {
  readonly owner: CommandOwner
  readonly reactor: Reactor
  /** Where the CDB is; `cdb` is the same as an offset into the arena's view. */
  readonly address: number
  readonly cdb: number
  cdbSize = 0
  lun = 0
  /** Whose place the command takes: what a medium error means. */
  type: IoType = Type.READ
  direction: number = TransferDirection.NONE
  /** Of data, in bytes. */
  length = 0
  iovecs = 0
  iovecCount = 0
  /** Less data than that is no success: of reads and writes. */
  isWhole = false

  /** What the unit said of it last: status * 65536 + additional sense code. */
  told = 0

  /** For the session: how far it is. */
  state: number = CommandState.IDLE
  startedUs = 0
  tries = 0
  isAborted = false
  /** libiscsi's, while it is running. */
  task = 0
  next: Command | null = null

  #iovecCapacity = IOVECS_MIN
  /** Where longer lists are. */
  #list = 0

  /** `address`: `COMMAND_BYTES` in the reactor's arena. */
  constructor(owner: CommandOwner, reactor: Reactor, address: number) {
    this.owner = owner
    this.reactor = reactor
    this.address = address
    this.cdb = reactor.arena.offsetOf(address)
    this.iovecs = address + IOVECS_AT
  }

  /** Makes it a command without data, whose CDB is zeroes. */
  begin(lun: number, cdbSize: number, type: IoType): void {
    memset(this.address, 0, IOVECS_AT)
    this.lun = lun
    this.cdbSize = cdbSize
    this.type = type
    this.direction = TransferDirection.NONE
    this.length = 0
    this.iovecCount = 0
    this.isWhole = false
  }

  /** Parameters of at most 48 bytes, zeroes so far, that go to the unit: their place in the arena's view. */
  addParameters(length: number): number {
    this.setData(TransferDirection.WRITE, this.address + PARAMETERS_AT, length)
    return this.cdb + PARAMETERS_AT
  }

  /** Its data is one piece. */
  setData(direction: number, address: number, length: number): void {
    this.direction = direction
    this.length = length
    this.iovecCount = 1
    this.#write(0, address, length)
  }

  /** Its data is a part of a list; false when memory is short. */
  setSegments(direction: number, segments: Segments, offsetBytes: number, length: number): boolean {
    if (segments.count > this.#iovecCapacity && !this.#grow(segments.count)) return false
    let skip = offsetBytes
    let left = length
    let count = 0
    for (let i = 0; left > 0; i++) {
      const available = segments.lengths[i]! - skip
      if (available <= 0) {
        skip = -available
        continue
      }
      const part = Math.min(available, left)
      this.#write(count++, segments.addresses[i]! + skip, part)
      left -= part
      skip = 0
    }
    this.direction = direction
    this.length = length
    this.iovecCount = count
    this.isWhole = true
    return true
  }

  /** Gives back what it took besides the memory it was made with. */
  close(): void {
    if (this.#list !== 0) this.reactor.buffers.release(this.#list, this.#iovecCapacity * IOVEC_SIZE)
  }

  #write(index: number, address: number, length: number): void {
    const { arena } = this.reactor
    const at = (arena.offsetOf(this.iovecs) + index * IOVEC_SIZE) / 4
    const words = arena.i32
    words[at] = address | 0
    words[at + 1] = (address / TWO_32) | 0
    words[at + 2] = length | 0
    words[at + 3] = 0
  }

  #grow(wanted: number): boolean {
    let capacity = 64
    while (capacity < wanted) capacity *= 2
    const list = this.reactor.buffers.acquire(capacity * IOVEC_SIZE)
    if (list === 0) return false
    this.close()
    this.#list = list
    this.#iovecCapacity = capacity
    this.iovecs = list
    return true
  }
}
