/**
 * SCSI on the control thread: what concerns a bdev and not one guest (reservations), and what concerns a guest and not one
 * reactor (its tasks). There is one for the daemon.
 */
import type { BdevRegistry } from '../../bdev/registry.ts'
import { logger } from '../../core/log.ts'
import type { ReactorGroup } from '../../reactor/group.ts'
import { ScsiResponse } from '../../spec/virtio-scsi.ts'
import {
  type ManageTasks,
  type Reservations,
  type ReserveAnswer,
  type ReserveOut,
  ScsiTopic,
  type SelectTasks,
} from './messages.ts'
import { gateOf, NOT_RESERVED, reserveOut } from './reservation-state.ts'
import { Attention, raiseAttention, setUnitWord, UnitWord } from './shared-units.ts'

const log = logger('vhost')

/** A controller with SCSI targets. */
export interface ScsiInitiator {
  /** The controller's. */
  readonly name: string
  readonly units: Int32Array
  /** Numbers of the targets that show the bdev. */
  targetsOver(bdev: string): number[]
}

export class ScsiCoordinator {
  readonly #reactors: ReactorGroup
  /** Reactors that have SCSI devices, or had. */
  readonly #joined = new Set<number>()
  readonly #initiators = new Map<string, ScsiInitiator>()
  /** By bdev; absent is `NOT_RESERVED`. Gone with the process: the guests are told by a unit attention. */
  readonly #reservations = new Map<string, Reservations>()

  constructor(reactors: ReactorGroup, bdevs: BdevRegistry) {
    this.#reactors = reactors
    bdevs.listen({ removed: info => this.#reservations.delete(info.name) })
    for (let index = 0; index < reactors.count; index++) {
      const port = reactors.port(index)
      port.on(ScsiTopic.JOIN, () => void this.#joined.add(index))
      port.on<ManageTasks>(ScsiTopic.MANAGE, message => this.#manage(message))
      port.on<ReserveOut>(ScsiTopic.RESERVE_OUT, message => this.#reserve(message))
      port.on<string>(ScsiTopic.RESERVE_IN, bdev => this.#stateOf(bdev))
    }
  }

  /** A controller of the same name takes the place of an earlier one, with its registrations. */
  join(initiator: ScsiInitiator): void {
    this.#initiators.set(initiator.name, initiator)
  }

  /** Closes or opens what an initiator may do to a target, as the reservations of its bdev are. */
  setGate({ name, units }: ScsiInitiator, target: number, bdev: string): void {
    setUnitWord(units, target, UnitWord.GATE, gateOf(this.#stateOf(bdev), name))
  }

  /** A front end of the controller begins anew: what RESERVE (6) gave to the former one is given up. */
  releaseSimple(initiator: string, bdev: string): void {
    const state = this.#stateOf(bdev)
    if (state.simpleHolder === initiator) this.#set(bdev, { ...state, simpleHolder: null })
  }

  async #reserve(request: ReserveOut): Promise<ReserveAnswer> {
    const { bdev, initiator } = request
    const { state, answer, notices, aborted } = reserveOut(this.#stateOf(bdev), request)
    // In this order, so that who finds the gate open again also finds why it was closed.
    for (const notice of notices) this.#notify(notice.initiator, bdev, notice.attention)
    this.#set(bdev, state)
    for (const other of new Set(aborted)) {
      if (other === initiator) continue
      await this.#select({ nexus: null, initiator: other, bdev, id: null, stopWith: ScsiResponse.ABORTED })
    }
    if (aborted.length > 0)
      log.notice(`${initiator} took the reservation of ${bdev} from ${aborted.join(', ')}`)
    return answer
  }

  async #manage(message: ManageTasks): Promise<number> {
    const { nexus, initiator, bdev, id, stopWith, target, reset } = message
    const count = await this.#select({ nexus, initiator, bdev, id, stopWith })
    if (reset === null) return count
    const state = this.#stateOf(bdev)
    if (reset === 'unit' || state.simpleHolder === initiator)
      this.#set(bdev, { ...state, simpleHolder: null })
    const units = this.#initiators.get(initiator)?.units
    if (units !== undefined) {
      setUnitWord(units, target, UnitWord.MODE, 0)
      raiseAttention(units, target, reset === 'unit' ? Attention.BUS_DEVICE_RESET : Attention.NEXUS_LOSS)
    }
    return count
  }

  async #select(selection: SelectTasks): Promise<number> {
    const counts = await Promise.all(
      [...this.#joined].map(index => this.#reactors.port(index).call<number>(ScsiTopic.TASKS, selection)),
    )
    return counts.reduce((sum, count) => sum + count, 0)
  }

  #notify(name: string, bdev: string, attention: number): void {
    const initiator = this.#initiators.get(name)
    for (const target of initiator?.targetsOver(bdev) ?? []) {
      raiseAttention(initiator!.units, target, attention)
    }
  }

  #set(bdev: string, state: Reservations): void {
    this.#reservations.set(bdev, state)
    for (const initiator of this.#initiators.values()) {
      for (const target of initiator.targetsOver(bdev)) this.setGate(initiator, target, bdev)
    }
  }

  #stateOf(bdev: string): Reservations {
    return this.#reservations.get(bdev) ?? NOT_RESERVED
  }
}
