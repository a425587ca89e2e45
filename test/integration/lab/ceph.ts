/**
 * A Ceph cluster of one machine: a monitor and OSDs on loopback, in a temporary directory. It serves RBD images a few
 * seconds after the first command.
 */
import { execFile } from 'node:child_process'
import { randomInt, randomUUID } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Child } from './child.ts'
import { findProgram, type Program } from './packages.ts'

/** What a cluster takes. */
export const CEPH_PROGRAMS = [
  'setpriv',
  'ceph-mon',
  'ceph-osd',
  'ceph',
  'ceph-authtool',
  'rados',
  'rbd',
  'monmaptool',
] as const satisfies Program[]

export interface CephOptions {
  /** Default 1. */
  readonly osds?: number
  /** Users have to prove who they are. Default false. */
  readonly cephx?: boolean
  /** Of an OSD's sparse file, in bytes. Default 8 GiB. */
  readonly osdSize?: number
  /** Where it is reached, an address of this machine. Default one on loopback that no other cluster has. */
  readonly address?: string
}

/** After which time a cluster counts as hung. */
const TIMEOUT_MS = 120_000

/** Starts a cluster with a pool named `volumes`. The caller must `stop` it. */
export async function startCeph(options: CephOptions = {}): Promise<Ceph> {
  const ceph = await Ceph.create(options)
  try {
    await ceph.start()
  } catch (error) {
    await ceph.stop()
    throw error
  }
  return ceph
}

export class Ceph {
  readonly directory = mkdtempSync(join(tmpdir(), 'qpair-ceph-'))
  /** The ceph.conf that reaches the cluster. */
  readonly conf = join(this.directory, 'ceph.conf')
  /** With the key of client.admin, where the cluster asks for one. */
  readonly keyring = join(this.directory, 'keyring')
  /** The monitor's address, as `mon_host` has it. */
  readonly monitorAddress: string
  readonly fsid = randomUUID()
  readonly #options: Required<CephOptions>
  #monitor: Child | undefined
  #manager: Child | undefined
  readonly #osds = new Map<number, Child>()

  private constructor(port: number, address: string, options: CephOptions) {
    this.#options = { osds: 1, cephx: false, osdSize: 8 * 2 ** 30, ...options, address }
    this.monitorAddress = `[v1:${this.#options.address}:${port}]`
  }

  static async create(options: CephOptions): Promise<Ceph> {
    const address = options.address ?? ownAddress()
    return new Ceph(await freePort(address), address, options)
  }

