/** A Unix socket on which one program, started afterwards, connects to the test and talks in lines of text. */
import { once } from 'node:events'
import { createServer, type Server, type Socket } from 'node:net'

export class LineSocket {
  readonly #server: Server
  readonly #socket: Promise<Socket>
  readonly #onLine: (line: string) => void
  #rest = ''

  private constructor(server: Server, onLine: (line: string) => void) {
    this.#server = server
    this.#onLine = onLine
    this.#socket = new Promise(resolve => {
      server.once('connection', socket => {
        socket.setEncoding('utf8').on('data', text => this.#receive(String(text)))
        // The program's end is seen by its exit; a reset connection says nothing more.
        socket.on('error', () => {})
        resolve(socket)
      })
    })
  }

  static async listen(path: string, onLine: (line: string) => void): Promise<LineSocket> {
    const server = createServer()
    const lines = new LineSocket(server, onLine)
    server.listen(path)
    await once(server, 'listening')
    return lines
  }

  async send(line: string): Promise<void> {
    ;(await this.#socket).write(`${line}\n`)
  }

  close(): void {
    this.#server.close()
    void this.#socket.then(socket => socket.destroy())
  }

  #receive(text: string): void {
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop()!
    lines.forEach(this.#onLine)
  }
}
