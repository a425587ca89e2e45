/**
 * RBD images of a one-OSD cluster: the daemon's own workload on its device, and a vhost-user front end of a device,
 * beside fio's rbd engine and `rbd bench`, which call librbd directly. Each has an image of its own, since two clients of one would take
 * its lock from each other; all images are written to the last block, and no side has a cache.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { CEPH_PROGRAMS, type Ceph, startCeph } from '../test/integration/lab/ceph.ts'
import { needs } from '../test/integration/lab/packages.ts'
import { cpuSeconds, Daemon, hasProgram } from './process.ts'
import { compare, type Row, type Sample } from './series.ts'
import { Load } from './vhost.ts'

const MEBIBYTES = 256
/**
 * Everybody does I/O for this time before anything is measured: fio connects, opens the image and takes its lock in it,
 * and JavaScript is compiled.
 */
const RAMP_SECONDS = 1

interface Work {
  readonly isRead: boolean
  /** In bytes. */
  readonly size: number
  readonly depth: number
}

interface WorkloadReport {
  readonly reads: number
  readonly writes: number
  readonly errors: number
  readonly iops: number
  readonly latency_us: { readonly p99: number }
}

export async function benchRbd(directory: string, seconds: number, rounds: number): Promise<Row[]> {
  const missing = await needs(...CEPH_PROGRAMS, 'fio')
  if (missing !== undefined || !hasProgram('fio')) {
    console.log(`the RBD rows are left out: ${missing}`)
    return []
  }
  const ceph = await startCeph()
  try {
    const conf = withoutCache(ceph, directory)
    for (const image of ['driver', 'guest', 'theirs']) await makeImage(ceph, image)
    const daemon = await Daemon.start(directory, 'rbd', ['--reactors', '1', '-S', directory])
    try {
      await daemon.call('bdev_rbd_register_cluster', { name: 'c', config_file: conf })
      const theirs = {
        name: 'fio, librbd directly',
        of: (work: Work) => librbdDirectly(conf, work, seconds),
      }
      const cephs = { name: 'rbd bench', of: (work: Work) => rbdBench(conf, work, seconds) }
      return [
        ...(await driverRows(daemon, [theirs, cephs], seconds, rounds)),
        ...(await guestRows(daemon, directory, [theirs], seconds, rounds)),
      ]
    } finally {
      await daemon.stop()
    }
  } finally {
    await ceph.stop()
  }
}

/** Who is measured with any work. */
interface Party {
  readonly name: string
  of(work: Work): Promise<Sample>
}

/** For a subject that does not warm up by itself. */
function twice(seconds: number, measure: (work: Work, seconds: number) => Promise<Sample>): Party['of'] {
  return async work => {
    await measure(work, RAMP_SECONDS)
    return await measure(work, seconds)
  }
}

/** Without a front end: what the driver and a reactor cost beside librbd. */
async function driverRows(
  daemon: Daemon,
  theirs: readonly Party[],
  seconds: number,
  rounds: number,
): Promise<Row[]> {
  await openImage(daemon, 'driver')
  const ours: Party = { name: 'qpair', of: twice(seconds, (work, time) => driver(daemon, work, time)) }
  const works = [true, false].flatMap(isRead =>
    [4096, 131072].flatMap(size => [1, 32, 128].map(depth => ({ isRead, size, depth }))),
  )
  return await beside('RBD', ours, theirs, works, rounds)
}

/** A guest's path: what a front end of vhost-user sees. */
async function guestRows(
  daemon: Daemon,
  directory: string,
  theirs: readonly Party[],
  seconds: number,
  rounds: number,
): Promise<Row[]> {
  await openImage(daemon, 'guest')
  await daemon.call('vhost_create_blk_controller', { ctrlr: 'guest.vhost', dev_name: 'guest' })
  const load = await Load.start('split', [join(directory, 'guest.vhost')])
  const ours: Party = { name: 'qpair', of: twice(seconds, (work, time) => guest(daemon, load, work, time)) }
  const works = [true, false].flatMap(isRead => [1, 32, 128].map(depth => ({ isRead, size: 4096, depth })))
  try {
    return await beside('RBD, vhost-user-blk', ours, theirs, works, rounds)
  } finally {
    await load.stop()
  }
}

async function beside(
  title: string,
  ours: Party,
  theirs: readonly Party[],
  works: readonly Work[],
  rounds: number,
): Promise<Row[]> {
  const rows: Row[] = []
  for (const work of works) {
    const { isRead, size, depth } = work
    const name = `${title}, ${size >> 10} KiB random ${isRead ? 'read' : 'write'}, depth ${depth}`
    const subjects = [ours, ...theirs].map(party => ({ name: party.name, measure: () => party.of(work) }))
    rows.push(...(await compare(name, subjects, rounds)))
  }
  return rows
}

/** A cache that answers before Ceph has the data, and for one of two that flush at different times, measures neither. */
function withoutCache(ceph: Ceph, directory: string): string {
  const path = join(directory, 'ceph.conf')
  writeFileSync(path, `${readFileSync(ceph.conf, 'utf8')}[client]\nrbd cache = false\n`)
  return path
}

