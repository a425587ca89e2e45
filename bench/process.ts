/** Programs that a benchmark starts and ends: our own daemon, the floor, peers, fio. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { connect, type RpcClient } from '../src/rpc/client.ts'

/** The project's folder, from where `tsc` has put this file. */
export const ROOT = fileURLToPath(new URL('../../../..', import.meta.url))

export class Program {
  readonly #child: ChildProcess
  readonly #exited: Promise<void>
  output = ''

  constructor(command: string, args: readonly string[], cpu = -1, env: NodeJS.ProcessEnv = {}) {
    const [program, ...rest] = cpu < 0 ? [command, ...args] : ['taskset', '-c', String(cpu), command, ...args]
    this.#child = spawn(program!, rest, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    })
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      stream.on('data', chunk => {
        this.output += chunk
      })
    }
    this.#exited = new Promise(resolve => this.#child.once('exit', () => resolve()))
  }

  get pid(): number {
    return this.#child.pid!
  }

  /** Polls until the condition holds or the program has ended. */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.#child.exitCode !== null) throw new Error(`${this.#child.spawnargs.join(' ')}: ${this.output}`)
      await new Promise(resolve => setTimeout(resolve, 10))
    }
  }

  /** Stops a program that polls, so that it does not compete with another on the same processor. */
  pause(): void {
    this.#child.kill('SIGSTOP')
  }

  resume(): void {
    this.#child.kill('SIGCONT')
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    if (this.#child.exitCode === null) this.#child.kill(signal)
    await this.#exited
  }
}

/** One `qpair serve`, with its client. */
export class Daemon {
  readonly program: Program
  readonly client: RpcClient<[]>

  private constructor(program: Program, client: RpcClient<[]>) {
    this.program = program
    this.client = client
  }

  static async start(directory: string, name: string, args: readonly string[]): Promise<Daemon> {
    const socket = join(directory, `${name}.sock`)
    const launcher = join(ROOT, 'bin/qpair.js')
    const program = new Program(process.execPath, ['--trace-gc', launcher, 'serve', '-r', socket, ...args])
    await program.until(() => existsSync(socket))
    return new Daemon(program, await connect<[]>(socket, { retries: 50 }))
  }

  call<T = unknown>(method: string, params?: object): Promise<T> {
    return this.client.request(method, params) as Promise<T>
  }

  /** Collections of all threads since the start, by `--trace-gc`. */
  get collections(): number {
    return this.program.output.match(/ms: (?:Scavenge|Mark-Compact)/g)?.length ?? 0
  }

  async stop(): Promise<void> {
    this.client.close()
    await this.program.stop()
  }
}

/** Processor time of all threads of a process so far, in seconds: by the scheduler, which counts in nanoseconds. */
export function cpuSeconds(pid: number): number {
  const tasks = `/proc/${pid}/task`
  return readdirSync(tasks).reduce(
    (sum, task) => sum + Number(readFileSync(`${tasks}/${task}/schedstat`, 'utf8').split(' ')[0]) / 1e9,
    0,
  )
}

/** Resident memory of a process, in MiB. */
export function residentMiB(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024
}

export function hasProgram(name: string): boolean {
  return (process.env['PATH'] ?? '').split(':').some(folder => existsSync(join(folder, name)))
}

/** What fio measured: I/Os a second, and the 99th percentile in microseconds. */
export function fio(args: readonly string[], cpu: number): { iops: number; p99Us: number } {
  const text = execFileSync('taskset', ['-c', String(cpu), 'fio', '--output-format=json', ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  // Some engines print a line of their own before the report.
  const { jobs } = JSON.parse(text.slice(text.indexOf('{')))
  const side = jobs[0].read.total_ios > 0 ? jobs[0].read : jobs[0].write
  return { iops: side.iops, p99Us: side.clat_ns.percentile['99.000000'] / 1000 }
}
