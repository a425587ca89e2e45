/** What the daemon costs when it does nothing: processor time, memory, and the time to the first I/O. */
import { connect as connectTcp, type Socket } from 'node:net'
import { attach, openTarget } from './nvme-tcp.ts'
import { cpuSeconds, Daemon, residentMiB } from './process.ts'
import { median } from './series.ts'

export interface Footprint {
  /** From the start of the process to the end of the first read over NVMe/TCP. */
  readonly startToFirstIoMs: number
  readonly residentMiBOneExport: number
  /** With ten exports and a hundred connections, none of which does anything. */
  readonly idleCpuPercent: number
  readonly residentMiBHundredConnections: number
}

const SETTLE_SECONDS = 15
const IDLE_SECONDS = 10

export async function benchFootprint(directory: string): Promise<Footprint> {
  const load = await Daemon.start(directory, 'first-load', [])
  const starts: number[] = []
  let resident = 0
  for (let round = 0; round < 3; round++) {
    const begin = performance.now()
    const target = await Daemon.start(directory, `first${round}`, [])
    const name = `First${round}`
    await attach(load, name, await openTarget(target), 'nqn.2026-11.io.qpair:bench')
    const id = await load.call('workload_start', { bdev_name: `${name}n1`, queue_depth: 1, io_count: 1 })
    await load.call('workload_stop', { id })
    starts.push(performance.now() - begin)
    resident = residentMiB(target.program.pid)
    await load.call('bdev_nvme_detach_controller', { name })
    await target.stop()
  }
  await load.stop()
  return { startToFirstIoMs: median(starts), residentMiBOneExport: resident, ...(await idle(directory)) }
}

async function idle(
  directory: string,
): Promise<Pick<Footprint, 'idleCpuPercent' | 'residentMiBHundredConnections'>> {
  const target = await Daemon.start(directory, 'idle', [])
  const sockets: Socket[] = []
  try {
    const ports: number[] = []
    for (let i = 0; i < 10; i++) {
      await target.call('bdev_null_create', { name: `null${i}`, num_blocks: 2048, block_size: 512 })
      const { uri } = await target.call<{ uri: string }>('nbd_export_start', {
        bdev_name: `null${i}`,
        host: '127.0.0.1',
        port: 0,
      })
      ports.push(Number(new URL(uri.replace('nbd:', 'http:')).port))
    }
    for (let i = 0; i < 100; i++) {
      const socket = connectTcp(ports[i % 10]!, '127.0.0.1')
      sockets.push(socket)
      // The server's greeting: the connection is adopted by a reactor.
      await new Promise(resolve => socket.once('data', resolve))
    }
    // V8 goes on compiling and collecting for some seconds after a start: that is not rest yet.
    await new Promise(resolve => setTimeout(resolve, SETTLE_SECONDS * 1000))
    const before = cpuSeconds(target.program.pid)
    await new Promise(resolve => setTimeout(resolve, IDLE_SECONDS * 1000))
    const used = cpuSeconds(target.program.pid) - before
    return {
      idleCpuPercent: (used / IDLE_SECONDS) * 100,
      residentMiBHundredConnections: residentMiB(target.program.pid),
    }
  } finally {
    for (const socket of sockets) socket.destroy()
    await target.stop()
  }
}
