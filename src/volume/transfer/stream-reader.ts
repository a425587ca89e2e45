/** A socket whose bytes are asked for by count. */
import type { Socket } from 'node:net'

export class StreamReader {
  readonly #chunks: Buffer[] = []
  #size = 0
  #error: Error | undefined
  #wanted = 0
  #wake: () => void = () => {}

  constructor(socket: Socket) {
    socket.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#size += chunk.length
      if (this.#size >= this.#wanted) this.#wake()
    })
    const end = (error: Error): void => {
      this.#error ??= error
      this.#wake()
    }
    socket.on('error', end)
    socket.on('close', () => end(new Error('the server has closed the connection')))
  }

  /** The next `count` bytes. Throws what ended the connection. One caller at a time. */
  async read(count: number): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(count)
    await this.readInto(bytes)
    return bytes
  }

  async readInto(target: Buffer): Promise<void> {
    while (this.#size < target.length) {
      if (this.#error !== undefined) throw this.#error
      this.#wanted = target.length
      await new Promise<void>(resolve => {
        this.#wake = resolve
      })
    }
    for (let done = 0; done < target.length; ) {
      const chunk = this.#chunks[0]!
      const part = Math.min(chunk.length, target.length - done)
      chunk.copy(target, done, 0, part)
      done += part
      this.#size -= part
      if (part === chunk.length) this.#chunks.shift()
      else this.#chunks[0] = chunk.subarray(part)
    }
  }
}
