/** The daemon under test, as users run it: `node bin/qpair.js serve`, in a process and a directory of its own. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Child, type Exit } from './child.ts'
import { call, RpcFailure } from './json-rpc.ts'

const QPAIR = fileURLToPath(new URL('../../../bin/qpair.js', import.meta.url))

/** After which time a daemon that does not listen counts as hung. */
const TIMEOUT_MS = 120_000

export interface DaemonOptions {
  /** Further arguments of `qpair serve`. */
  readonly args?: readonly string[]
  /** Environment variables to add. */
  readonly env?: Readonly<Record<string, string>>
  /** The script to run in place of qpair's launcher. */
  readonly script?: string
  /** A program, with arguments, that becomes the daemon: it runs what follows. */
  readonly within?: readonly string[]
}

/** Starts a daemon and waits until it answers. The caller must `stop` it. */
export async function startDaemon(options: DaemonOptions = {}): Promise<Daemon> {
  const daemon = new Daemon(options)
  try {
    await daemon.start()
  } catch (error) {
    await daemon.discard()
    throw error
  }
  return daemon
}

export class Daemon {
  /** A directory that lives as long as the daemon, also for the files of the test. */
  readonly directory = mkdtempSync(join(tmpdir(), 'qpair-daemon-'))
  /** Its JSON-RPC socket. */
  readonly socket = join(this.directory, 'rpc.sock')
  /** Where it keeps its state from one start to the next. */
  readonly state = join(this.directory, 'state')
  readonly #options: DaemonOptions
  #child: Child | undefined

  constructor(options: DaemonOptions) {
    this.#options = options
    mkdirSync(this.state)
  }

  get pid(): number {
    return this.#running().pid
  }

  /** What it has written since its last start, to both of its output streams. */
  get output(): string {
    return this.#child?.output ?? ''
  }

  /** How it ended, or undefined while it runs. */
  get exit(): Exit | undefined {
    return this.#child?.exit
  }

  /** Starts it, again after `kill`, on the same socket and state, and waits until it answers. */
  async start(): Promise<void> {
    const { args = [], env = {}, script = QPAIR, within = [] } = this.#options
    const serve = [script, 'serve', '-r', this.socket, '--state', this.state, ...args]
    const [program, ...rest] = [...within, process.execPath, ...serve]
    this.#child = await Child.start(program!, rest, { ...process.env, ...env })
    const deadlineMs = Date.now() + TIMEOUT_MS
    while (!(await this.#answers())) {
      if (this.exit !== undefined) throw this.#failure(`the daemon ended at its start, ${told(this.exit)}`)
      if (Date.now() > deadlineMs) throw this.#failure(`the daemon does not answer after ${TIMEOUT_MS} ms`)
      await delay(10)
    }
  }

  /** Calls a method; an error of the daemon's rejects as `RpcFailure`, with its code and message. */
  async rpc<T = unknown>(method: string, params?: unknown): Promise<T> {
    try {
      return await call<T>(this.socket, method, params)
    } catch (error) {
      if (error instanceof RpcFailure) throw error
      const end = this.exit === undefined ? '' : `; the daemon ended, ${told(this.exit)}`
      throw this.#failure(`${method}: ${(error as Error).message}${end}`)
    }
  }

  /** Sends a signal and waits for nothing: for SIGSTOP, SIGCONT, SIGHUP. */
  signal(signal: NodeJS.Signals): void {
    this.#running().signal(signal)
  }

  /** Ends the process, by SIGKILL unless told otherwise, and keeps socket and state for another `start`. */
  kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<Exit> {
    return this.#running().end(signal)
  }

  /** Ends the process with a signal and starts it again. One that is asked to end and does not do so cleanly is an error. */
  async restart(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    const exit = await this.kill(signal)
    if (signal === 'SIGTERM' && exit.code !== 0)
      throw this.#failure(`asked to end, the daemon ended ${told(exit)}`)
    await this.start()
  }

  /** Ends the daemon as an administrator would, and removes its files. One that does not end cleanly is an error. */
  async stop(): Promise<void> {
    const ended = this.exit
    const exit = ended ?? (await this.kill('SIGTERM'))
    await this.discard()
    if (ended === undefined && exit.code !== 0)
      throw this.#failure(`asked to end, the daemon ended ${told(exit)}`)
  }

  /** Ends the daemon by force, if it still runs, and removes its files. */
  async discard(): Promise<void> {
    await this.#child?.end('SIGKILL')
    rmSync(this.directory, { recursive: true, force: true })
  }

  async #answers(): Promise<boolean> {
    try {
      await call(this.socket, 'spdk_get_version')
      return true
    } catch (error) {
      // Until it listens there is no socket, or one left by a process that was killed.
      if (error instanceof RpcFailure) throw error
      return false
    }
  }

  #running(): Child {
    if (this.#child === undefined) throw new Error('the daemon has not been started')
    return this.#child
  }

  #failure(message: string): Error {
    return new Error(`${message}\nThe daemon's output:\n${this.output}`)
  }
}

const told = ({ code, signal }: Exit): string => (signal === null ? `with code ${code}` : `by ${signal}`)
