/**
 * A reactor as a thread: spins while there is work, sleeps in its ring when there is none.
 *
 *   turn: 256 rounds or 2 ms  --setImmediate-->  turn  --setImmediate-->  turn …
 *     nothing found for `spinUs`, or at all while librbd works for us: block in the ring until something completes,
 *     a timer is due or the doorbell rings
 *
 * Between turns Node's own loop runs: messages of the control thread, promises, user code.
 */
import { readlinkSync } from 'node:fs'
import { cpus } from 'node:os'
import { parentPort, workerData } from 'node:worker_threads'
import { assert } from '../core/assert.ts'
import { errnoName, SysError } from '../core/errors.ts'
import { applyLogSettings, logger } from '../core/log.ts'
import { CqeFlag } from '../spec/io-uring.ts'
import { schedYield, setAffinity } from '../sys/libc.ts'
import { MachineClock } from '../sys/machine-clock.ts'
import { Arena, BufferPool, viewAt } from '../sys/memory.ts'
import { Uring } from '../sys/uring.ts'
import { ChannelPort } from './message-port.ts'
import { Reactor } from './reactor.ts'
import type { ReactorOptions } from './thread.ts'
import { UringNetwork } from './uring-network.ts'

const ROUNDS_PER_TURN = 256
/** One round may complete thousands of I/Os, and messages of the control thread are not to wait for 256 such rounds. */
const TURN_US_MAX = 2000
/** How many whole turns of Node's loop a message of the control thread takes to arrive after its doorbell. */
const TURNS_OF_MESSAGE = 2
const SLEEP_US_MAX = 250_000
/** While a promise of user code is awaited, Node's own timers and sockets must be looked at this often. */
const AWAITED_SLEEP_US_MAX = 1000
const RING = { entries: 4096, completions: 16384 }

/** Builds a reactor from what the thread was started with, lets `build` put services on it, and runs it for ever. */
export function runReactor(build: (reactor: Reactor) => void): void {
  const options = workerData as ReactorOptions
  assert(parentPort, 'a reactor runs in a worker thread')
  applyLogSettings(options.log)

  const arena = new Arena(options.arenaBytes)
  const scratch = arena.allocate(128)
  if (options.cpu >= 0) stayOn(options.cpu, scratch)
  const ring = Uring.open(arena, RING)
  if (options.cpu >= 0) freeRingWorkers(ring, scratch)
  const clock = new MachineClock(arena)
  const network = new UringNetwork(ring, arena)
  const control = new ChannelPort(parentPort)
  const reactor = new Reactor({
    index: options.index,
    clock,
    network,
    arena,
    buffers: new BufferPool(arena),
    control,
    ring,
  })
  network.attach(reactor)
  control.on('reactor.ready', () => true)
  control.on('reactor.log', applyLogSettings)
  build(reactor)
  spin(reactor, ring, options)
}

/** Answers `reactor.stats`. Microseconds since the thread began to poll; asleep counts as idle. */
export interface ReactorStats {
  readonly busyUs: number
  readonly idleUs: number
  /** The kernel's number of the thread, as in `top -H`. */
  readonly tid: number
  readonly pollers: number
  readonly timers: number
}

function spin(reactor: Reactor, ring: Uring, { spinUs, doorbell }: ReactorOptions): void {
  const { clock } = reactor
  const startedUs = clock.nowUs()
  const tid = Number(readlinkSync('/proc/thread-self').split('/').at(-1))
  let busyUs = 0
  reactor.control.on('reactor.stats', (): ReactorStats => {
    return {
      busyUs,
      idleUs: clock.nowUs() - startedUs - busyUs,
      tid,
      pollers: reactor.pollerCount,
      timers: clock.pending,
    }
  })
  /** Node's loop gets these before the thread may block. */
  let turnsOwed = TURNS_OF_MESSAGE
  ringDoorbell(ring, doorbell, () => {
    turnsOwed = TURNS_OF_MESSAGE
  })
  const turn = (): void => {
    if (mayBlock()) {
      const sleepUsMax = reactor.awaited > 0 ? AWAITED_SLEEP_US_MAX : SLEEP_US_MAX
      const sleepUs = Math.min(clock.nextDueUs() - clock.nowUs(), sleepUsMax)
      if (sleepUs > 0) ring.wait(sleepUs)
      // User code makes its steps in Node's loop.
      if (reactor.awaited > 0) turnsOwed = TURNS_OF_MESSAGE
    } else if (turnsOwed > 0) turnsOwed--
    const turnUs = clock.nowUs()
    if (pollRounds(reactor, turnUs, spinUs) > 0) busyUs += clock.nowUs() - turnUs
    setImmediate(turn)
  }
  const mayBlock = (): boolean =>
    turnsOwed === 0 &&
    reactor.polled === 0 &&
    reactor.isQuiet &&
    clock.nowUs() - reactor.lastEventUs > patienceUs(reactor, spinUs)
  turn()
}

/**
 * The rounds of a turn that began at `turnUs`. Returns the number of events. Nothing else is in this function: what V8 assumes
 * of a turn is wrong now and then, and the loop of a million rounds a second would run unoptimised, boxing every time, with it.
 */
function pollRounds(reactor: Reactor, turnUs: number, spinUs: number): number {
  let events = 0
  for (let round = 0; round < ROUNDS_PER_TURN; round++) {
    const found = reactor.poll()
    events += found
    if (found === 0) {
      if (reactor.nowUs - reactor.lastEventUs > patienceUs(reactor, spinUs)) break
      if (reactor.offloaded > 0 || reactor.distant > 0) schedYield()
    }
    if (reactor.nowUs - turnUs > TURN_US_MAX) break
  }
  return events
}

/** How long it is worth to look for something in vain. */
const patienceUs = (reactor: Reactor, spinUs: number): number =>
  reactor.distant > 0 && reactor.polled === 0 ? -1 : spinUs

/** Keeps a poll on the doorbell armed: its event ends a sleep. */
function ringDoorbell(ring: Uring, doorbell: number, onRing: () => void): void {
  const token = ring.register({
    complete(result, flags) {
      assert(result >= 0, `the doorbell can be polled, instead of ${errnoName(-result)}`)
      onRing()
      if ((flags & CqeFlag.MORE) === 0) arm()
    },
  })
  const arm = (): void => ring.pollReadable(doorbell, token)
  arm()
}

function stayOn(cpu: number, scratch: number): void {
  const view = viewAt(scratch, 128)
  view.setUint8(cpu >> 3, 1 << (cpu & 7))
  const result = setAffinity(128, scratch)
  if (result < 0) {
    logger('reactor').warning(
      `cannot stay on processor ${cpu} (${new SysError('sched_setaffinity', -result).code}): running on any. ` +
        'Name processors that this process may use in the core mask (-m).',
    )
  }
}

/** The ring's worker threads inherit the reactor's processor: let them use the others, where the kernel does (before 6.2). */
function freeRingWorkers(ring: Uring, scratch: number): void {
  const view = viewAt(scratch, 128)
  for (let cpu = 0; cpu < Math.min(cpus().length, 1024); cpu++) {
    view.setUint8(cpu >> 3, view.getUint8(cpu >> 3) | (1 << (cpu & 7)))
  }
  ring.setWorkerAffinity(scratch, 128)
}
