/** A shell on the serial port of a guest: what a person would type at `qpair vm console`. */
import { once } from 'node:events'
import { createConnection, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { READY } from '../../../src/vm/lab/guest-files.ts'

const TIMEOUT_MS = 120_000

export class SerialShell {
  text = ''
  readonly #socket: Socket

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.setEncoding('utf8').on('data', piece => {
      this.text += String(piece)
    })
    socket.on('error', () => {})
  }

  /** Connects to the guest's port while it boots, and waits until its shell has greeted. */
  static async open(path: string): Promise<SerialShell> {
    const shell = await SerialShell.reopen(path)
    await shell.until(READY, 0)
    // Behind its own greeting.
    await shell.run('true')
    return shell
  }

  /** Connects to the port of a guest whose shell waits. */
  static async reopen(path: string): Promise<SerialShell> {
    const socket = createConnection(path)
    await once(socket, 'connect')
    return new SerialShell(socket)
  }

  /** Runs a command; answers what it prints. */
  async run(command: string): Promise<string> {
    const from = this.text.length
    // The echo of what is typed must not look like its end.
    this.#socket.write(`${command}; echo DO''NE-$?\n`)
    const end = await this.until(/DONE-(\d+)/, from)
    const [echo, ...lines] = this.text.slice(from, end).replaceAll('\r', '').split('\n')
    if (echo === undefined) throw new Error(`the guest has not echoed ${command}`)
    return lines.join('\n').trim()
  }

  /** Waits for a text behind a place; answers where it begins. */
  async until(wanted: string | RegExp, from: number): Promise<number> {
    const deadlineMs = Date.now() + TIMEOUT_MS
    for (;;) {
      const behind = this.text.slice(from)
      const at = typeof wanted === 'string' ? behind.indexOf(wanted) : behind.search(wanted)
      if (at >= 0) return from + at
      if (Date.now() > deadlineMs) throw new Error(`no ${wanted} from the guest:\n${behind.slice(-2000)}`)
      await delay(20)
    }
  }

  close(): void {
    this.#socket.destroy()
  }
}
