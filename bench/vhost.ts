/** The vhost-user target beside QEMU's storage daemon, with one front end as the load for both. */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { writeWhole } from './file.ts'
import { attach, openTarget, runWorkload } from './nvme-tcp.ts'
import { cpuSeconds, Daemon, hasProgram, Program, ROOT } from './process.ts'
import { compare, type Row, type Sample, type Subject } from './series.ts'
import type { Report, Work } from './vhost-front-end.ts'

const MEBIBYTES = 256
const BLOCK = 512
const SERVER_CPU = 1
const LOAD_CPU = 2
/** Of the target that has the remote device. */
const REMOTE_CPU = 3
const REMOTE_NQN = 'nqn.2026-11.io.qpair:bench'
const PEER = 'qemu-storage-daemon'
const IDLE_FRONT_ENDS = 10
const SETTLE_SECONDS = 15
const IDLE_SECONDS = 10

type Layout = 'split' | 'packed'
type What = Omit<Work, 'seconds'>

const READ: What = { isRead: true, ioSize: 4096, depth: 32, sleeps: false }
const READS: readonly What[] = [1, 32, 128].map(depth => ({ ...READ, depth }))
const WRITE: What = { ...READ, isRead: false }
const LARGE: readonly What[] = [READ, WRITE].map(what => ({ ...what, ioSize: 131072 }))

const nameOf = ({ isRead, ioSize, depth, sleeps }: What): string =>
  `${ioSize / 1024} KiB random ${isRead ? 'read' : 'write'}, depth ${depth}${sleeps ? ', both sides sleep' : ''}`

/** A process with connections to back ends, of which it loads the first. */
export class Load {
  readonly #child: ChildProcess

  private constructor(layout: Layout, sockets: readonly string[], cpu: number) {
    const program = join(ROOT, 'node_modules/.cache/qpair-bench/bench/vhost-load.js')
    const command = [process.execPath, program, layout, ...sockets]
    const [first, ...rest] = cpu < 0 ? command : ['taskset', '-c', String(cpu), ...command]
    this.#child = spawn(first!, rest, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  }

  /** `cpu`: the processor to stay on, -1 for any. */
  static async start(layout: Layout, sockets: readonly string[], cpu = -1): Promise<Load> {
    const load = new Load(layout, sockets, cpu)
    await load.#answer()
    return load
  }

  get pid(): number {
    return this.#child.pid!
  }

  run(work: Work): Promise<Report> {
    const answer = this.#answer<Report>()
    this.#child.send(work)
    return answer
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null) return
    const exited = new Promise(resolve => this.#child.once('exit', resolve))
    this.#child.kill()
    await exited
  }

  #answer<T>(): Promise<T> {
    return new Promise((resolve, reject) => {
      const failed = (): void => reject(new Error('a load of vhost has ended early'))
      this.#child.once('exit', failed)
      this.#child.once('message', message => {
        this.#child.off('exit', failed)
        resolve(message as T)
      })
    })
  }
}

/** Who serves, and what loads it. */
interface Server {
  readonly name: string
  readonly load: Load
  /** Ours, whose collections are counted. */
  readonly daemon?: Daemon
}

/** Everything that was started, and has to be ended. */
class Stage {
  readonly daemon: Daemon
  readonly #directory: string
  readonly #stops: (() => Promise<void>)[] = []

  private constructor(directory: string, daemon: Daemon) {
    this.#directory = directory
    this.daemon = daemon
  }

  static async open(directory: string, name: string): Promise<Stage> {
    const mask = `0x${(1 << SERVER_CPU).toString(16)}`
    const stage = new Stage(directory, await Daemon.start(directory, name, ['-m', mask, '-S', directory]))
    stage.atEnd(() => stage.daemon.stop())
    return stage
  }

  atEnd(stop: () => Promise<void>): void {
    this.#stops.push(stop)
  }

