/** What a virtio-scsi controller is to a front end: features, configuration space, and the targets behind it. */
import { ProtocolError } from '../../core/errors.ts'
import {
  CDB_SIZE_DEFAULT,
  ScsiConfig,
  ScsiEvent,
  ScsiFeatureBit,
  SENSE_SIZE_DEFAULT,
  VIRTIO_ID_SCSI,
} from '../../spec/virtio-scsi.ts'
import { type ScsiBacking, type ScsiTarget, TARGETS_MAX } from '../backing.ts'
import type { ScsiDescription } from '../messages.ts'
import type { DeviceModel, ModelState } from '../model.ts'
import type { ScsiCoordinator, ScsiInitiator } from './coordinator.ts'
import { Attention, makeUnits, raiseAttention, setUnitWord, UnitWord } from './shared-units.ts'

/** Of data in one request: with header and response, 128 descriptors. */
const SEG_MAX = 126
/** 64 MiB. */
const MAX_SECTORS = 131072
const CMD_PER_LUN = 128
/** Of the flat addressing method. */
const MAX_LUN = 16383

/** The shortest CDB field that every command of a disk fits into, and the longest CDB of SPC-4. */
const CDB_SIZES = { min: 16, max: 260 } as const
/** 252 bytes of sense are the most that there can be. */
const SENSE_SIZES = { min: 0, max: 252 } as const

/** Front ends so far, of all controllers. */
let nexuses = 0

/** A target as front ends were last told of it. */
interface Told {
  readonly target: ScsiTarget
  readonly blockCount: number
}

export class ScsiModel implements DeviceModel, ScsiInitiator {
  readonly deviceId = VIRTIO_ID_SCSI
  readonly fixedQueues = 2
  readonly features = (1n << BigInt(ScsiFeatureBit.HOTPLUG)) | (1n << BigInt(ScsiFeatureBit.CHANGE))
  readonly name: string
  readonly units = makeUnits(TARGETS_MAX)
  readonly #backing: ScsiBacking
  readonly #queueCount: number
  readonly #coordinator: ScsiCoordinator
  readonly #told = new Map<number, Told>()
  readonly #nexuses = new WeakMap<ModelState, number>()

  /** `queueCount`: how many request queues a front end may have. */
  constructor(backing: ScsiBacking, name: string, queueCount: number, coordinator: ScsiCoordinator) {
    this.#backing = backing
    this.name = name
    this.#queueCount = queueCount
    this.#coordinator = coordinator
    coordinator.join(this)
  }

  targetsOver(bdev: string): number[] {
    const targets = [...this.#backing.targets.values()]
    return targets.filter(target => target.bdev.name === bdev).map(({ number }) => number)
  }

  config(_features: bigint, { senseSize, cdbSize }: ModelState): Uint8Array {
    const bytes = new Uint8Array(ScsiConfig.size)
    const view = new DataView(bytes.buffer)
    ScsiConfig.numQueues.set(view, 0, this.#queueCount)
    ScsiConfig.segMax.set(view, 0, SEG_MAX)
    ScsiConfig.maxSectors.set(view, 0, MAX_SECTORS)
    ScsiConfig.cmdPerLun.set(view, 0, CMD_PER_LUN)
    ScsiConfig.eventInfoSize.set(view, 0, ScsiEvent.size)
    ScsiConfig.senseSize.set(view, 0, senseSize ?? SENSE_SIZE_DEFAULT)
    ScsiConfig.cdbSize.set(view, 0, cdbSize ?? CDB_SIZE_DEFAULT)
    ScsiConfig.maxTarget.set(view, 0, TARGETS_MAX - 1)
    ScsiConfig.maxLun.set(view, 0, MAX_LUN)
    return bytes
  }

  writeConfig(offset: number, bytes: Uint8Array, state: ModelState): boolean {
    const { senseSize, cdbSize } = ScsiConfig
    const field = offset === senseSize.offset ? 'senseSize' : 'cdbSize'
    if ((offset !== senseSize.offset && offset !== cdbSize.offset) || bytes.length !== 4) {
      throw new ProtocolError(
        `the driver writes ${bytes.length} bytes at ${offset} of the configuration space: ` +
          `only sense_size at ${senseSize.offset} and cdb_size at ${cdbSize.offset}, 4 bytes each, can be written`,
        offset,
      )
    }
    const value = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)
    const { min, max } = field === 'senseSize' ? SENSE_SIZES : CDB_SIZES
    if (value < min || value > max) {
      throw new ProtocolError(`${field} is ${min} to ${max}, not ${value}`, offset)
    }
    const isChanged = state[field] !== value
    state[field] = value
    return isChanged
  }

  describe(_features: bigint, state: ModelState): ScsiDescription {
    this.#noteChanges()
    let nexus = this.#nexuses.get(state)
    if (nexus === undefined) {
      nexus = ++nexuses
      this.#nexuses.set(state, nexus)
      for (const number of this.#backing.targets.keys()) this.#powerOn(number)
    }
    return {
      kind: 'scsi',
      initiator: this.name,
      nexus,
      targets: [...this.#backing.targets.values()].map(({ number, name, bdev }) => ({
        number,
        name,
        bdev: bdev.name,
      })),
      senseSize: state.senseSize ?? SENSE_SIZE_DEFAULT,
      cdbSize: state.cdbSize ?? CDB_SIZE_DEFAULT,
      units: this.units,
    }
  }

  /** What is different from what front ends were told becomes a unit attention. */
  #noteChanges(): void {
    const { targets } = this.#backing
    for (const target of targets.values()) {
      const { number, bdev } = target
      const told = this.#told.get(number)
      this.#told.set(number, { target, blockCount: bdev.blockCount })
      this.#coordinator.setGate(this, number, bdev.name)
      if (told?.target === target) {
        if (told.blockCount !== bdev.blockCount) {
          raiseAttention(this.units, number, Attention.CAPACITY_CHANGED)
        }
        continue
      }
      this.#powerOn(number)
      if (told !== undefined) raiseAttention(this.units, number, Attention.REPORTED_LUNS_CHANGED)
    }
  }

  #powerOn(number: number): void {
    const { bdev } = this.#backing.targets.get(number)!
    this.#coordinator.releaseSimple(this.name, bdev.name)
    setUnitWord(this.units, number, UnitWord.MODE, 0)
    setUnitWord(this.units, number, UnitWord.ATTENTIONS, Attention.POWER_ON)
  }
}
