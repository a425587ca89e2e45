import { z } from 'zod'
import type { ReactorGroup } from '../../reactor/group.ts'
import type { ReactorStats } from '../../reactor/run.ts'
import { method } from '../../rpc/method.ts'
import type { Configuration } from '../configuration.ts'
import { VERSION } from '../version.ts'

export interface NeedsReactors {
  readonly reactors: ReactorGroup & { readonly cpus: readonly number[] }
}

export interface NeedsConfiguration {
  readonly configuration: Configuration
}

/** How the daemon leaves the state before `framework_start_init`. */
export interface Initialization {
  /** Brings up what was saved or configured. Resolves when every runtime method may be called. */
  start(): Promise<void>
  /** Resolves at once when the daemon is up already. */
  wait(): Promise<void>
}

export interface NeedsInitialization {
  readonly initialization: Initialization
}

/** All times in statistics are in microseconds. */
const TICK_RATE = 1_000_000

const spdkGetVersion = method({
  name: 'spdk_get_version',
  summary: 'Tells the version.',
  params: z.object({}),
  result: z.object({
    version: z.string(),
    fields: z.object({ major: z.int(), minor: z.int(), patch: z.int(), suffix: z.string() }),
  }),
  state: 'any',
  concurrent: true,
  cli: { commands: ['version'] },
  run() {
    const [major = 0, minor = 0, patch = 0] = VERSION.split('.').map(part => Number.parseInt(part, 10))
    return { version: `qpair v${VERSION}`, fields: { major, minor, patch, suffix: '' } }
  },
})

const frameworkStartInit = method({
  name: 'framework_start_init',
  summary: 'Ends the start-up phase of a daemon that was started with --wait-for-rpc.',
  params: z.object({}),
  result: z.literal(true),
  state: 'startup',
  async run(_, { initialization }: NeedsInitialization) {
    await initialization.start()
    return true as const
  },
})

const frameworkWaitInit = method({
  name: 'framework_wait_init',
  summary: 'Answers once the daemon is up.',
  params: z.object({}),
  result: z.literal(true),
  state: 'any',
  async run(_, { initialization }: NeedsInitialization) {
    await initialization.wait()
    return true as const
  },
})

const frameworkGetSubsystems = method({
  name: 'framework_get_subsystems',
  summary: 'Lists the parts that have a configuration, each after those it depends on.',
  params: z.object({}),
  result: z.array(z.object({ subsystem: z.string(), depends_on: z.array(z.string()) })),
  cli: { columns: ['subsystem', 'depends_on'] },
  run: (_, { configuration }: NeedsConfiguration) => configuration.subsystems,
})

const frameworkGetConfig = method({
  name: 'framework_get_config',
  summary: "Tells by which calls a part's present state would be made again.",
  params: z.object({
    name: z.string().describe('The part: bdev, nvmf …'),
    with_batches: z.boolean().default(false).describe('Accepted for SPDK clients; entries are never batches'),
  }),
  result: z.array(z.object({ method: z.string(), params: z.record(z.string(), z.unknown()).optional() })),
  errors: { INVALID_PARAMS: 'there is no such part' },
  cli: { positional: ['name'] },
  run: ({ name }, { configuration }: NeedsConfiguration) =>
    configuration.configOf(name).map(({ method, params }) => ({ method, ...(params && { params }) })),
})

const frameworkGetReactors = method({
  name: 'framework_get_reactors',
  summary: 'Lists the polling threads, with how long each was busy and idle.',
  params: z.object({}),
  result: z.object({
    tick_rate: z.int(),
    pid: z.int(),
    reactors: z.array(
      z.object({
        lcore: z.int(),
        tid: z.int(),
        busy: z.int(),
        idle: z.int(),
        in_interrupt: z.boolean(),
        lw_threads: z.array(
          z.object({ name: z.string(), id: z.int(), cpumask: z.string(), elapsed: z.int() }),
        ),
      }),
    ),
  }),
  async run(_, { reactors }: NeedsReactors) {
    const stats = await reactors.broadcast<ReactorStats>('reactor.stats', null)
    return {
      tick_rate: TICK_RATE,
      pid: process.pid,
      reactors: stats.map(({ busyUs, idleUs, tid }, index) => ({
        lcore: reactors.cpus[index] ?? index,
        tid,
        busy: Math.round(busyUs),
        idle: Math.round(idleUs),
        in_interrupt: false,
        lw_threads: [
          {
            name: `reactor_${index}`,
            id: index + 1,
            cpumask: cpuMask(reactors.cpus[index] ?? -1),
            elapsed: Math.round(busyUs + idleUs),
          },
        ],
      })),
    }
  },
})

const threadGetStats = method({
  name: 'thread_get_stats',
  summary: 'Tells how long each thread was busy and idle.',
  params: z.object({}),
  result: z.object({
    tick_rate: z.int(),
    threads: z.array(
      z.object({
        name: z.string(),
        id: z.int(),
        cpumask: z.string(),
        busy: z.int(),
        idle: z.int(),
        in_interrupt: z.boolean(),
        active_pollers_count: z.int(),
        timed_pollers_count: z.int(),
        paused_pollers_count: z.int(),
      }),
    ),
  }),
  async run(_, { reactors }: NeedsReactors) {
    const stats = await reactors.broadcast<ReactorStats>('reactor.stats', null)
    return {
      tick_rate: TICK_RATE,
      threads: stats.map(({ busyUs, idleUs, pollers, timers }, index) => ({
        name: `reactor_${index}`,
        id: index + 1,
        cpumask: cpuMask(reactors.cpus[index] ?? -1),
        busy: Math.round(busyUs),
        idle: Math.round(idleUs),
        in_interrupt: false,
        active_pollers_count: pollers,
        timed_pollers_count: timers,
        paused_pollers_count: 0,
      })),
    }
  },
})

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGHUP', 'SIGKILL', 'SIGUSR1'] as const

const spdkKillInstance = method({
  name: 'spdk_kill_instance',
  summary: 'Sends the daemon a signal: SIGTERM and SIGINT end it in order.',
  params: z.object({ sig_name: z.enum(SIGNALS).describe('The signal') }),
  result: z.literal(true),
  cli: { positional: ['sig_name'], commands: ['stop'] },
  run({ sig_name }) {
    // The answer is sent first: a signal to oneself may be delivered before the call returns.
    setImmediate(() => process.kill(process.pid, sig_name))
    return true as const
  },
})

/** As SPDK prints masks: hexadecimal, without a prefix. A reactor that may run anywhere has the mask of all. */
function cpuMask(cpu: number): string {
  return cpu < 0 ? 'ffffffff' : (1n << BigInt(cpu)).toString(16)
}

export const frameworkMethods = [
  spdkGetVersion,
  frameworkStartInit,
  frameworkWaitInit,
  frameworkGetSubsystems,
  frameworkGetConfig,
  frameworkGetReactors,
  threadGetStats,
  spdkKillInstance,
]
