/**
 * The properties of a controller (Base specification 2.1, section 3.1.4), which are what registers are elsewhere. The
 * only ones a host may set are CC, whose effects are the controller's affair, and NSSR.
 */

import { Status } from '../../spec/nvme-status.ts'
import {
  Cap,
  CapCss,
  Cc,
  CcCss,
  Crto,
  Csts,
  NSSR_RESET,
  Property,
  PropertyGetSqe,
  PropertySetSqe,
  PropertySize,
  ShutdownNotification,
  ShutdownStatus,
  VERSION_2_1,
} from '../../spec/nvmf.ts'
import { refuse, SUCCESS } from '../completion.ts'
import type { CommandRequest, Completion } from '../request.ts'

/** In units of 500 ms: how long a host waits for the controller to become ready, or to stop. */
const READY_TIMEOUT = 20

const SQE_SIZE_LOG2 = 6
const CQE_SIZE_LOG2 = 4

/**
 * There is no such property, or not of that size. Without Do Not Retry, although trying again is useless: nvme-cli 2.3
 * asks for all registers that PCIe has, and takes only the bare status for "not here".
 */
const NO_PROPERTY: Completion = { status: Status.INVALID_FIELD }

/** What the controller does when a host sets CC or NSSR. */
export interface PropertyEffects {
  /** CC.EN went from 0 to 1. Ready when it resolves. */
  enable(): Promise<void>
  /** CC.EN went from 1 to 0. No longer ready when it resolves. */
  reset(): Promise<void>
  /** CC.SHN asks for a shutdown, complete when it resolves. */
  shutdown(): Promise<void>
  /** All controllers of the subsystem end. */
  resetSubsystem(): void
}

export interface PropertyOptions {
  readonly maxQueueDepth: number
  readonly enableNssr: boolean
}

export class Properties {
  readonly #cap = new DataView(new ArrayBuffer(Cap.size))
  readonly #cc = new DataView(new ArrayBuffer(Cc.size))
  readonly #csts = new DataView(new ArrayBuffer(Csts.size))
  readonly #crto = new DataView(new ArrayBuffer(Crto.size))
  readonly #options: PropertyOptions
  readonly #effects: PropertyEffects

  constructor(options: PropertyOptions, effects: PropertyEffects) {
    this.#options = options
    this.#effects = effects
    Cap.mqes.set(this.#cap, 0, options.maxQueueDepth - 1)
    Cap.cqr.set(this.#cap, 0, 1)
    Cap.to.set(this.#cap, 0, READY_TIMEOUT)
    Cap.nssrs.set(this.#cap, 0, options.enableNssr ? 1 : 0)
    Cap.css.set(this.#cap, 0, CapCss.NVM | CapCss.IO_COMMAND_SETS)
    Cap.crwms.set(this.#cap, 0, 1)
    Crto.crwmt.set(this.#crto, 0, READY_TIMEOUT)
  }

  get isReady(): boolean {
    return Csts.rdy.get(this.#csts, 0) === 1
  }

  /** The controller failed: only a reset helps. */
  setFatal(): void {
    Csts.cfs.set(this.#csts, 0, 1)
  }

  get(request: CommandRequest): Completion {
    const { sqe } = request
    const ofst = PropertyGetSqe.ofst.get(sqe, 0)
    const isLong = PropertyGetSqe.propertySize.get(sqe, 0) === PropertySize.BYTES_8
    if (isLong !== (ofst === Property.CAP)) return NO_PROPERTY
    switch (ofst) {
      case Property.CAP:
        return {
          status: Status.SUCCESS,
          dw0: this.#cap.getUint32(0, true),
          dw1: this.#cap.getUint32(4, true),
        }
      case Property.VS:
        return { status: Status.SUCCESS, dw0: VERSION_2_1 }
      case Property.CC:
        return { status: Status.SUCCESS, dw0: this.#cc.getUint32(0, true) }
      case Property.CSTS:
        return { status: Status.SUCCESS, dw0: this.#csts.getUint32(0, true) }
      case Property.NSSR:
        return { status: Status.SUCCESS, dw0: 0 }
      case Property.CRTO:
        return { status: Status.SUCCESS, dw0: this.#crto.getUint32(0, true) }
      default:
        return NO_PROPERTY
    }
  }

  async set(request: CommandRequest): Promise<Completion> {
    const { sqe } = request
    if (PropertySetSqe.propertySize.get(sqe, 0) !== PropertySize.BYTES_4) return refuse(Status.INVALID_FIELD)
    const value = PropertySetSqe.valueLow.get(sqe, 0)
    switch (PropertySetSqe.ofst.get(sqe, 0)) {
      case Property.CC:
        return this.#setCc(value)
      case Property.NSSR:
        if (!this.#options.enableNssr) return refuse(Status.INVALID_FIELD)
        if (value === NSSR_RESET) this.#effects.resetSubsystem()
        return SUCCESS
      default:
        return refuse(Status.INVALID_FIELD)
    }
  }

  async #setCc(value: number): Promise<Completion> {
    const next = new DataView(new ArrayBuffer(Cc.size))
    next.setUint32(0, value, true)
    const wasEnabled = Cc.en.get(this.#cc, 0) === 1
    const isEnabled = Cc.en.get(next, 0) === 1
    const oldShn = Cc.shn.get(this.#cc, 0)
    const shn = Cc.shn.get(next, 0)
    if (!wasEnabled && isEnabled && !isUsable(next)) return refuse(Status.INVALID_FIELD)
    this.#cc.setUint32(0, value, true)

    if (shn !== ShutdownNotification.NONE && shn !== oldShn) {
      Csts.shst.set(this.#csts, 0, ShutdownStatus.OCCURRING)
      await this.#effects.shutdown()
      Csts.shst.set(this.#csts, 0, ShutdownStatus.COMPLETE)
    }
    if (!wasEnabled && isEnabled) {
      await this.#effects.enable()
      Csts.shst.set(this.#csts, 0, ShutdownStatus.NORMAL)
      Csts.rdy.set(this.#csts, 0, 1)
    } else if (wasEnabled && !isEnabled) {
      Csts.rdy.set(this.#csts, 0, 0)
      await this.#effects.reset()
      Csts.shst.set(this.#csts, 0, ShutdownStatus.NORMAL)
    }
    return SUCCESS
  }
}

/** What CC must say when the controller is enabled: sizes and sets that there are. */
function isUsable(cc: DataView): boolean {
  const css = Cc.css.get(cc, 0)
  return (
    (css === CcCss.NVM || css === CcCss.ALL) &&
    Cc.mps.get(cc, 0) === 0 &&
    Cc.ams.get(cc, 0) === 0 &&
    entrySizeFits(Cc.iosqes.get(cc, 0), SQE_SIZE_LOG2) &&
    entrySizeFits(Cc.iocqes.get(cc, 0), CQE_SIZE_LOG2)
  )
}

/** Hosts of discovery controllers, which have no I/O queues, leave the size at 0. */
const entrySizeFits = (log2: number, wanted: number): boolean => log2 === wanted || log2 === 0
