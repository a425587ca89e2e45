/** How long I/O pauses when a gateway is killed under load. */
import { attach } from './nvme-tcp.ts'
import { Daemon } from './process.ts'
import { median } from './series.ts'

const NQN = 'nqn.2026-11.io.qpair:failover'

/** Medians over the rounds, in milliseconds. */
export interface Failover {
  readonly pauseMs: number
  readonly worstMs: number
  readonly rounds: number
}

export async function benchFailover(directory: string, rounds: number): Promise<Failover> {
  const pauses: number[] = []
  for (let round = 0; round < rounds; round++) pauses.push(await onePause(directory, round))
  return { pauseMs: median(pauses), worstMs: Math.max(...pauses), rounds }
}

async function onePause(directory: string, round: number): Promise<number> {
  const gateways = await Promise.all(['a', 'b'].map(name => Daemon.start(directory, `${name}${round}`, [])))
  const load = await Daemon.start(directory, `host${round}`, [])
  try {
    for (const [index, gateway] of gateways.entries()) {
      await attach(load, 'Nvme0', await openGateway(gateway, index), NQN)
    }
    const id = await load.call('workload_start', { bdev_name: 'Nvme0n1', queue_depth: 32, read_percent: 50 })
    await wait(500)
    await gateways[0]!.program.stop('SIGKILL')
    await wait(1000)
    const report = await load.call<{ longest_pause_us: number; errors: number }>('workload_stop', { id })
    if (report.errors > 0) throw new Error(`${report.errors} I/Os failed at the failover`)
    return report.longest_pause_us / 1000
  } finally {
    await load.stop()
    for (const gateway of gateways) await gateway.stop()
  }
}

async function openGateway(gateway: Daemon, index: number): Promise<string> {
  const min_cntlid = index * 1000 + 1
  await gateway.call('nvmf_create_transport', { trtype: 'TCP' })
  const uuid = '6e0a1b6c-4a51-4c0e-9b4d-2a7a1f0c5a11'
  await gateway.call('bdev_null_create', { name: 'null', num_blocks: 1 << 21, block_size: 512, uuid })
  await gateway.call('nvmf_create_subsystem', {
    nqn: NQN,
    allow_any_host: true,
    serial_number: 'FAILOVER',
    min_cntlid,
    max_cntlid: min_cntlid + 999,
  })
  await gateway.call('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'null' } })
  const listen_address = { trtype: 'TCP', adrfam: 'IPv4', traddr: '127.0.0.1', trsvcid: '0' }
  await gateway.call('nvmf_subsystem_add_listener', { nqn: NQN, listen_address })
  const [listener] = await gateway.call<{ address: { trsvcid: string } }[]>('nvmf_subsystem_get_listeners', {
    nqn: NQN,
  })
  return listener!.address.trsvcid
}

const wait = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))