  async close(): Promise<void> {
    for (const stop of this.#stops.reverse()) await stop()
  }

  /** Makes a controller and returns its socket. */
  async controller(bdev: string, ctrlr: string, layout: Layout): Promise<string> {
    await this.daemon.call('vhost_create_blk_controller', {
      ctrlr,
      dev_name: bdev,
      packed_ring: layout === 'packed',
    })
    return join(this.#directory, ctrlr)
  }

  async ours(bdev: string, layout: Layout = 'split'): Promise<Server> {
    const load = await Load.start(
      layout,
      [await this.controller(bdev, `${bdev}.${layout}`, layout)],
      LOAD_CPU,
    )
    this.atEnd(() => load.stop())
    return { name: layout === 'split' ? 'qpair' : 'qpair, packed ring', load, daemon: this.daemon }
  }

  /** QEMU's, where it is there. */
  async peer(label: string, blockdev: string): Promise<Server[]> {
    if (!hasProgram(PEER)) return []
    const socket = join(this.#directory, `${this.#stops.length}.qsd`)
    const args = [
      `--blockdev ${blockdev},node-name=disk`,
      `--export type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=${socket},writable=on`,
    ].flatMap(text => text.split(' '))
    const program = new Program(PEER, args, SERVER_CPU)
    this.atEnd(() => program.stop('SIGKILL'))
    await program.until(() => existsSync(socket))
    const load = await Load.start('split', [socket], LOAD_CPU)
    this.atEnd(() => load.stop())
    return [{ name: `${PEER} (${label})`, load }]
  }
}

export interface VhostResults {
  readonly rows: readonly Row[]
  /** Of one processor: a daemon with ten front ends that do nothing. */
  readonly idleCpuPercent: number
}

export async function benchVhost(directory: string, seconds: number, rounds: number): Promise<VhostResults> {
  if (!hasProgram(PEER)) console.log(`no ${PEER}: the vhost rows have nothing beside them`)
  const stage = await Stage.open(directory, 'vhost')
  const rows: Row[] = []
  try {
    rows.push(...(await local(stage, directory, seconds, rounds)))
    rows.push(...(await remote(stage, directory, seconds, rounds)))
  } finally {
    await stage.close()
  }
  return { rows, idleCpuPercent: await idle(directory) }
}

async function local(stage: Stage, directory: string, seconds: number, rounds: number): Promise<Row[]> {
  const rows: Row[] = []
  const measure = async (device: string, works: readonly What[], ...servers: Server[]): Promise<void> => {
    for (const work of works) {
      const subjects = servers.map(server => subjectOf(server, { ...work, seconds }))
      rows.push(...(await compare(`vhost-user-blk, ${device}, ${nameOf(work)}`, subjects, rounds)))
    }
  }
  const { daemon } = stage
  const geometry = { num_blocks: (MEBIBYTES << 20) / BLOCK, block_size: BLOCK }
  const file = join(directory, 'vhost.img')
  writeWhole(file, MEBIBYTES)
  await daemon.call('bdev_null_create', { name: 'null', ...geometry })
  await daemon.call('bdev_malloc_create', { name: 'memory', ...geometry })
  await daemon.call('bdev_uring_create', { name: 'file', filename: file, block_size: BLOCK })

  const ours = await stage.ours('null')
  const zeroes = await stage.peer('null', `driver=null-co,size=${MEBIBYTES << 20},read-zeroes=on`)
  await measure('null', READS, ours, ...zeroes)
  await daemon.call('vhost_controller_set_polling', { ctrlr: 'null.split', quiet_us: 0 })
  await measure('null', [{ ...READ, depth: 1, sleeps: true }], ours, ...zeroes)

  const memory = [await stage.ours('memory'), await stage.ours('memory', 'packed')]
  // Memory that was never written to is one page of zeroes, which is in every cache.
  await memory[0]!.load.run({ ...LARGE[1]!, seconds: 1 })
  const tmpfs = mkdtempSync('/dev/shm/qpair-bench-')
  stage.atEnd(async () => rmSync(tmpfs, { recursive: true }))
  writeWhole(join(tmpfs, 'image'), MEBIBYTES)
  const shared = await fasterPeer(stage, 'tmpfs', join(tmpfs, 'image'))
  await measure('memory', [...READS, WRITE, ...LARGE], ...memory, ...shared)

  const cached = await fasterPeer(stage, 'file', file)
  await measure('page-cached file', [...READS, WRITE], await stage.ours('file'), ...cached)
  return rows
}

function subjectOf({ name, load, daemon }: Server, work: Work): Subject {
  return {
    name,
    async measure(): Promise<Sample> {
      const before = daemon?.collections ?? 0
      const { iops, p99Us, p999Us, count } = await load.run(work)
      const collections = (daemon?.collections ?? 0) - before
      return { iops, p99Us, p999Us, ...(daemon && { collectionsPerMillion: (collections * 1e6) / count }) }
    },
  }
}

/** QEMU does file I/O by threads or by io_uring: whichever is faster here is the one to compare with. */
async function fasterPeer(stage: Stage, label: string, path: string): Promise<Server[]> {
  const blockdev = `driver=file,filename=${path},cache.direct=off`
  const peers = [
    ...(await stage.peer(`${label}, threads`, `${blockdev},aio=threads`)),
    ...(await stage.peer(`${label}, io_uring`, `${blockdev},aio=io_uring`)),
  ]
  const rates: number[] = []
  for (const { load } of peers) rates.push((await load.run({ ...READ, seconds: 1 })).iops)
  return peers.filter((_, i) => rates[i] === Math.max(...rates))
}

/** A device of another daemon over two paths, for a guest and for a load inside the daemon that has it attached. */
async function remote(stage: Stage, directory: string, seconds: number, rounds: number): Promise<Row[]> {
  const mask = `0x${(1 << REMOTE_CPU).toString(16)}`
  const target = await Daemon.start(directory, 'remote', ['-m', mask])
  stage.atEnd(() => target.stop())
  const { daemon } = stage
  await openTarget(target)
  const listen_address = { trtype: 'TCP', adrfam: 'IPv4', traddr: '127.0.0.1', trsvcid: '0' }
  await target.call('nvmf_subsystem_add_listener', { nqn: REMOTE_NQN, listen_address })
  const listeners = await target.call<{ address: { trsvcid: string } }[]>('nvmf_subsystem_get_listeners', {
    nqn: REMOTE_NQN,
  })
  for (const { address } of listeners) await attach(daemon, 'Remote', address.trsvcid, REMOTE_NQN)

  const ours = await stage.ours('Remoten1')
  const rows: Row[] = []
  for (const work of READS) {
    const inside: Subject = {
      name: 'qpair, without a guest',
      async measure() {
        const load = { ioSize: work.ioSize, depth: work.depth, readPercent: 100 }
        const { iops, latency_us } = await runWorkload(daemon, 'Remoten1', load, seconds)
        return { iops, p99Us: latency_us.p99, p999Us: latency_us.p999 }
      },
    }
    const subjects = [subjectOf(ours, { ...work, seconds }), inside]
    rows.push(...(await compare(`vhost-user-blk, remote, two paths, ${nameOf(work)}`, subjects, rounds)))
  }
  return rows
}

async function idle(directory: string): Promise<number> {
  const stage = await Stage.open(directory, 'vhost-idle')
  try {
    const { daemon } = stage
    await daemon.call('bdev_null_create', { name: 'null', num_blocks: 2048, block_size: BLOCK })
    const sockets: string[] = []
    for (let i = 0; i < IDLE_FRONT_ENDS; i++)
      sockets.push(await stage.controller('null', `idle${i}`, 'split'))
    const load = await Load.start('split', sockets, LOAD_CPU)
    stage.atEnd(() => load.stop())
    // V8 goes on compiling and collecting for some seconds after a start: that is not rest yet.
    await new Promise(resolve => setTimeout(resolve, SETTLE_SECONDS * 1000))
    const { pid } = daemon.program
    const before = cpuSeconds(pid)
    await new Promise(resolve => setTimeout(resolve, IDLE_SECONDS * 1000))
    return ((cpuSeconds(pid) - before) / IDLE_SECONDS) * 100
  } finally {
    await stage.close()
  }
}