/** Every block is written: what was never written is answered without a read. */
async function makeImage(ceph: Ceph, image: string): Promise<void> {
  await ceph.run('rbd', 'create', '-p', 'volumes', '--size', String(MEBIBYTES), image)
  const bench = ['bench', '--io-type', 'write', '--io-size', '4M', '--io-total', `${MEBIBYTES}M`]
  await ceph.run('rbd', ...bench, '--io-pattern', 'seq', `volumes/${image}`)
}

async function openImage(daemon: Daemon, image: string): Promise<void> {
  const from = { pool_name: 'volumes', rbd_name: image, cluster_name: 'c' }
  await daemon.call('bdev_rbd_create', { name: image, block_size: 4096, ...from })
}

async function driver(daemon: Daemon, { isRead, size, depth }: Work, seconds: number): Promise<Sample> {
  const { pid } = daemon.program
  const before = cpuSeconds(pid)
  const id = await daemon.call<number>('workload_start', {
    bdev_name: 'driver',
    io_size: size,
    queue_depth: depth,
    read_percent: isRead ? 100 : 0,
  })
  await delay(seconds * 1000)
  const report = await daemon.call<WorkloadReport>('workload_stop', { id })
  const count = report.reads + report.writes
  if (report.errors > 0) throw new Error(`${report.errors} of ${count} I/Os failed`)
  const cpuUsPerIo = ((cpuSeconds(pid) - before) * 1e6) / count
  return { iops: report.iops, p99Us: report.latency_us.p99, cpuUsPerIo }
}

/** With the front end's processor time, as fio's is in what it is compared to. */
async function guest(daemon: Daemon, load: Load, work: Work, seconds: number): Promise<Sample> {
  const { isRead, size, depth } = work
  const spent = (): number => cpuSeconds(daemon.program.pid) + cpuSeconds(load.pid)
  const before = spent()
  const { count, iops, p99Us } = await load.run({ isRead, ioSize: size, depth, seconds, sleeps: true })
  return { iops, p99Us, cpuUsPerIo: ((spent() - before) * 1e6) / count }
}

/**
 * fio reports the processor time of one thread alone. That of the process, with all of librbd's, is looked at while it
 * does I/O, so that neither connecting nor disconnecting counts, which our daemon has behind it.
 */
async function librbdDirectly(conf: string, { isRead, size, depth }: Work, seconds: number): Promise<Sample> {
  const args =
    `--name=r --thread --ioengine=rbd --clientname=admin --pool=volumes --rbdname=theirs --norandommap ` +
    `--rw=${isRead ? 'randread' : 'randwrite'} --bs=${size} --iodepth=${depth} ` +
    `--time_based --ramp_time=${RAMP_SECONDS} --runtime=${seconds} --output-format=json`
  const child = spawn('fio', args.split(' '), {
    stdio: ['ignore', 'pipe', 'ignore'],
    env: { ...process.env, CEPH_CONF: conf, LC_ALL: 'C' },
  })
  let text = ''
  child.stdout.on('data', chunk => {
    text += chunk
  })
  const closed = once(child, 'close')
  await delay(RAMP_SECONDS * 1000)
  const [beginMs, before] = [performance.now(), cpuSeconds(child.pid!)]
  // fio begins as soon as it is connected, so it is done before `seconds` are over here.
  await delay(seconds * 800)
  const share = ((cpuSeconds(child.pid!) - before) * 1000) / (performance.now() - beginMs)
  await closed
  const { jobs } = JSON.parse(text.slice(text.indexOf('{'), text.lastIndexOf('}') + 1))
  const side = isRead ? jobs[0].read : jobs[0].write
  const p99Us = side.clat_ns.percentile['99.000000'] / 1000
  return { iops: side.iops, p99Us, cpuUsPerIo: (share * 1e6) / side.iops }
}

/** `rbd bench` goes on until it is interrupted, and then says what it has done since its image was open. */
async function rbdBench(conf: string, { isRead, size, depth }: Work, seconds: number): Promise<Sample> {
  const work = [
    '--io-type',
    isRead ? 'read' : 'write',
    '--io-size',
    String(size),
    '--io-threads',
    String(depth),
  ]
  const args = ['bench', ...work, '--io-pattern', 'rand', '--io-total', '1T', 'volumes/theirs']
  const child = spawn('rbd', args, {
    stdio: ['ignore', 'pipe', 'ignore'],
    env: { ...process.env, CEPH_CONF: conf, LC_ALL: 'C' },
  })
  let text = ''
  child.stdout.on('data', chunk => {
    text += chunk
  })
  const closed = once(child, 'close')
  await delay((RAMP_SECONDS + seconds) * 1000)
  child.kill('SIGINT')
  await closed
  const rate = /elapsed: .*ops\/sec: (\S+)/.exec(text)?.[1]
  if (rate === undefined) throw new Error(`rbd bench tells no rate:\n${text}`)
  return { iops: Number(rate) }
}
