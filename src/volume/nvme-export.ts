/** A bdev as an NVMe/TCP disk, by the methods anybody would use: what is there already stays as it is. */
import { createHash } from 'node:crypto'
import { RpcError } from '../core/errors.ts'

/** Calls a method of the daemon. */
export type Call = (method: string, params?: unknown) => Promise<unknown>

export interface NvmeExport {
  readonly bdev: string
  readonly nqn: string
  /** `IP:PORT`, checked by `parseListen`. */
  readonly listen: readonly string[]
  /** Up to 20 characters; derived from the NQN when absent. */
  readonly serialNumber?: string
}

interface Listener {
  readonly address: { readonly traddr: string; readonly trsvcid: string }
}

interface Subsystem {
  readonly nqn: string
  readonly serial_number?: string
  readonly namespaces?: readonly { readonly nsid: number; readonly bdev_name: string }[]
}

/** Answers what the hosts type to connect. When it fails, what it has made is gone again. */
export async function exportOverNvme(call: Call, disk: NvmeExport): Promise<string[]> {
  const { bdev, nqn, serialNumber } = disk
  const listeners = disk.listen.map(parseListen)
  if (!(await has(call, 'nvmf_get_transports', { trtype: 'TCP' }))) {
    await call('nvmf_create_transport', { trtype: 'TCP' })
  }
  const isNew = !(await has(call, 'nvmf_get_subsystems', { nqn }))
  if (isNew) {
    await call('nvmf_create_subsystem', {
      ...{ nqn, allow_any_host: true, ana_reporting: true },
      ...(serialNumber === undefined ? {} : { serial_number: serialNumber }),
    })
  }
  try {
    if ((await namespaceOf(call, nqn, bdev)) === undefined) {
      await call('nvmf_subsystem_add_ns', { nqn, namespace: { bdev_name: bdev } })
    }
    const present = (await call('nvmf_subsystem_get_listeners', { nqn })) as Listener[]
    for (const { traddr, trsvcid } of listeners) {
      if (present.some(({ address }) => address.traddr === traddr && address.trsvcid === trsvcid)) continue
      const adrfam = traddr.includes(':') ? 'IPv6' : 'IPv4'
      await call('nvmf_subsystem_add_listener', {
        nqn,
        listen_address: { trtype: 'TCP', adrfam, traddr, trsvcid },
      })
    }
  } catch (error) {
    if (isNew) await call('nvmf_delete_subsystem', { nqn })
    throw error
  }
  return listeners.map(({ traddr, trsvcid }) => `nvme connect -t tcp -a ${traddr} -s ${trsvcid} -n ${nqn}`)
}

/** By its serial number a subsystem of a volume is told from one that somebody made by hand. */
export const volumeSerialOf = (nqn: string): string =>
  `VOL${createHash('sha256').update(nqn).digest('hex').slice(0, 17).toUpperCase()}`

/** What serves a bdev by our making. */
export interface Serving {
  /** `subsystem nqn…`. */
  readonly what: string
  /** Who has it open at this moment. */
  readonly users: readonly string[]
  /** It can be taken from them. */
  readonly canForce: boolean
  take(): Promise<void>
}

/** The subsystems of `volumeSerialOf` that have a bdev: it is taken out of them, and those that have nothing else go. */
export async function servedOverNvme(call: Call, bdev: string): Promise<Serving[]> {
  const subsystems = (await call('nvmf_get_subsystems')) as Subsystem[]
  const found: Serving[] = []
  for (const { nqn, serial_number, namespaces = [] } of subsystems) {
    const own = namespaces.filter(({ bdev_name }) => bdev_name === bdev)
    if (own.length === 0 || serial_number !== volumeSerialOf(nqn)) continue
    const hosts = (await call('nvmf_subsystem_get_controllers', { nqn })) as { hostnqn: string }[]
    const take = async (): Promise<void> => {
      if (own.length === namespaces.length) await call('nvmf_delete_subsystem', { nqn })
      else for (const { nsid } of own) await call('nvmf_subsystem_remove_ns', { nqn, nsid })
    }
    const users = [...new Set(hosts.map(({ hostnqn }) => `host ${hostnqn}`))]
    found.push({ what: `subsystem ${nqn}`, users, canForce: true, take })
  }
  return found
}

async function namespaceOf(call: Call, nqn: string, bdev: string): Promise<number | undefined> {
  const subsystems = (await call('nvmf_get_subsystems')) as Subsystem[]
  const subsystem = subsystems.find(each => each.nqn === nqn)
  return subsystem?.namespaces?.find(({ bdev_name }) => bdev_name === bdev)?.nsid
}

/** Whether one of the objects that a method lists has these values. */
export async function has(
  call: Call,
  method: string,
  wanted: Readonly<Record<string, string>>,
): Promise<boolean> {
  const rows = (await call(method)) as Record<string, unknown>[]
  return rows.some(row => Object.entries(wanted).every(([key, value]) => row[key] === value))
}

/** Throws `RpcError` EINVAL. */
export function parseListen(text: string): { traddr: string; trsvcid: string } {
  const match = /^(?:\[([\da-f:.]+)\]|([\d.]+)):(\d+)$/i.exec(text)
  if (match === null) {
    throw new RpcError(
      'EINVAL',
      `--listen ${text}: give IP:PORT, such as 192.0.2.7:4420 or [2001:db8::7]:4420`,
    )
  }
  return { traddr: (match[1] ?? match[2])!, trsvcid: match[3]! }
}
