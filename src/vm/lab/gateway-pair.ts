/** Two gateways over the same images, as one would run them on two machines. */
import { join } from 'node:path'
import { DaemonProcess, freePort, openGateway } from './daemon-process.ts'

export const LAB_NQN = 'nqn.2026-11.io.qpair:lab'

export class GatewayPair {
  readonly ports: readonly number[]
  readonly #directory: string
  readonly #daemons: DaemonProcess[] = []

  private constructor(directory: string, ports: readonly number[]) {
    this.#directory = directory
    this.ports = ports
  }

  static async start(directory: string, images: readonly string[]): Promise<GatewayPair> {
    const pair = new GatewayPair(directory, [await freePort(), await freePort()])
    try {
      for (const [index, port] of pair.ports.entries()) {
        await pair.start(index)
        const { client } = pair.#daemons[index]!
        await openGateway(client, { nqn: LAB_NQN, serialNumber: 'QPAIRLAB', images, port, index })
      }
      return pair
    } catch (error) {
      await pair.stop()
      throw error
    }
  }

  name(index: number): string {
    return 'AB'[index]!
  }

  isRunning(index: number): boolean {
    return this.#daemons[index]!.isRunning
  }

  /** With all that it served before, if it was killed. */
  async start(index: number): Promise<void> {
    const base = join(this.#directory, this.name(index))
    this.#daemons[index] = await DaemonProcess.start(`${base}.sock`, base, { detached: true })
  }

  async kill(index: number): Promise<void> {
    await this.#daemons[index]!.end('SIGKILL')
  }

  async stop(): Promise<void> {
    await Promise.all(this.#daemons.map(daemon => daemon.end('SIGTERM')))
  }
}
