/**
 * RBD images of a one-OSD cluster: the daemon's own workload on its device beside fio's rbd engine, which calls librbd
 * directly. Each has an image of its own, since two clients of one would take its lock from each other.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CEPH_PROGRAMS, type Ceph, startCeph } from '../test/integration/lab/ceph.ts'
import { needs } from '../test/integration/lab/packages.ts'
import { cpuSeconds, Daemon, hasProgram } from './process.ts'
import { compare, type Row, type Sample } from './series.ts'

const MEBIBYTES = 256

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
    const daemon = await Daemon.start(directory, 'rbd', ['--reactors', '1'])
    const conf = withoutCache(ceph, directory)
    try {
      await daemon.call('bdev_rbd_register_cluster', { name: 'c', config_file: conf })
      for (const image of ['ours', 'theirs']) await makeImage(ceph, image)
      await daemon.call('bdev_rbd_create', {
        name: 'ours',
        pool_name: 'volumes',
        rbd_name: 'ours',
        block_size: 4096,
        cluster_name: 'c',
      })
      const rows: Row[] = []
      for (const work of works()) {
        const { isRead, size, depth } = work
        const title = `RBD, ${size >> 10} KiB random ${isRead ? 'read' : 'write'}, depth ${depth}`
        const subjects = [
          { name: 'qpair', measure: () => ours(daemon, work, seconds) },
          { name: 'fio, librbd directly', measure: async () => theirs(conf, work, seconds) },
        ]
        rows.push(...(await compare(title, subjects, rounds)))
      }
      return rows
    } finally {
      await daemon.stop()
    }
  } finally {
    await ceph.stop()
  }
}

function* works(): Generator<Work> {
  for (const isRead of [true, false]) {
    for (const size of [4096, 131072]) {
      for (const depth of [1, 32, 128]) yield { isRead, size, depth }
    }
  }
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

async function ours(daemon: Daemon, { isRead, size, depth }: Work, seconds: number): Promise<Sample> {
  const { pid } = daemon.program
  const before = cpuSeconds(pid)
  const id = await daemon.call<number>('workload_start', {
    bdev_name: 'ours',
    io_size: size,
    queue_depth: depth,
    read_percent: isRead ? 100 : 0,
  })
  await new Promise(resolve => setTimeout(resolve, seconds * 1000))
  const report = await daemon.call<WorkloadReport>('workload_stop', { id })
  const count = report.reads + report.writes
  if (report.errors > 0) throw new Error(`${report.errors} of ${count} I/Os failed`)
  const cpuUsPerIo = ((cpuSeconds(pid) - before) * 1e6) / count
  return { iops: report.iops, p99Us: report.latency_us.p99, cpuUsPerIo }
}

/** fio reports the processor time of its own thread alone, so the shell counts for all of librbd's. */
function theirs(conf: string, { isRead, size, depth }: Work, seconds: number): Sample {
  const fio =
    `fio --name=r --ioengine=rbd --clientname=admin --pool=volumes --rbdname=theirs --rw=${isRead ? 'randread' : 'randwrite'} ` +
    `--bs=${size} --iodepth=${depth} --time_based --runtime=${seconds} --norandommap --output-format=json`
  const text = execFileSync('bash', ['-c', `TIMEFORMAT='CPU %U %S'; { time ${fio} 2>/dev/null; } 2>&1`], {
    encoding: 'utf8',
    env: { ...process.env, CEPH_CONF: conf, LC_ALL: 'C' },
  })
  const { jobs } = JSON.parse(text.slice(text.indexOf('{'), text.lastIndexOf('}') + 1))
  const side = isRead ? jobs[0].read : jobs[0].write
  const [, user, system] = /CPU (\S+) (\S+)/.exec(text)!
  const cpuUsPerIo = ((Number(user) + Number(system)) * 1e6) / side.total_ios
  return { iops: side.iops, p99Us: side.clat_ns.percentile['99.000000'] / 1000, cpuUsPerIo }
}
