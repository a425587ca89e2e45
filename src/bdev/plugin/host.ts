/** The control thread's side of a user's module: its thread, and what it says. */
import { Worker } from 'node:worker_threads'
import { RpcError } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import type { PluginOptions } from './disk.ts'
import { Lanes } from './lanes.ts'
import type { DiskDescription, ThreadData, ThreadMessage } from './thread.ts'

const log = logger('bdev')

const LOAD_TIMEOUT_MS = 30_000
const CLOSE_TIMEOUT_MS = 2000
/** Lines about failures of one module in `LOG_PAUSE_MS`, so that a module that always fails does not fill the log. */
const LINES_MAX = 10
const LOG_PAUSE_MS = 10_000

export class PluginThread {
  readonly path: string
  readonly memory: SharedArrayBuffer
  /** Called when the thread ends by itself. */
  onDeath: () => void = () => {}
  readonly #worker: Worker
  readonly #lanes: Lanes
  /** Its end would be news: it is neither being loaded nor being closed. */
  #isServing = false
  #lines = 0
  #linesSince = 0

  private constructor(path: string, options: PluginOptions) {
    this.path = path
    this.memory = Lanes.create()
    this.#lanes = new Lanes(this.memory)
    const workerData: ThreadData = { path, options, lanes: this.memory }
    const entry = new URL('./thread.js', import.meta.url)
    this.#worker = new Worker(entry, { workerData, name: `plugin ${path}`, execArgv: [] })
    this.#worker.on('error', error => this.#say(`its thread failed: ${(error as Error).message}`))
    this.#worker.on('exit', code => this.#ended(code))
  }

  /**
   * Loads the module in a thread of its own and resolves with what it is. Throws `RpcError` EINVAL when it cannot be
   * loaded or is neither a disk nor a driver.
   */
  static async start(
    path: string,
    options: PluginOptions,
  ): Promise<{ thread: PluginThread; found: DiskDescription | 'driver' }> {
    const thread = new PluginThread(path, options)
    try {
      return { thread, found: await thread.#loaded() }
    } catch (error) {
      await thread.#worker.terminate()
      throw error
    }
  }

  /** Lets the module close what it has open, then ends the thread. Nothing may be outstanding. */
  async close(): Promise<void> {
    this.#isServing = false
    const closed = new Promise<void>(resolve => {
      const timer = setTimeout(resolve, CLOSE_TIMEOUT_MS)
      const end = (): void => {
        clearTimeout(timer)
        resolve()
      }
      this.#worker.once('exit', end)
      this.#worker.on('message', (message: ThreadMessage) => {
        if (message.kind === 'closed') end()
      })
    })
    this.#worker.postMessage('close')
    await closed
    await this.#worker.terminate()
    this.#lanes.close()
  }

  #loaded(): Promise<DiskDescription | 'driver'> {
    const refuse = (why: string): RpcError =>
      new RpcError('EINVAL', `the plugin ${this.path} cannot be used: ${why}`)
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => reject(refuse(`it did not load within ${LOAD_TIMEOUT_MS / 1000} s`)),
        LOAD_TIMEOUT_MS,
      )
      this.#worker.once('exit', code =>
        reject(refuse(`its thread ended with code ${code} while it was loaded`)),
      )
      this.#worker.on('message', (message: ThreadMessage) => {
        clearTimeout(timer)
        if (message.kind === 'disk') {
          this.#isServing = true
          resolve(message.description)
        } else if (message.kind === 'driver') resolve('driver')
        else if (message.kind === 'refused') reject(refuse(message.why))
        else if (message.kind === 'failed') this.#say(message.why)
      })
    })
  }

  #ended(code: number): void {
    if (!this.#isServing) return
    this.#say(
      `its thread ended with code ${code}: every I/O fails until the device is deleted and created again`,
    )
    this.#lanes.setDead()
    this.onDeath()
  }

  #say(why: string): void {
    const now = Date.now()
    if (now - this.#linesSince > LOG_PAUSE_MS) {
      this.#linesSince = now
      this.#lines = 0
    }
    this.#lines++
    if (this.#lines <= LINES_MAX) log.error(`plugin ${this.path}: ${why}`)
    if (this.#lines === LINES_MAX) log.error(`plugin ${this.path}: says no more for ${LOG_PAUSE_MS / 1000} s`)
  }
}
