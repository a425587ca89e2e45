/** `scsi`: the disks of a host adapter, by its name, its place on the PCI bus, or as a port of a Fibre Channel fabric. */
import { readdir, realpath, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { RpcError } from '../../core/errors.ts'
import type { PciAddress, PoolAdapter } from '../../libvirt/pool-source-xml.ts'
import type { PoolDocument } from '../../libvirt/pool-xml.ts'
import { fullOf } from '../block-devices.ts'
import { fileOpening } from '../file-volumes.ts'
import type { PoolBackend, PoolBackendType, PoolContents } from '../pool.ts'
import { SYS, sysText, unitVolumes } from '../scsi-units.ts'
import { DeviceVolumes } from './device-volumes.ts'

export const scsiPool: PoolBackendType = {
  type: 'scsi',
  summary: 'The disks of a SCSI or Fibre Channel host adapter.',
  create: document => new ScsiPool(document),
}

export class ScsiPool implements PoolBackend {
  readonly volumes = new DeviceVolumes('they are made where the adapter leads to')
  readonly opening = fileOpening
  readonly #document: PoolDocument
  readonly #sys: string

  constructor(document: PoolDocument, sys = SYS) {
    this.#document = document
    this.#sys = sys
  }

  async start(): Promise<void> {
    await this.#host()
  }

  async stop(): Promise<void> {}

  /** Asks the adapter first whether there is something new. */
  async refresh(): Promise<PoolContents> {
    const host = await this.#host()
    // All buses, targets and units. Adapters that do not scan say so, and have said what there is.
    await writeFile(join(this.#sys, 'class/scsi_host', `host${host}`, 'scan'), '- - -').catch(() => {})
    return fullOf(await unitVolumes(host, this.#document.target!.path, this.#sys))
  }

  async #host(): Promise<number> {
    const adapter = this.#document.source.adapter!
    const hosts = await readdir(join(this.#sys, 'class/scsi_host')).catch(() => [])
    for (const host of hosts.sort()) {
      if (await isAdapter(adapter, host, this.#sys)) return Number(host.slice('host'.length))
    }
    const there = hosts.length === 0 ? 'it has none' : `there are ${hosts.sort().join(', ')}`
    const made =
      adapter.type === 'fc_host'
        ? '. A port of its own is made by libvirt (virsh nodedev-create) or by writing to vport_create of its parent'
        : ''
    throw new RpcError(
      'ENOENT',
      `pool ${this.#document.name}: this machine has no adapter ${described(adapter)}: ${there}${made}`,
    )
  }
}

async function isAdapter(adapter: PoolAdapter, host: string, sys: string): Promise<boolean> {
  if (adapter.type === 'fc_host') {
    const name = async (file: string): Promise<string> =>
      (await sysText(sys, 'class/fc_host', host, file)).replace(/^0x/, '').toLowerCase()
    const { wwnn, wwpn } = adapter
    return (
      (await name('node_name')) === wwnn.toLowerCase() && (await name('port_name')) === wwpn.toLowerCase()
    )
  }
  // libvirt has said `scsi_host3` at times.
  if ('name' in adapter) return adapter.name.replace(/^scsi_/, '') === host
  const path = await realpath(join(sys, 'class/scsi_host', host)).catch(() => '')
  const uniqueId = await sysText(sys, 'class/scsi_host', host, 'unique_id')
  return path.split('/').includes(addressText(adapter.address)) && Number(uniqueId) === adapter.uniqueId
}

/** As in sysfs: `0000:00:1f.2`. */
function addressText({ domain, bus, slot, function: fn }: PciAddress): string {
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0')
  return `${hex(domain, 4)}:${hex(bus, 2)}:${hex(slot, 2)}.${hex(fn, 1)}`
}

function described(adapter: PoolAdapter): string {
  if (adapter.type === 'fc_host') return `with the ports ${adapter.wwnn} and ${adapter.wwpn}`
  if ('name' in adapter) return adapter.name
  return `at ${addressText(adapter.address)} with the unique_id ${adapter.uniqueId}`
}
