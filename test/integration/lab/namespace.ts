/**
 * A mount namespace of its own: what is mounted in it is nowhere else, and goes with it. If asked for, also a network with
 * nothing but its loopback device, where every port is free.
 */
import { execFile } from 'node:child_process'
import { readdirSync, readlinkSync } from 'node:fs'
import { promisify } from 'node:util'
import { Child } from './child.ts'
import { findProgram } from './packages.ts'

/** Tests that mount need the right to. */
export const CAN_MOUNT = process.getuid?.() === 0

export class MountNamespace {
  readonly #anchor: Child
  readonly #hasNetwork: boolean

  private constructor(anchor: Child, hasNetwork: boolean) {
    this.#anchor = anchor
    this.#hasNetwork = hasNetwork
  }

  static async open({ network = false } = {}): Promise<MountNamespace> {
    const kinds = ['--mount', '--propagation', 'private', ...(network ? ['--net'] : [])]
    const words = [...kinds, 'sh', '-c', 'echo ready; exec sleep 100000']
    const anchor = await Child.start(findProgram('unshare')!, words)
    while (!anchor.output.includes('ready')) {
      if (anchor.exit !== undefined) throw new Error(`unshare: ${anchor.output}`)
      await new Promise(setImmediate)
    }
    const space = new MountNamespace(anchor, network)
    if (network) await space.run('ip', 'link', 'set', 'lo', 'up')
    return space
  }

  /** What becomes the program behind these words, within the namespace. */
  get enter(): readonly string[] {
    const kinds = ['-m', ...(this.#hasNetwork ? ['-n'] : [])]
    return [findProgram('nsenter')!, '-t', String(this.#anchor.pid), ...kinds]
  }

  /** Runs a program in the namespace and resolves with what it printed. */
  async run(program: string, ...args: readonly string[]): Promise<string> {
    const [nsenter, ...rest] = this.enter
    const { stdout } = await promisify(execFile)(nsenter!, [...rest, program, ...args], {
      maxBuffer: 1 << 26,
    })
    return stdout
  }

  /** Ends all that runs in it; the kernel unmounts what is mounted in it. */
  async close(): Promise<void> {
    const own = spaceOf(this.#anchor.pid)
    for (const pid of readdirSync('/proc').map(Number)) {
      if (pid > 0 && pid !== this.#anchor.pid && spaceOf(pid) === own) kill(pid)
    }
    await this.#anchor.end('SIGKILL')
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has just ended by itself.
  }
}

/** Which mount namespace a process is in; empty when it has ended. */
function spaceOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/ns/mnt`)
  } catch {
    return ''
  }
}
