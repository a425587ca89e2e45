/** A mount namespace of its own: what is mounted in it is nowhere else, and goes with it. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { Child } from './child.ts'
import { findProgram } from './packages.ts'

/** Tests that mount need the right to. */
export const CAN_MOUNT = process.getuid?.() === 0

export class MountNamespace {
  readonly #anchor: Child

  private constructor(anchor: Child) {
    this.#anchor = anchor
  }

  static async open(): Promise<MountNamespace> {
    const words = ['--mount', '--propagation', 'private', 'sh', '-c', 'echo ready; exec sleep 100000']
    const anchor = await Child.start(findProgram('unshare')!, words)
    while (!anchor.output.includes('ready')) {
      if (anchor.exit !== undefined) throw new Error(`unshare: ${anchor.output}`)
      await new Promise(setImmediate)
    }
    return new MountNamespace(anchor)
  }

  /** What becomes the program behind these words, within the namespace. */
  get enter(): readonly string[] {
    return [findProgram('nsenter')!, '-t', String(this.#anchor.pid), '-m']
  }

  /** Runs a program in the namespace and resolves with what it printed. */
  async run(program: string, ...args: readonly string[]): Promise<string> {
    const [nsenter, ...rest] = this.enter
    const { stdout } = await promisify(execFile)(nsenter!, [...rest, program, ...args], {
      maxBuffer: 1 << 26,
    })
    return stdout
  }

  /** Ends what keeps it; the kernel unmounts what is mounted in it. */
  async close(): Promise<void> {
    await this.#anchor.end('SIGKILL')
  }
}
