/** What a seed decides before anything happens: machines, options, how long, how rough. */
import type { Prng } from '../../src/core/prng.ts'
import type { WorkloadOptions } from './workload.ts'

export const CLIENT_ADDRESS = '10.0.0.1'

export interface ScenarioConfig {
  readonly clientReactors: number
  readonly gatewayReactors: number
  /** The addresses of each gateway: as many paths. */
  readonly addresses: readonly (readonly string[])[]
  readonly blockCount: number
  readonly anaReporting: boolean
  readonly writesZeroes: boolean
  /** Of `nvmf_create_transport`. */
  readonly transport: Record<string, unknown>
  /** Of `bdev_nvme_set_options`. */
  readonly hostOptions: Record<string, unknown>
  /** Of `bdev_nvme_attach_controller`. */
  readonly attachOptions: Record<string, unknown>
  /** Of `bdev_nvme_set_multipath_policy`. */
  readonly policy: Record<string, unknown>
  /** A path may be given up for good, and then I/O may fail. */
  readonly givesUp: boolean
  readonly workload: WorkloadOptions
  readonly faultyUs: number
  readonly faults: number
}

/** Of `bdev_nvme_set_multipath_policy`. */
export function choosePolicy(prng: Prng): Record<string, unknown> {
  return prng.pick([
    { policy: 'active_passive' },
    { policy: 'active_active', selector: 'round_robin', rr_min_io: prng.between(1, 3) },
    { policy: 'active_active', selector: 'queue_depth' },
  ])
}

export function chooseConfig(prng: Prng): ScenarioConfig {
  const givesUp = prng.oneIn(4)
  const keepAliveMs = prng.pick([2000, 5000, 10_000])
  const timeoutUs = prng.pick([0, 0, 1_000_000, 5_000_000])
  const depth = prng.pick([1, 4, 16])
  return {
    clientReactors: prng.between(1, 2),
    gatewayReactors: prng.between(1, 2),
    addresses: [prng.oneIn(3) ? ['10.0.1.1', '10.0.1.2'] : ['10.0.1.1'], ['10.0.2.1']],
    blockCount: prng.pick([16, 64, 200]),
    anaReporting: !prng.oneIn(3),
    writesZeroes: prng.oneIn(2),
    transport: {
      in_capsule_data_size: prng.pick([0, 512, 4096, 8192]),
      max_io_size: prng.pick([8192, 65_536, 131_072]),
      max_queue_depth: prng.pick([2, 8, 128]),
      c2h_success: prng.oneIn(2),
      min_kato: 1000,
      kas: 1,
    },
    hostOptions: {
      keep_alive_timeout_ms: keepAliveMs,
      timeout_us: timeoutUs,
      action_on_timeout: prng.pick(['none', 'reset', 'abort']),
      tcp_connect_timeout_ms: prng.pick([0, 1000, 3000]),
      disable_auto_failback: prng.oneIn(4),
      io_path_stat: prng.oneIn(2),
    },
    attachOptions: givesUp
      ? {
          ctrlr_loss_timeout_sec: prng.pick([5, 10]),
          reconnect_delay_sec: prng.between(1, 2),
          fast_io_fail_timeout_sec: prng.pick([0, 0, 3]),
        }
      : { ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: prng.between(1, 2) },
    policy: choosePolicy(prng),
    givesUp,
    workload: {
      depth,
      blocksMax: prng.pick([1, 8, 32]),
      // So many I/Os a second, whatever the depth.
      thinkMs: depth * prng.pick([100, 300]),
      overlaps: prng.oneIn(3),
    },
    faultyUs: prng.between(10, 40) * 1_000_000,
    faults: prng.pick([0, 5, 10, 20]),
  }
}
