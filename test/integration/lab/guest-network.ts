/**
 * A network namespace with what guests are plugged into. All of it is one network: what a guest sends is seen in the bridge.
 *
 *   br0 10.77.0.1/24 ─┬─ tap0          for --network tap=tap0
 *                     ├─ far ──veth── near         for --network macvtap=near
 *                     └─ taps of guests with --network bridge=br0
 */
import { execFile, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { Duplex } from 'node:stream'
import { promisify } from 'node:util'
import { findProgram } from './packages.ts'

/** Tests that make namespaces need the right to. */
export const CAN_MAKE_NETWORKS = process.getuid?.() === 0

export class GuestNetwork {
  readonly name = `qpair-net-${randomInt(1e6)}`

  /** The caller must `remove` it. */
  static async create(): Promise<GuestNetwork> {
    const network = new GuestNetwork()
    await ip('netns', 'add', network.name)
    await network.#ip('link', 'add', 'br0', 'type', 'bridge')
    await network.#ip('addr', 'add', '10.77.0.1/24', 'dev', 'br0')
    await network.#ip('link', 'add', 'near', 'type', 'veth', 'peer', 'name', 'far')
    await network.#run('ip', 'tuntap', 'add', 'dev', 'tap0', 'mode', 'tap')
    for (const port of ['tap0', 'far']) await network.#ip('link', 'set', port, 'master', 'br0')
    for (const each of ['lo', 'br0', 'near', 'far', 'tap0']) await network.#ip('link', 'set', each, 'up')
    return network
  }

  /** A program in the namespace is started by these words before its own. */
  get within(): string[] {
    return [findProgram('ip')!, 'netns', 'exec', this.name]
  }

  /** Throws when nobody answers. */
  async ping(address: string): Promise<void> {
    await this.#run('busybox', 'ping', '-c', '1', '-W', '60', address)
  }

  /** The port of the bridge behind which a card has sent something; undefined when none has. */
  async portOf(macAddress: string): Promise<string | undefined> {
    const learnt = await promisify(execFile)(findProgram('bridge')!, [
      '-n',
      this.name,
      'fdb',
      'show',
      'br',
      'br0',
    ])
    return new RegExp(`^${macAddress} dev (\\S+)`, 'm').exec(learnt.stdout)?.[1]
  }

  /** A connection to a port of the namespace's loopback. */
  connect(port: number): Duplex {
    const [first, ...rest] = [...this.within, findProgram('busybox')!, 'nc', '127.0.0.1', String(port)]
    const { stdin, stdout } = spawn(first!, rest, { stdio: ['pipe', 'pipe', 'ignore'] })
    return Duplex.from({ writable: stdin, readable: stdout })
  }

  async interfaces(): Promise<string[]> {
    const { stdout } = await ip('-n', this.name, '-json', 'link', 'show')
    return (JSON.parse(stdout) as { ifname: string }[]).map(({ ifname }) => ifname)
  }

  async remove(): Promise<void> {
    await ip('netns', 'del', this.name)
  }

  async #ip(...args: readonly string[]): Promise<void> {
    await ip('-n', this.name, ...args)
  }

  async #run(program: 'ip' | 'busybox', ...args: readonly string[]): Promise<void> {
    const [first, ...rest] = [...this.within, findProgram(program)!, ...args]
    await promisify(execFile)(first!, rest)
  }
}

const ip = (...args: readonly string[]): Promise<{ stdout: string }> =>
  promisify(execFile)(findProgram('ip')!, args)
