/** What `nvmf_create_transport` may set, its defaults, and what is not possible. */
import { RpcError } from '../core/errors.ts'
import { FUSES_COMPARE_AND_WRITE, Oncs } from '../spec/nvme-identify.ts'
import { BUFFER_SIZE_MAX } from '../sys/buffer-size.ts'
import type { TransportSettings } from './messages.ts'

export interface TransportParams {
  readonly max_queue_depth?: number | undefined
  readonly max_io_qpairs_per_ctrlr?: number | undefined
  readonly in_capsule_data_size?: number | undefined
  readonly max_io_size?: number | undefined
  readonly max_aq_depth?: number | undefined
  readonly c2h_success?: boolean | undefined
  readonly kas?: number | undefined
  readonly min_kato?: number | undefined
  readonly masked_oncs?: string | undefined
  readonly masked_fuses?: string | undefined
}

const PAGE_SIZE = 4096
const IN_CAPSULE_UNIT = 16
/** Hosts allocate as much for every command of every queue. */
const IN_CAPSULE_MAX = 65536
const AQ_DEPTH_MIN = 32
const QUEUE_DEPTH_MAX = 4096

/** Optional commands and fused operations that can be hidden from hosts, as SPDK names them. */
export const ONCS_NAMES: Readonly<Record<string, number>> = {
  nvmcmps: Oncs.COMPARE,
  nvmdsmsv: Oncs.DATASET_MANAGEMENT,
  nvmwzsv: Oncs.WRITE_ZEROES,
  reservs: Oncs.RESERVATIONS,
  nvmcpys: Oncs.COPY,
}
export const FUSES_NAMES: Readonly<Record<string, number>> = { fcws: FUSES_COMPARE_AND_WRITE }

const DEFAULTS: TransportSettings = {
  maxQueueDepth: 128,
  maxIoQpairsPerCtrlr: 127,
  inCapsuleDataSize: 4096,
  maxIoSize: 131072,
  maxAqDepth: 128,
  c2hSuccess: true,
  kas: 10,
  minKatoMs: 10_000,
  maskedOncs: 0,
  maskedFuses: 0,
}

/** Completes and checks. Throws INVALID_PARAMS that names the option, its value and what it may be. */
export function transportSettings(params: TransportParams): TransportSettings {
  const settings: TransportSettings = {
    maxQueueDepth: params.max_queue_depth ?? DEFAULTS.maxQueueDepth,
    maxIoQpairsPerCtrlr: params.max_io_qpairs_per_ctrlr ?? DEFAULTS.maxIoQpairsPerCtrlr,
    inCapsuleDataSize: params.in_capsule_data_size ?? DEFAULTS.inCapsuleDataSize,
    maxIoSize: params.max_io_size ?? DEFAULTS.maxIoSize,
    maxAqDepth: Math.max(params.max_aq_depth ?? DEFAULTS.maxAqDepth, AQ_DEPTH_MIN),
    c2hSuccess: params.c2h_success ?? DEFAULTS.c2hSuccess,
    kas: params.kas ?? DEFAULTS.kas,
    minKatoMs: params.min_kato ?? DEFAULTS.minKatoMs,
    maskedOncs: maskOf('masked_oncs', params.masked_oncs ?? '', ONCS_NAMES),
    maskedFuses: maskOf('masked_fuses', params.masked_fuses ?? '', FUSES_NAMES),
  }
  const { maxIoSize, inCapsuleDataSize } = settings
  within('max_queue_depth', settings.maxQueueDepth, 2, QUEUE_DEPTH_MAX)
  within('max_aq_depth', settings.maxAqDepth, AQ_DEPTH_MIN, QUEUE_DEPTH_MAX)
  within('max_io_qpairs_per_ctrlr', settings.maxIoQpairsPerCtrlr, 1, 0xfffe)
  within('in_capsule_data_size', inCapsuleDataSize, 0, IN_CAPSULE_MAX)
  within('max_io_size', maxIoSize, 2 * PAGE_SIZE, BUFFER_SIZE_MAX)
  within('kas', settings.kas, 1, 0xffff)
  if (inCapsuleDataSize % IN_CAPSULE_UNIT !== 0) {
    throw new RpcError(
      'INVALID_PARAMS',
      `in_capsule_data_size ${inCapsuleDataSize} is not a multiple of ${IN_CAPSULE_UNIT}`,
    )
  }
  if (!Number.isInteger(Math.log2(maxIoSize))) {
    throw new RpcError('INVALID_PARAMS', `max_io_size ${maxIoSize} is not a power of two, such as 131072`)
  }
  return settings
}

function within(option: string, value: number, min: number, max: number): void {
  if (value >= min && value <= max) return
  throw new RpcError('INVALID_PARAMS', `${option} ${value} is not within ${min} to ${max}`)
}

/** A list of names, separated by commas, as the bits they stand for; `all` is all of them. */
function maskOf(option: string, text: string, bits: Readonly<Record<string, number>>): number {
  let mask = 0
  for (const name of text.split(',').filter(part => part !== '')) {
    const named = name === 'all' ? Object.values(bits) : [bits[name]]
    for (const bit of named) {
      if (bit === undefined) {
        const names = ['all', ...Object.keys(bits)].join(', ')
        throw new RpcError('INVALID_PARAMS', `${option} names "${name}", which is none of ${names}`)
      }
      mask |= bit
    }
  }
  return mask
}

/** The names again, as the array that SPDK's decoder takes. */
export const namesOf = (mask: number, bits: Readonly<Record<string, number>>): string[] =>
  Object.keys(bits).filter(name => (mask & bits[name]!) !== 0)
