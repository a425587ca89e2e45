/** The NVMe/TCP target beside a C program of the same shape, with our own host as the load for both. */
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { Daemon, hasProgram, Program, ROOT } from './process.ts'
import { compare, type Row, type Sample, type Subject } from './series.ts'

const NQN = 'nqn.2026-11.io.qpair:bench'
const FLOOR_NQN = 'nqn.2026-11.io.qpair:floor'
const MEBIBYTES = 256
const BLOCK = 512
const SERVER_CPU = 1
const LOAD_MASK = '0x4'

interface Work {
  readonly name: string
  readonly ioSize: number
  readonly depth: number
  readonly readPercent: number
}

const WORKS: readonly Work[] = [
  ...[1, 32, 127].map(depth => ({
    name: `4 KiB random read, depth ${depth}`,
    ioSize: 4096,
    depth,
    readPercent: 100,
  })),
  ...[1, 32, 127].map(depth => ({
    name: `4 KiB random write, depth ${depth}`,
    ioSize: 4096,
    depth,
    readPercent: 0,
  })),
  { name: '128 KiB read, depth 32', ioSize: 131072, depth: 32, readPercent: 100 },
  { name: '128 KiB write, depth 32', ioSize: 131072, depth: 32, readPercent: 0 },
]

interface WorkloadReport {
  readonly reads: number
  readonly writes: number
  readonly errors: number
  readonly iops: number
  readonly first_errors: readonly string[]
  readonly latency_us: { readonly p99: number; readonly p999: number }
}

/** Loads a device of `load` for a while. */
export async function runWorkload(
  load: Daemon,
  bdev: string,
  work: Omit<Work, 'name'>,
  seconds: number,
): Promise<WorkloadReport> {
  const id = await load.call('workload_start', {
    bdev_name: bdev,
    io_size: work.ioSize,
    queue_depth: work.depth,
    read_percent: work.readPercent,
  })
  await new Promise(resolve => setTimeout(resolve, seconds * 1000))
  const report = await load.call<WorkloadReport>('workload_stop', { id })
  if (report.errors > 0) throw new Error(`I/O failed under load: ${report.first_errors.join('; ')}`)
  return report
}

export async function benchNvmeTcp(directory: string, seconds: number, rounds: number): Promise<Row[]> {
  const target = await Daemon.start(directory, 'target', ['-m', `0x${(1 << SERVER_CPU).toString(16)}`])
  const load = await Daemon.start(directory, 'load', ['-m', LOAD_MASK])
  const floor = hasProgram('cc') ? startFloor(directory) : undefined
  try {
    const port = await openTarget(target)
    await attach(load, 'Ours', port, NQN)
    if (floor !== undefined) {
      await floor.until(() => floor.output.includes('\n'))
      await attach(load, 'Floor', floor.output.trim(), FLOOR_NQN)
      floor.pause()
    } else {
      console.log('no C compiler: the floor is left out')
    }
    const rows: Row[] = []
    for (const work of WORKS) {
      const subjects: Subject[] = [
        { name: 'qpair', measure: () => sample(load, 'Oursn1', work, seconds, target) },
      ]
      if (floor !== undefined) {
        subjects.push({
          name: 'C loop',
          async measure() {
            floor.resume()
            const result = await sample(load, 'Floorn1', work, seconds)
            floor.pause()
            return result
          },
        })
      }
      rows.push(...(await compare(`NVMe/TCP, memory, ${work.name}`, subjects, rounds)))
    }
    return rows
  } finally {
    await load.stop()
    await target.stop()
    await floor?.stop('SIGKILL')
  }
}

async function sample(
  load: Daemon,
  bdev: string,
  work: Work,
  seconds: number,
  server?: Daemon,
): Promise<Sample> {
  const before = server?.collections ?? 0
  const { iops, reads, writes, latency_us } = await runWorkload(load, bdev, work, seconds)
  const collections = (server?.collections ?? 0) - before
  return {
    iops,
    p99Us: latency_us.p99,
    p999Us: latency_us.p999,
    ...(server && { collectionsPerMillion: (collections * 1e6) / (reads + writes) }),
  }
}

function startFloor(directory: string): Program {
  const binary = join(directory, 'floor')
  execFileSync('cc', ['-O2', '-o', binary, join(ROOT, 'bench/floor/nvme-tcp-floor.c')])
  return new Program(binary, [String(MEBIBYTES)], SERVER_CPU)
}

/** A memory namespace on a port of the kernel's choice, which is returned. */
export async function openTarget(target: Daemon): Promise<string> {
  await target.call('nvmf_create_transport', { trtype: 'TCP' })
  await target.call('bdev_malloc_create', {
    name: 'memory',
    num_blocks: (MEBIBYTES << 20) / BLOCK,
    block_size: BLOCK,
  })
  await target.call('nvmf_create_subsystem', { nqn: NQN, allow_any_host: true, serial_number: 'BENCH' })
  await target.call('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'memory' } })
  const listen_address = { trtype: 'TCP', adrfam: 'IPv4', traddr: '127.0.0.1', trsvcid: '0' }
  await target.call('nvmf_subsystem_add_listener', { nqn: NQN, listen_address })
  const [listener] = await target.call<{ address: { trsvcid: string } }[]>('nvmf_subsystem_get_listeners', {
    nqn: NQN,
  })
  return listener!.address.trsvcid
}

export async function attach(load: Daemon, name: string, trsvcid: string, subnqn: string): Promise<void> {
  const address = { trtype: 'TCP', adrfam: 'IPv4', traddr: '127.0.0.1', trsvcid, subnqn }
  await load.call('bdev_nvme_attach_controller', { name, ...address })
}
