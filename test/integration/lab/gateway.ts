/** A daemon that serves subsystems over NVMe/TCP on 127.0.0.1, with short time-outs so that tests need little patience. */
import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Daemon, type DaemonOptions, startDaemon } from './daemon.ts'

/** Parameters of nvmf_create_subsystem beside the NQN. */
export type SubsystemParams = Readonly<Record<string, unknown>>

export type AnaState = 'optimized' | 'non_optimized' | 'inaccessible'

interface PollGroup {
  readonly current_admin_qpairs: number
  readonly current_io_qpairs: number
}

/** Starts a daemon with a TCP transport. The caller must `stop` its daemon. */
export async function startGateway(
  options: DaemonOptions = {},
  transport: Readonly<Record<string, unknown>> = {},
): Promise<Gateway> {
  const daemon = await startDaemon(options)
  await daemon.rpc('nvmf_create_transport', { trtype: 'TCP', kas: 1, min_kato: 1000, ...transport })
  return new Gateway(daemon)
}

/** Where a listener is, as the methods take it. */
export const listenAddress = (port: string): object => ({
  trtype: 'TCP',
  adrfam: 'IPv4',
  traddr: '127.0.0.1',
  trsvcid: port,
})

export class Gateway {
  readonly daemon: Daemon

  constructor(daemon: Daemon) {
    this.daemon = daemon
  }

  /** Makes a sparse file that lives as long as the daemon. */
  image(name: string, bytes: number): string {
    const path = join(this.daemon.directory, name)
    writeFileSync(path, '')
    truncateSync(path, bytes)
    return path
  }

  /** Serves bdevs as the namespaces 1, 2 … of a new subsystem, at a port that it picks and returns. */
  async serve(nqn: string, bdevs: readonly string[], params: SubsystemParams = {}): Promise<string> {
    await this.daemon.rpc('nvmf_create_subsystem', { nqn, allow_any_host: true, ...params })
    for (const bdev_name of bdevs) await this.addNamespace(nqn, bdev_name)
    return this.listen(nqn)
  }

  /** Resolves with the nsid. */
  addNamespace(nqn: string, bdev_name: string): Promise<number> {
    return this.daemon.rpc<number>('nvmf_subsystem_add_ns', { nqn, namespace: { bdev_name } })
  }

  /** Resolves with the port, which the daemon picks unless one is given. */
  async listen(nqn: string, port = '0'): Promise<string> {
    await this.daemon.rpc('nvmf_subsystem_add_listener', { nqn, listen_address: listenAddress(port) })
    const listeners = await this.daemon.rpc<{ address: { trsvcid: string } }[]>(
      'nvmf_subsystem_get_listeners',
      { nqn },
    )
    return listeners.at(-1)!.address.trsvcid
  }

  unlisten(nqn: string, port: string): Promise<unknown> {
    return this.daemon.rpc('nvmf_subsystem_remove_listener', { nqn, listen_address: listenAddress(port) })
  }

  setAnaState(nqn: string, port: string, ana_state: AnaState): Promise<unknown> {
    return this.daemon.rpc('nvmf_subsystem_listener_set_ana_state', {
      nqn,
      listen_address: listenAddress(port),
      ana_state,
    })
  }

  /** The number of queues that hosts have open, admin queues included. */
  async queues(): Promise<number> {
    const { poll_groups } = await this.daemon.rpc<{ poll_groups: PollGroup[] }>('nvmf_get_stats')
    return poll_groups.reduce(
      (sum, { current_admin_qpairs, current_io_qpairs }) => sum + current_admin_qpairs + current_io_qpairs,
      0,
    )
  }

  /** Reads and writes that a bdev has completed. */
  async completed(name: string): Promise<number> {
    const { bdevs } = await this.daemon.rpc<{
      bdevs: { num_read_ops: number; num_write_ops: number }[]
    }>('bdev_get_iostat', { names: [name] })
    return bdevs[0]!.num_read_ops + bdevs[0]!.num_write_ops
  }
}
