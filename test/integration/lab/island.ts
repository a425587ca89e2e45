/**
 * A network namespace that one address of this machine can be cut off from at a time, packets dropped in silence:
 *
 *   the rest of the machine ── .1 ──veth── .2 island       and a second address, on the loopback device: .5
 */
import { execFile } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { promisify } from 'node:util'
import { findProgram } from './packages.ts'

export class Island {
  readonly name: string
  /** Its own address. */
  readonly address: string
  /** From where it is reached. */
  readonly near: string
  /** For something else that it reaches, and that can be cut off by itself. */
  readonly far: string
  readonly #veth: string

  private constructor(net: string, id: string) {
    this.name = `qpair-${id}`
    this.#veth = `qp${id}`
    this.near = `${net}.1`
    this.address = `${net}.2`
    this.far = `${net}.5`
  }

  /** The caller must `remove` it. Takes root. */
  static async create(): Promise<Island> {
    const island = new Island(`10.${randomInt(64, 250)}.${randomInt(1, 250)}`, String(randomInt(1e6)))
    const { name, near, address, far } = island
    const veth = island.#veth
    await ip('netns', 'add', name)
    await ip('link', 'add', veth, 'type', 'veth', 'peer', 'name', 'veth0', 'netns', name)
    await ip('addr', 'add', `${near}/30`, 'dev', veth)
    await ip('addr', 'add', `${far}/32`, 'dev', 'lo')
    await ip('link', 'set', veth, 'up')
    await ip('-n', name, 'link', 'set', 'lo', 'up')
    await ip('-n', name, 'addr', 'add', `${address}/30`, 'dev', 'veth0')
    await ip('-n', name, 'link', 'set', 'veth0', 'up')
    await ip('-n', name, 'route', 'add', 'default', 'via', near)
    return island
  }

  /** A program on the island is started by these words before its own. */
  get within(): string[] {
    return [findProgram('ip')!, 'netns', 'exec', this.name]
  }

  /** What the island sends to that address gets lost. */
  async cut(address: string): Promise<void> {
    await ip('-n', this.name, 'route', 'add', 'blackhole', `${address}/32`)
  }

  async heal(address: string): Promise<void> {
    await ip('-n', this.name, 'route', 'del', 'blackhole', `${address}/32`)
  }

  async remove(): Promise<void> {
    await ip('addr', 'del', `${this.far}/32`, 'dev', 'lo')
    await ip('link', 'del', this.#veth)
    await ip('netns', 'del', this.name)
  }
}

async function ip(...args: readonly string[]): Promise<void> {
  await promisify(execFile)(findProgram('ip')!, args)
}
