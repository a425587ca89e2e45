/** Reactors as threads, from the control thread's side. */
import { setFlagsFromString } from 'node:v8'
import { Worker } from 'node:worker_threads'
import { assert } from '../core/assert.ts'
import { currentLogSettings, type LogSettings } from '../core/log.ts'
import { close, eventfd, write } from '../sys/libc.ts'
import { mapAnonymous, viewAt } from '../sys/memory.ts'
import type { ReactorGroup } from './group.ts'
import { ChannelPort, reviveThrown } from './message-port.ts'
import type { Port } from './port.ts'

/** Where a reactor allocates, in MiB: resident once the reactor has been busy. */
const NURSERY_MIB = 32

/** What a reactor thread is started with; `runReactor` reads it. */
export interface ReactorOptions {
  readonly index: number
  /** The processor to stay on, -1 for any. */
  readonly cpu: number
  /** The eventfd that wakes the reactor when it sleeps in its ring. */
  readonly doorbell: number
  /** How long to poll in vain before sleeping, in microseconds. */
  readonly spinUs: number
  /** Address space for buffers and rings, in bytes; touched only as it is used. */
  readonly arenaBytes: number
  readonly log: LogSettings
  /** For what is built on the reactor: the application's own. */
  readonly application: unknown
}

export interface ThreadsOptions {
  /** The module each thread runs: it calls `runReactor`. Compiled: Node 20 runs no TypeScript in a worker. */
  readonly entry: URL
  /** One reactor an element: the processor it stays on, or -1. */
  readonly cpus: readonly number[]
  readonly spinUs: number
  readonly arenaBytes: number
  readonly application: unknown
  /** A reactor died: its state, and so the daemon's, is lost. */
  onFailure(index: number, error: Error): void
}

interface ReactorThread {
  readonly worker: Worker
  readonly port: Port
  readonly doorbell: number
}

export class ReactorThreads implements ReactorGroup {
  /** The processor each reactor stays on, -1 for any. */
  readonly cpus: readonly number[]
  readonly #threads: readonly ReactorThread[]

  private constructor(threads: readonly ReactorThread[], cpus: readonly number[]) {
    this.#threads = threads
    this.cpus = cpus
  }

  /** Throws what a reactor has against starting, a `SysError` where the system refuses it; then none of them is left. */
  static async start(options: ThreadsOptions): Promise<ReactorThreads> {
    // A reactor's garbage is a few boxed addresses an I/O, none of which survives. V8 sizes its nursery by survivors, so
    // by itself it would stay at 1 MiB and be collected dozens of times a second. For threads that start from here on.
    setFlagsFromString(`--min-semi-space-size=${NURSERY_MIB}`)
    const one = mapAnonymous(4096)
    viewAt(one, 8).setUint32(0, 1, true)
    let fail: (index: number, error: Error) => void = () => {}
    const failed = new Promise<never>((_, reject) => {
      fail = (_index, error) => reject(reviveThrown(error))
    })
    const threads = options.cpus.map((cpu, index): ReactorThread => {
      const doorbell = eventfd()
      assert(doorbell >= 0, 'an eventfd can be had')
      const data: ReactorOptions = {
        index,
        cpu,
        doorbell,
        spinUs: options.spinUs,
        arenaBytes: options.arenaBytes,
        log: currentLogSettings(),
        application: options.application,
      }
      const worker = new Worker(options.entry, {
        workerData: data,
        name: `reactor_${index}`,
        // V8 counts three semi-spaces.
        resourceLimits: { maxYoungGenerationSizeMb: NURSERY_MIB * 3 },
      })
      worker.on('error', error => fail(index, error as Error))
      const port = new ChannelPort(worker, () => write(doorbell, one, 8))
      return { worker, port, doorbell }
    })
    const group = new ReactorThreads(threads, options.cpus)
    try {
      await Promise.race([group.broadcast('reactor.ready', null), failed])
    } catch (error) {
      await group.stop()
      throw error
    }
    fail = options.onFailure
    return group
  }

  get count(): number {
    return this.#threads.length
  }

  port(index: number): Port {
    const thread = this.#threads[index]
    assert(thread, `reactor ${index} is one of ${this.count}`)
    return thread.port
  }

  broadcast<T = unknown>(topic: string, body: unknown): Promise<T[]> {
    return Promise.all(this.#threads.map(thread => thread.port.call<T>(topic, body)))
  }

  /** Ends every thread. What they served must have been stopped before. */
  async stop(): Promise<void> {
    await Promise.all(this.#threads.map(thread => thread.worker.terminate()))
    for (const thread of this.#threads) close(thread.doorbell)
  }
}
