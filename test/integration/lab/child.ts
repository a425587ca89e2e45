/** A program under test: its output is kept for failures, and it never outlives the process that started it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { findProgram } from './packages.ts'

/** How a process ended: by itself with a code, or by a signal. */
export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

/** How much of a program's output is kept, in characters, counted from its end. */
const OUTPUT_MAX = 1 << 18

/** How long a program may take to end on a polite signal before it is killed. */
const GRACE_MS = 60_000

export class Child {
  readonly pid: number
  /** Settles when the process has ended and all its output has arrived. */
  readonly exited: Promise<Exit>
  readonly #process: ChildProcess
  #output = ''
  #exit: Exit | undefined

  private constructor(process: ChildProcess, pid: number) {
    this.#process = process
    this.pid = pid
    for (const stream of [process.stdout!, process.stderr!]) {
      stream.setEncoding('utf8').on('data', text => {
        this.#output = (this.#output + text).slice(-OUTPUT_MAX)
      })
    }
    this.exited = once(process, 'close').then(([code, signal]) => {
      this.#exit = { code, signal }
      return this.#exit
    })
  }

  /**
   * Starts a program. setpriv(1) asks the kernel to kill it when this process dies, however that happens, and then
   * becomes the program, so that the process id is the program's own.
   */
  static async start(program: string, args: readonly string[], env = process.env): Promise<Child> {
    const setpriv = findProgram('setpriv')
    if (setpriv === undefined) throw new Error('setpriv is missing: apt-get install util-linux')
    const child = spawn(setpriv, ['--pdeathsig', 'KILL', '--', program, ...args], {
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    await once(child, 'spawn')
    return new Child(child, child.pid!)
  }

  /** What the program wrote to both of its output streams, the latest part. */
  get output(): string {
    return this.#output
  }

  /** How it ended, or undefined while it runs. */
  get exit(): Exit | undefined {
    return this.#exit
  }

  /** Sends a signal and waits for nothing: for SIGSTOP, SIGCONT, SIGHUP. */
  signal(signal: NodeJS.Signals): void {
    if (this.#exit === undefined) this.#process.kill(signal)
  }

  /** Ends the process with a signal and waits until it is gone; one that ignores the signal is killed. */
  async end(signal: NodeJS.Signals): Promise<Exit> {
    this.signal(signal)
    const killer = setTimeout(() => this.signal('SIGKILL'), GRACE_MS)
    try {
      return await this.exited
    } finally {
      clearTimeout(killer)
    }
  }
}
