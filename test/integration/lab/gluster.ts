/** A Gluster cluster of one server, in a network and with mounts of its own: nothing of this machine's is touched. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Child } from './child.ts'
import { MountNamespace } from './namespace.ts'
import { findProgram } from './packages.ts'

export const GLUSTER_PROGRAMS = [
  ...['glusterd', 'gluster', 'mount.glusterfs', 'ip', 'mount', 'umount', 'unshare', 'nsenter', 'setpriv'],
] as const

/** Bricks have to be at an address that is not the loopback device's own. */
export const GLUSTER_ADDRESS = '192.0.2.10'

/** Where Gluster keeps what it keeps. */
const STATE = ['/var/lib/glusterd', '/var/log/glusterfs', '/run/gluster']

export class Gluster {
  /** Whoever mounts the volumes has to be in it. */
  readonly space: MountNamespace
  readonly #home = mkdtempSync(join(tmpdir(), 'qpair-gluster-'))
  #server: Child | undefined

  private constructor(space: MountNamespace) {
    this.space = space
  }

  /** The caller must `stop` it. Takes root, and /dev/fuse. */
  static async start(): Promise<Gluster> {
    const gluster = new Gluster(await MountNamespace.open({ network: true }))
    await gluster.space.run('ip', 'address', 'add', `${GLUSTER_ADDRESS}/32`, 'dev', 'lo')
    for (const directory of STATE) {
      mkdirSync(directory, { recursive: true })
      await gluster.space.run('mount', '-t', 'tmpfs', 'none', directory)
    }
    await gluster.startServer()
    return gluster
  }

  /** The management daemon. */
  async startServer(): Promise<void> {
    const [program, ...words] = [...this.space.enter, findProgram('glusterd')!, '--no-daemon']
    this.#server = await Child.start(program!, words)
    while ((await this.command('volume', 'list').catch(() => undefined)) === undefined) {
      if (this.#server.exit !== undefined) throw new Error(`glusterd: ${this.#server.output}`)
      await delay(50)
    }
  }

  async stopServer(): Promise<void> {
    await this.#server?.end('SIGKILL')
  }

  command(...words: readonly string[]): Promise<string> {
    return this.space.run('gluster', '--mode=script', '--log-file=/dev/null', ...words)
  }

  /** A volume of one brick; answers the directory that this is. */
  async makeVolume(name: string): Promise<string> {
    const brick = join(this.#home, name)
    await this.command('volume', 'create', name, `${GLUSTER_ADDRESS}:${brick}`, 'force')
    await this.command('volume', 'start', name)
    return brick
  }

  /** Kills the process that serves a volume's data. */
  async killBrick(volume: string): Promise<void> {
    const pid = Number(await this.space.run('sh', '-c', `cat /run/gluster/vols/${volume}/*.pid`))
    process.kill(pid, 'SIGKILL')
  }

  /** Starts it again. glusterd may not have heard yet that it has ended, and then starts nothing. */
  async startBrick(volume: string): Promise<void> {
    while (!/ Y +\d+/.test(await this.command('volume', 'status', volume))) {
      await this.command('volume', 'start', volume, 'force')
      await delay(200)
    }
  }

  async stop(): Promise<void> {
    await this.stopServer()
    await this.space.close()
    rmSync(this.#home, { recursive: true, force: true })
  }
}
