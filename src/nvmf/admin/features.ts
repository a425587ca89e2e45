/**
 * Get and Set Features (Base specification 2.1, sections 5.1.11 and 5.1.25). No feature outlives its controller, so
 * nothing can be saved, and the saved value is the default one.
 */
import { GetFeaturesSqe, NSID_BROADCAST, SetFeaturesSqe, Sqe } from '../../spec/nvme.ts'
import {
  ErrorRecovery,
  EXTENDED_HOST_IDENTIFIER_SIZE,
  FeatureCapability,
  FeatureId,
  FeatureSelect,
  HostBehaviorSupport,
  HostIdentifier,
  InterruptVector,
  NumberOfQueues,
  PowerManagement,
  TemperatureThreshold,
  VolatileWriteCache,
} from '../../spec/nvme-feature.ts'
import { Status } from '../../spec/nvme-status.ts'
import { answer, refuse, SUCCESS, succeed } from '../completion.ts'
import type { CommandRequest, Completion } from '../request.ts'

/** Kelvins: 70 °C, far above what a virtual disk reports. */
const TEMPERATURE_THRESHOLD_DEFAULT = 343

/** What features need to know of their controller, and change in it. */
export interface FeatureHost {
  readonly isDiscovery: boolean
  /** 16 bytes, as in Connect. */
  readonly hostid: Uint8Array
  readonly maxIoQueues: number
  readonly supportedEvents: number
  readonly defaultEvents: number
  eventConfiguration: number
  /** The granted time-out; 0 is none. Setting it grants what is nearest to the wish, and restarts the timer. */
  katoMs: number
  readonly defaultKatoMs: number
}

/** Features of a controller whose value is only remembered, with what a host may write and what it starts from. */
interface Remembered {
  readonly fid: number
  readonly initial: number
  /** Undefined for a value that cannot be changed. */
  readonly isAllowed?: (value: DataView) => boolean
}

const REMEMBERED: readonly Remembered[] = [
  { fid: FeatureId.ARBITRATION, initial: 0, isAllowed: () => true },
  // There is one power state.
  { fid: FeatureId.POWER_MANAGEMENT, initial: 0, isAllowed: value => PowerManagement.ps.get(value, 0) === 0 },
  {
    fid: FeatureId.TEMPERATURE_THRESHOLD,
    initial: TEMPERATURE_THRESHOLD_DEFAULT,
    // There are no sensors besides the composite temperature, and no lower threshold.
    isAllowed: value =>
      TemperatureThreshold.tmpsel.get(value, 0) === 0 && TemperatureThreshold.thsel.get(value, 0) === 0,
  },
  {
    fid: FeatureId.ERROR_RECOVERY,
    initial: 0,
    isAllowed: value => ErrorRecovery.dulbe.get(value, 0) === 0,
  },
  { fid: FeatureId.INTERRUPT_COALESCING, initial: 0 },
  { fid: FeatureId.WRITE_ATOMICITY, initial: 0, isAllowed: () => true },
  { fid: FeatureId.IO_COMMAND_SET_PROFILE, initial: 0 },
]

/** What a discovery controller has (Base 2.1, section 3.1.3.3). */
const OF_DISCOVERY = new Set<number>([
  FeatureId.ASYNC_EVENT_CONFIGURATION,
  FeatureId.KEEP_ALIVE_TIMER,
  FeatureId.HOST_IDENTIFIER,
])

/** A feature as the two commands see it. */
interface Feature {
  readonly default: number
  get(cdw11: number): Completion
  /** Undefined for what cannot be changed. */
  set?(cdw11: number, request: CommandRequest): Completion
}

export class Features {
  readonly #features = new Map<number, Feature>()

  constructor(host: FeatureHost) {
    const all: [number, Feature][] = [
      ...REMEMBERED.map((remembered): [number, Feature] => [remembered.fid, rememberedFeature(remembered)]),
      [FeatureId.VOLATILE_WRITE_CACHE, writeCache],
      [FeatureId.NUMBER_OF_QUEUES, numberOfQueues(host)],
      [FeatureId.INTERRUPT_VECTOR_CONFIGURATION, interruptVector],
      [FeatureId.ASYNC_EVENT_CONFIGURATION, asyncEventConfiguration(host)],
      [FeatureId.KEEP_ALIVE_TIMER, keepAliveTimer(host)],
      [FeatureId.HOST_IDENTIFIER, hostIdentifier(host)],
      [FeatureId.HOST_BEHAVIOR_SUPPORT, hostBehavior()],
    ]
    for (const [fid, feature] of all) {
      if (!host.isDiscovery || OF_DISCOVERY.has(fid)) this.#features.set(fid, feature)
    }
  }

