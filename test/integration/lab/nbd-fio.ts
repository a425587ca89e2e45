/** fio on a device that a daemon exports over NBD: reads back each of its writes, and ends at the first wrong byte or error. */
import { expect } from 'vitest'
import { Child } from './child.ts'
import type { Daemon } from './daemon.ts'
import { Gateway } from './gateway.ts'
import { eventually, FIO_INTERRUPTED, type FioReport } from './linux-host.ts'
import { findProgram } from './packages.ts'

const LOAD = '--rw=randwrite --bs=4k --size=16m --time_based --runtime=3600'
const CHECK = '--verify=crc32c --verify_fatal=1 --verify_backlog=64 --verify_state_save=0'

export class NbdFio {
  readonly #daemon: Daemon
  readonly #bdev: string
  readonly #child: Child

  private constructor(daemon: Daemon, bdev: string, child: Child) {
    this.#daemon = daemon
    this.#bdev = bdev
    this.#child = child
  }

  /** `uri`: of the device's export. The caller must `stop` or `discard` it. */
  static async start(daemon: Daemon, bdev: string, uri: string, options: string): Promise<NbdFio> {
    const how = ['--name=load', '--ioengine=nbd', `--uri=${uri}`, '--output-format=json']
    const args = [...how, ...`${LOAD} ${CHECK} ${options}`.split(' ')]
    return new NbdFio(daemon, bdev, await Child.start(findProgram('fio')!, args))
  }

  /** Waits until a good number of I/Os have been started after now and have ended. */
  async progress(count: number): Promise<void> {
    const before = await this.#completed()
    await eventually(() => this.#completed()).toBeGreaterThan(before + count)
  }

  /** Ends it; fails if there was an error or a wrong byte. */
  async stop(): Promise<void> {
    const { code } = await this.#child.end('SIGINT')
    const { output } = this.#child
    expect(code, output).toBe(FIO_INTERRUPTED)
    const report = JSON.parse(output.slice(output.indexOf('{'), output.lastIndexOf('}') + 1)) as FioReport
    expect(report.jobs[0].error, output).toBe(0)
    expect(report.jobs[0].read.total_ios, 'I/Os read back').toBeGreaterThan(0)
  }

  /** Ends it, whatever it has found. */
  async discard(): Promise<void> {
    await this.#child.end('SIGKILL')
  }

  #completed(): Promise<number> {
    if (this.#child.exit !== undefined) throw new Error(`fio ended: ${this.#child.output}`)
    return new Gateway(this.#daemon).completed(this.#bdev)
  }
}
