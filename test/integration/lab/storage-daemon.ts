/** QEMU's storage daemon, serving a file as a vhost-user-blk disk: a back end that shares no line with this project. */
import { rmSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { Child } from './child.ts'
import { findProgram } from './packages.ts'
import { isListening } from './unix-socket.ts'

export interface StorageDaemonOptions {
  /** The file that it serves. */
  readonly image: string
  /** Where front ends connect. */
  readonly socket: string
  readonly queues: number
  readonly readOnly?: boolean
}

export class StorageDaemon {
  readonly #options: StorageDaemonOptions
  #child: Child | undefined

  constructor(options: StorageDaemonOptions) {
    this.#options = options
  }

  /** Starts it, again after `kill`, and waits until front ends may connect. */
  async start(): Promise<void> {
    const { image, socket, queues, readOnly = false } = this.#options
    // One that was killed leaves its socket behind.
    rmSync(socket, { force: true })
    const child = await Child.start(findProgram('qemu-storage-daemon')!, [
      '--blockdev',
      `driver=file,filename=${image},node-name=disk,discard=unmap,read-only=${readOnly ? 'on' : 'off'}`,
      '--export',
      `type=vhost-user-blk,id=export,node-name=disk,writable=${readOnly ? 'off' : 'on'},num-queues=${queues},addr.type=unix,addr.path=${socket}`,
    ])
    this.#child = child
    while (!isListening(socket)) {
      if (child.exit !== undefined) throw new Error(`the storage daemon ended at its start: ${child.output}`)
      await delay(5)
    }
  }

  signal(signal: NodeJS.Signals): void {
    this.#child!.signal(signal)
  }

  /** Ends it on the spot, as a crash would. */
  async kill(): Promise<void> {
    await this.#child?.end('SIGKILL')
    this.#child = undefined
  }
}
