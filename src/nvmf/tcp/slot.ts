/**
 * A request slot: one command of a queue from its capsule to its response. Preallocated, as many as the queue has
 * entries; its number is the transfer tag of its R2T.
 *
 *   FREE -> RECEIVING -> STARVED -> SOLICITING -> TRANSFERRING -> PAIRING -> EXECUTING or REQUESTED -> ANSWERING -> FREE
 *           data in      waits for  R2T to be     data is         fused      device       target       to be sent
 *           the capsule  a buffer   sent          coming
 *
 * Each command takes the stages that it needs, in this order.
 */
import type { IoOwner } from '../../bdev/io.ts'
import type { Arena } from '../../sys/memory.ts'
import { IoCommand } from '../io.ts'
import type { CapsuleRequest } from './capsule-request.ts'
import type { ReceiveBuffer } from './receiver.ts'

export const SlotState = {
  FREE: 0,
  RECEIVING: 1,
  STARVED: 2,
  SOLICITING: 3,
  TRANSFERRING: 4,
  PAIRING: 5,
  EXECUTING: 6,
  REQUESTED: 7,
  ANSWERING: 8,
} as const
export type SlotState = (typeof SlotState)[keyof typeof SlotState]

export class Slot extends IoCommand {
  readonly index: number
  state: SlotState = SlotState.FREE
  cid = 0
  /** The status field of the completion, 15 bits with DNR. A command that is refused has it before it is started. */
  status = 0
  dw0 = 0
  dw1 = 0
  /** Of what the host sends: how much has come. */
  arrivedBytes = 0
  /** Of what goes to the host: how much there is; 0 for a response without data. */
  answerBytes = 0
  /** The slot's own buffer, as an offset into the arena: negative when it has none. */
  buffer = -1
  bufferSize = 0
  /** How far behind the start of the capsule's data the command's own begins. */
  dataOffset = 0
  /** Where the command's data is, or is to go, as an offset into the arena; negative when it is the device's. */
  dataAt = -1
  /** The receive buffer that the data still lies in. */
  pinned: ReceiveBuffer | null = null
  /** The device's memory is borrowed: it has to be released once it has been sent. */
  isLoan = false
  /** Set for a command that is not on the fast path. */
  request: CapsuleRequest | null = null
  /** The halves of a fused operation know each other as soon as the second arrives. */
  isFused = false
  partner: Slot | null = null

  constructor(index: number, owner: IoOwner, arena: Arena) {
    super(owner, index, arena)
    this.index = index
  }

  /** Makes it a new command's. */
  begin(cid: number): void {
    this.cid = cid
    this.status = 0
    this.dw0 = 0
    this.dw1 = 0
    this.arrivedBytes = 0
    this.answerBytes = 0
    this.dataOffset = 0
    this.dataAt = -1
    this.request = null
    this.isFused = false
    this.partner = null
  }
}
