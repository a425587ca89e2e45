/** A shell on the serial port of a guest: what a person would type at `qpair vm console`. */
import { once } from 'node:events'
import { createConnection, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { READY } from '../../../src/vm/lab/guest-files.ts'

const TIMEOUT_MS = 120_000

export class SerialShell {
  text = ''
  readonly #socket: Socket
  #commands = 0

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

  /**
   * Runs a command; answers what it prints. The terminal echoes what is typed, once or, when the shell was not yet
   * at its prompt, twice: so the output is what stands between two lines that only the shell can print.
   */
  async run(command: string): Promise<string> {
    const from = this.text.length
    const number = ++this.#commands
    this.#socket.write(`echo BE''GIN-${number}; ${command}; echo DO''NE-${number}\n`)
    const end = await this.until(`DONE-${number}`, from)
    const begin = `BEGIN-${number}`
    return this.text
      .slice(this.text.indexOf(begin, from) + begin.length, end)
      .replaceAll('\r', '')
      .trim()
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