  async start(): Promise<void> {
    writeFileSync(this.conf, this.#configuration())
    await this.#makeMonitor()
    await this.startMonitor()
    const ids = Array.from({ length: this.#options.osds }, (_, id) => id)
    // Numbers are given out in the order of the requests.
    const uuids: string[] = []
    for (const id of ids) {
      uuids[id] = randomUUID()
      await this.run('ceph', 'osd', 'create', uuids[id])
    }
    // Nearly all of the time goes by in waiting, so it is waited for all of it at once.
    await Promise.all([
      this.run('ceph', 'osd', 'pool', 'create', 'volumes', '8'),
      ...ids.map(id => this.run('ceph', 'osd', 'crush', 'add', `osd.${id}`, '1', 'host=h', 'root=default')),
      ...ids.map(id => this.#makeStore(id, uuids[id]!)),
    ])
    await Promise.all(ids.map(id => this.startOsd(id)))
    await this.run('rbd', 'pool', 'init', 'volumes')
  }

  /** Runs one of Ceph's programs against the cluster, and returns what it printed. */
  async run(program: Program, ...args: readonly string[]): Promise<string> {
    const keyring = this.#options.cephx ? ['--keyring', this.keyring] : []
    const deadlineMs = Date.now() + TIMEOUT_MS
    for (;;) {
      try {
        return await execute(program, '--conf', this.conf, ...keyring, ...args)
      } catch (error) {
        // A busy monitor refuses now and then to tell what commands there are: ours has not been sent then.
        const isRefused = (error as Error).message.includes('problem getting command descriptions')
        if (!isRefused || Date.now() > deadlineMs) throw error
      }
    }
  }

  /** Makes a user who may use images of these pools, and returns the path of a keyring with the key. */
  async addUser(name: string, pools: readonly string[] = ['volumes']): Promise<string> {
    const keyring = join(this.directory, `ceph.client.${name}.keyring`)
    const caps = ['mon', 'profile rbd', 'osd', pools.map(pool => `profile rbd pool=${pool}`).join(', ')]
    await this.run('ceph', 'auth', 'get-or-create', `client.${name}`, ...caps, '-o', keyring)
    return keyring
  }

  /** Sends a signal to an OSD: SIGSTOP makes its I/O wait, SIGCONT lets it go on. */
  signalOsd(id: number, signal: NodeJS.Signals): void {
    this.#osds.get(id)!.signal(signal)
  }

  /** Sends a signal to the monitor: SIGSTOP has nobody answered, SIGCONT lets it go on. */
  signalMonitor(signal: NodeJS.Signals): void {
    this.#monitor!.signal(signal)
  }

  async killMonitor(): Promise<void> {
    await this.#monitor!.end('SIGKILL')
  }

  /**
   * Has the OSDs begin anew with who watches which object. Of a client that was killed while it opened an image, and was gone when
   * the OSD got to that, Ceph 16 notes a watch that it never looks at: it would stay for good.
   */
  async recountWatches(): Promise<void> {
    for (const id of this.#osds.keys()) await this.run('ceph', 'osd', 'down', String(id))
  }

  /** Starts the monitor, again after `killMonitor`, and waits until it answers. */
  async startMonitor(): Promise<void> {
    this.#monitor = await Child.start(findProgram('ceph-mon')!, ['--conf', this.conf, '-i', 'a', '-f'])
    await this.#until(this.#monitor, async () => {
      const answer = await this.run('ceph', '--connect-timeout', '5', 'fsid')
      if (answer.trim() !== this.fsid)
        throw new Error(`the monitor of ${answer} answers, and not ${this.fsid}'s`)
    })
  }

  /** Starts a manager, without which nobody counts what a pool holds: for quotas. */
  async startManager(): Promise<void> {
    const data = join(this.directory, 'mgr')
    mkdirSync(data)
    if (this.#options.cephx) {
      const caps = ['mon', 'allow profile mgr', 'osd', 'allow *', 'mds', 'allow *']
      await this.run('ceph', 'auth', 'get-or-create', 'mgr.a', ...caps, '-o', join(data, 'keyring'))
    }
    const manager = await Child.start(findProgram('ceph-mgr')!, ['--conf', this.conf, '-i', 'a', '-f'])
    this.#manager = manager
    await this.#until(manager, async () => {
      const { available } = JSON.parse(await this.run('ceph', 'mgr', 'dump', '--format', 'json')) as {
        available: boolean
      }
      if (!available) throw new Error('the manager is not up')
    })
  }

  async killOsd(id: number): Promise<void> {
    await this.#osds.get(id)!.end('SIGKILL')
  }

  /** Starts an OSD, again after `killOsd`, and waits until the monitor counts it as up. */
  async startOsd(id: number): Promise<void> {
    const osd = await Child.start(findProgram('ceph-osd')!, ['--conf', this.conf, '-i', String(id), '-f'])
    this.#osds.set(id, osd)
    await this.#until(osd, async () => {
      const { osds } = JSON.parse(await this.run('ceph', 'osd', 'dump', '--format', 'json')) as {
        osds: { osd: number; up: number }[]
      }
      if (osds.find(each => each.osd === id)?.up !== 1) throw new Error(`osd.${id} is not up`)
    })
  }

  async stop(): Promise<void> {
    const children = [...this.#osds.values(), this.#monitor, this.#manager].filter(
      child => child !== undefined,
    )
    // One that is stopped dies of SIGKILL as well.
    await Promise.all(children.map(child => child.end('SIGKILL')))
    rmSync(this.directory, { recursive: true, force: true })
  }

  /**
   * An OSD that tells the monitor its place at start is now and then refused with "wrong fsid", before it has heard
   * which cluster this is, and ends: so it tells nothing, and the monitor knows its place beforehand.
   */
  #configuration(): string {
    const auth = this.#options.cephx ? 'cephx' : 'none'
    return `[global]
fsid = ${this.fsid}
mon host = ${this.monitorAddress}
auth cluster required = ${auth}
auth service required = ${auth}
auth client required = ${auth}
public addr = ${this.#options.address}
cluster addr = ${this.#options.address}
ms bind msgr2 = false
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
run dir = ${this.directory}
admin socket = ${this.directory}/$name.$pid.$cctid.asok
log file = ${this.directory}/$name.log
[mon]
mon data = ${this.directory}/mon
mon allow pool size one = true
mon allow pool delete = true
# A monitor ends by itself, without a word, when the disk that it is on has less left: 5 % otherwise.
mon data avail crit = 0
paxos propose interval = 0.05
paxos min wait = 0.01
[mgr]
mgr data = ${this.directory}/mgr
mgr initial modules =
mgr stats period = 1
[osd]
# How long a client that died keeps its lock on an image: 30 s otherwise, which is more than the patience of a test.
osd client watch timeout = 8
# One that is marked down more than five times in ten minutes ends: see recountWatches.
osd max markdown count = 1000
osd data = ${this.directory}/osd.$id
osd objectstore = bluestore
osd crush update on start = false
osd class update on start = false
bluestore block size = ${this.#options.osdSize}
# Each time it closes its disk an OSD waits for that long, and it does so nine times while it is made: 250 ms otherwise.
bdev aio poll ms = 10
bluestore fsck on mkfs = false
osd memory target = ${2 ** 30}
`
  }

  async #makeMonitor(): Promise<void> {
    mkdirSync(join(this.directory, 'mon'))
    const map = join(this.directory, 'monmap')
    await execute('monmaptool', '--create', '--fsid', this.fsid, '--addv', 'a', this.monitorAddress, map)
    const keys: string[] = []
    if (this.#options.cephx) {
      const all = ['mon', 'osd', 'mgr'].flatMap(service => ['--cap', service, 'allow *'])
      for (const [name, ...caps] of [
        ['mon.', '--cap', 'mon', 'allow *'],
        ['client.admin', ...all],
      ]) {
        const create = name === 'mon.' ? ['--create-keyring'] : []
        await execute('ceph-authtool', ...create, this.keyring, '--gen-key', '-n', name!, ...caps)
      }
      keys.push('--keyring', this.keyring)
    }
    await execute('ceph-mon', '--conf', this.conf, '-i', 'a', '--mkfs', '--monmap', map, ...keys)
  }

  /** The store of an OSD. */
  async #makeStore(id: number, uuid: string): Promise<void> {
    const data = join(this.directory, `osd.${id}`)
    mkdirSync(data)
    if (this.#options.cephx) {
      const caps = ['mon', 'allow profile osd', 'osd', 'allow *', 'mgr', 'allow profile osd']
      await this.run('ceph', 'auth', 'get-or-create', `osd.${id}`, ...caps, '-o', join(data, 'keyring'))
    }
    await execute('ceph-osd', '--conf', this.conf, '-i', String(id), '--mkfs', '--osd-uuid', uuid)
  }

  async #until(child: Child, condition: () => Promise<unknown>): Promise<void> {
    const deadlineMs = Date.now() + TIMEOUT_MS
    for (;;) {
      try {
        await condition()
        return
      } catch (error) {
        if (child.exit !== undefined || Date.now() > deadlineMs) {
          const end = child.exit === undefined ? 'it runs' : `it ended, ${JSON.stringify(child.exit)}`
          throw new Error(`${(error as Error).message}\n${end}\n${child.output}`, { cause: error })
        }
        await delay(50)
      }
    }
  }
}

/**
 * What a client or a daemon of Ceph's answers on its admin socket, as ceph(1) would ask it: a command in JSON and a zero
 * byte; back comes the length, 32 bits big-endian, and as much JSON.
 */
export async function askClient(path: string, prefix: string): Promise<Record<string, string>> {
  const socket = connect(path)
  socket.write(`${JSON.stringify({ prefix })}\0`)
  const answer = Buffer.concat(await socket.toArray())
  return JSON.parse(answer.toString('utf8', 4)) as Record<string, string>
}

async function execute(program: Program, ...args: readonly string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program)!, args, { maxBuffer: 1 << 26 })
  return stdout
}

/** One on loopback: clusters that start at the same time never take the port, or hear the clients, of one another. */
export const ownAddress = (): string => `127.${randomInt(1, 255)}.${randomInt(0, 256)}.${randomInt(1, 255)}`

/** A port that was free a moment ago: a monitor cannot choose its own. */
async function freePort(address: string): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, address, resolve))
  const { port } = server.address() as { port: number }
  await new Promise(resolve => server.close(resolve))
  return port
}
