/**
 * A guest's serial port on this terminal: what is typed goes to the guest as it is, Ctrl-C too, and what it writes comes here.
 * Ctrl-] is not for the guest, as in virsh console.
 */
import { once } from 'node:events'
import { createConnection, type Socket } from 'node:net'
import type { ReadStream, WriteStream } from 'node:tty'
import { RpcError } from '../core/errors.ts'

/** Ctrl-]. */
export const ESCAPE = 0x1d

export type Input = Pick<ReadStream, 'on' | 'off' | 'resume' | 'pause' | 'isTTY' | 'setRawMode'>
export type Output = Pick<WriteStream, 'write'>

export interface ConsoleOptions {
  readonly input: Input
  readonly output: Output
  /** Whether a key that is typed is for somebody else than the guest. */
  readonly takesKey: (key: number) => boolean
  /** Hears what the guest writes before it is shown. */
  readonly onOutput?: (text: string) => void
  /** Nothing more can be typed: the input was a file or a pipe. */
  readonly onInputEnd?: () => void
}

export class Console {
  /** Resolves when the guest has closed its port: it has ended. */
  readonly closed: Promise<void>
  readonly #socket: Socket
  readonly #options: ConsoleOptions
  readonly #take = (chunk: Buffer): void => this.#type(chunk)
  readonly #inputEnds = (): void => this.#options.onInputEnd?.()

  private constructor(socket: Socket, options: ConsoleOptions) {
    this.#socket = socket
    this.#options = options
    this.closed = new Promise(resolve => socket.once('close', () => resolve()))
    // A reset connection has nothing to say that its end does not.
    socket.on('error', () => {})
    socket.on('data', (chunk: Buffer) => {
      options.onOutput?.(chunk.toString('utf8'))
      options.output.write(chunk)
    })
  }

  /** Shows what the guest writes; `listen` lets it be typed to. Throws `RpcError` when nobody is there. */
  static async open(path: string, options: ConsoleOptions): Promise<Console> {
    const socket = createConnection(path)
    try {
      await once(socket, 'connect')
    } catch (cause) {
      throw new RpcError('ECONNREFUSED', `the guest's console ${path}: ${(cause as Error).message}`, {
        cause,
      })
    }
    return new Console(socket, options)
  }

  listen(): void {
    const { input } = this.#options
    if (input.isTTY) input.setRawMode(true)
    input.on('data', this.#take)
    input.on('end', this.#inputEnds)
    input.resume()
  }

  /** Types for the user. */
  send(text: string): void {
    this.#socket.write(text)
  }

  /** Gives the terminal back as it was. */
  close(): void {
    const { input } = this.#options
    input.off('data', this.#take)
    input.off('end', this.#inputEnds)
    if (input.isTTY) input.setRawMode(false)
    input.pause()
    this.#socket.destroy()
  }

  #type(chunk: Buffer): void {
    const forGuest = chunk.filter(key => !this.#options.takesKey(key))
    if (forGuest.length > 0) this.#socket.write(forGuest)
  }
}

/** Until Ctrl-], or until the guest has ended; resolves with whether it has. */
export async function attachConsole(path: string, input: Input, output: Output): Promise<boolean> {
  let leave = (): void => {}
  const left = new Promise<boolean>(resolve => {
    leave = () => resolve(false)
  })
  const console = await Console.open(path, {
    input,
    output,
    takesKey: key => {
      if (key === ESCAPE) leave()
      return key === ESCAPE
    },
    onInputEnd: () => leave(),
  })
  try {
    console.listen()
    return await Promise.race([left, console.closed.then(() => true)])
  } finally {
    console.close()
  }
}
