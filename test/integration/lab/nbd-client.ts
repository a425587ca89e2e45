/** qemu-io on a device of a daemon, through an NBD export. */
import { join } from 'node:path'
import { Child } from './child.ts'
import type { Daemon } from './daemon.ts'
import { findProgram } from './packages.ts'

export class NbdClient {
  readonly #daemon: Daemon
  readonly #name: string
  #uri = ''

  constructor(daemon: Daemon, name: string) {
    this.#daemon = daemon
    this.#name = name
  }

  async start(): Promise<void> {
    const unix = join(this.#daemon.directory, `${this.#name}.sock`)
    const params = { bdev_name: this.#name, unix }
    this.#uri = (await this.#daemon.rpc<{ uri: string }>('nbd_export_start', params)).uri
  }

  /** The exit code: 1 when one of the commands failed. `abort` ends it without the flush that is its last otherwise. */
  async run(...commands: string[]): Promise<number | null> {
    const all = commands.flatMap(command => ['-c', command])
    const child = await Child.start(findProgram('qemu-io')!, [
      '-f',
      'raw',
      '-t',
      'writeback',
      ...all,
      this.#uri,
    ])
    return (await child.exited).code
  }
}