  /** The features there are, and whether each can be changed. */
  get supported(): { fid: number; isChangeable: boolean }[] {
    return [...this.#features].map(([fid, feature]) => ({ fid, isChangeable: feature.set !== undefined }))
  }

  get(request: CommandRequest): Completion {
    const { sqe } = request
    const feature = this.#features.get(GetFeaturesSqe.fid.get(sqe, 0))
    if (feature === undefined) return refuse(Status.INVALID_FIELD)
    switch (GetFeaturesSqe.sel.get(sqe, 0)) {
      case FeatureSelect.CURRENT:
        return feature.get(GetFeaturesSqe.cdw11.get(sqe, 0))
      case FeatureSelect.DEFAULT:
      case FeatureSelect.SAVED:
        return answer(feature.default)
      case FeatureSelect.SUPPORTED:
        return answer(feature.set === undefined ? 0 : FeatureCapability.CHANGEABLE)
      default:
        return refuse(Status.INVALID_FIELD)
    }
  }

  set(request: CommandRequest): Completion {
    const { sqe } = request
    const feature = this.#features.get(SetFeaturesSqe.fid.get(sqe, 0))
    if (feature === undefined) return refuse(Status.INVALID_FIELD)
    if (SetFeaturesSqe.sv.get(sqe, 0) === 1) return refuse(Status.FEATURE_NOT_SAVEABLE)
    const nsid = Sqe.nsid.get(sqe, 0)
    if (nsid !== 0 && nsid !== NSID_BROADCAST) return refuse(Status.FEATURE_NOT_NAMESPACE_SPECIFIC)
    if (feature.set === undefined) return refuse(Status.FEATURE_NOT_CHANGEABLE)
    return feature.set(SetFeaturesSqe.cdw11.get(sqe, 0), request)
  }
}

function rememberedFeature({ initial, isAllowed }: Remembered): Feature {
  let current = initial
  const get = (): Completion => answer(current)
  if (isAllowed === undefined) return { default: initial, get }
  return {
    default: initial,
    get,
    set: cdw11 => {
      if (!isAllowed(wordView(cdw11))) return refuse(Status.INVALID_FIELD)
      current = cdw11
      return SUCCESS
    },
  }
}

/** As many as there can be, whatever was asked for: hosts take what they want of them. */
function numberOfQueues({ maxIoQueues }: FeatureHost): Feature {
  const queues = word(NumberOfQueues.size, view => {
    NumberOfQueues.nsq.set(view, 0, maxIoQueues - 1)
    NumberOfQueues.ncq.set(view, 0, maxIoQueues - 1)
  })
  return {
    default: queues,
    get: () => answer(queues),
    set: cdw11 => {
      const view = wordView(cdw11)
      const isValid = NumberOfQueues.nsq.get(view, 0) !== 0xffff && NumberOfQueues.ncq.get(view, 0) !== 0xffff
      return isValid ? answer(queues) : refuse(Status.INVALID_FIELD)
    },
  }
}

/** Interrupts are the host's own affair over Fabrics: vector n is never coalesced. */
const interruptVector: Feature = {
  default: 0,
  get: cdw11 =>
    answer(
      word(InterruptVector.size, view => {
        InterruptVector.iv.set(view, 0, cdw11 & 0xffff)
        InterruptVector.cd.set(view, 0, 1)
      }),
    ),
}

const asyncEventConfiguration = (host: FeatureHost): Feature => ({
  default: host.defaultEvents,
  get: () => answer(host.eventConfiguration),
  set: cdw11 => {
    host.eventConfiguration = (cdw11 & host.supportedEvents) >>> 0
    return SUCCESS
  },
})

const keepAliveTimer = (host: FeatureHost): Feature => ({
  default: host.defaultKatoMs,
  get: () => answer(host.katoMs),
  set: cdw11 => {
    host.katoMs = cdw11
    return answer(host.katoMs)
  },
})

const hostIdentifier = ({ hostid }: FeatureHost): Feature => ({
  default: 1,
  get: cdw11 => {
    const isExtended = HostIdentifier.exhid.get(wordView(cdw11), 0) === 1
    return isExtended ? succeed(hostid.slice(0, EXTENDED_HOST_IDENTIFIER_SIZE)) : refuse(Status.INVALID_FIELD)
  },
  // Over Fabrics it comes with Connect and stays.
  set: () => refuse(Status.COMMAND_SEQUENCE_ERROR),
})

function hostBehavior(): Feature {
  const behavior = new Uint8Array(HostBehaviorSupport.size)
  return {
    default: 0,
    get: () => succeed(behavior),
    set: (_, { dataOut }) => {
      if (dataOut.length < HostBehaviorSupport.size) return refuse(Status.DATA_SGL_LENGTH_INVALID)
      const view = new DataView(dataOut.buffer, dataOut.byteOffset, dataOut.length)
      const acre = HostBehaviorSupport.acre.get(view, 0)
      if (acre > 1) return refuse(Status.INVALID_FIELD)
      behavior[HostBehaviorSupport.acre.offset] = acre
      return SUCCESS
    },
  }
}

/** A cache below this daemon cannot be switched off from here, and saying so would lose data. */
const writeCache: Feature = {
  default: 1,
  get: () => answer(1),
  set: cdw11 =>
    VolatileWriteCache.wce.get(wordView(cdw11), 0) === 1 ? SUCCESS : refuse(Status.FEATURE_NOT_CHANGEABLE),
}

function wordView(value: number): DataView {
  const view = new DataView(new ArrayBuffer(4))
  view.setUint32(0, value, true)
  return view
}

function word(size: number, fill: (view: DataView) => void): number {
  const view = new DataView(new ArrayBuffer(size))
  fill(view)
  return view.getUint32(0, true)
}
