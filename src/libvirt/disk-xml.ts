/** A disk of a domain: the element that libvirt takes, and QEMU's own words for the NVMe disk that libvirt has none for. */
import { RpcError } from '../core/errors.ts'
import { node, nodeUnlessEmpty, textNode, type XmlNode } from '../core/xml.ts'
import { vhostDiskNode } from '../vhost/libvirt-xml.ts'

/** Where the data of a disk is, as QEMU reaches it. */
export type DiskSource =
  | { readonly kind: 'file' | 'block'; readonly path: string; readonly format: string }
  /** A vhost-user blk controller's socket. */
  | { readonly kind: 'vhost'; readonly socketPath: string; readonly isPacked: boolean }
  | { readonly kind: 'nbd'; readonly name: string; readonly server: NbdServer }
  | {
      readonly kind: 'rbd'
      /** `POOL/IMAGE`, or `POOL/NAMESPACE/IMAGE`. */
      readonly name: string
      readonly hosts: readonly DiskHost[]
      readonly auth?: DiskAuth | undefined
      readonly configFile?: string | undefined
    }
  | {
      readonly kind: 'iscsi'
      readonly iqn: string
      readonly lun: number
      readonly hosts: readonly DiskHost[]
      readonly auth?: DiskAuth | undefined
      readonly initiatorIqn?: string | undefined
    }

export type NbdServer = { readonly socketPath: string } | DiskHost

export interface DiskHost {
  readonly name: string
  readonly port?: number | undefined
}

export interface DiskAuth {
  readonly username: string
  /** A libvirt secret, by either. */
  readonly secret: { readonly uuid: string } | { readonly usage: string }
}

export interface DiskOptions {
  /** What the domain calls it, which is not what the guest calls it: `vdb`, `sdc`. */
  readonly target: string
  readonly bus: 'virtio' | 'scsi' | 'sata' | 'usb' | 'ide'
  readonly isReadOnly: boolean
  /** At most 20 characters reach a guest over virtio, 36 over SCSI. */
  readonly serial?: string | undefined
}

/** Seconds for which requests wait for an NBD server that is started again, before they fail. */
export const NBD_RECONNECT_S = 60

/** The `<disk>` element. Throws `RpcError` EINVAL for what that source cannot be. */
export function diskNode(source: DiskSource, options: DiskOptions): XmlNode {
  const { target, bus, isReadOnly, serial } = options
  if (source.kind === 'vhost') {
    if (bus !== 'virtio') {
      throw new RpcError('EINVAL', `a vhost-user disk is on the virtio bus, not on ${bus}`)
    }
    return vhostDiskNode(source.socketPath, { target, queues: undefined, isPacked: source.isPacked })
  }
  const isLocal = source.kind === 'file' || source.kind === 'block'
  const format = isLocal ? source.format : 'raw'
  return node(
    'disk',
    { type: isLocal ? source.kind : 'network', device: format === 'iso' ? 'cdrom' : 'disk' },
    node('driver', {
      name: 'qemu',
      type: format === 'iso' ? 'raw' : format,
      // What the guest frees is given back to a thin volume.
      discard: isReadOnly ? undefined : 'unmap',
    }),
    authNode(source),
    sourceNode(source),
    node('target', { dev: target, bus }),
    isReadOnly ? node('readonly') : undefined,
    textNode('serial', serial),
  )
}

function sourceNode(source: Exclude<DiskSource, { kind: 'vhost' }>): XmlNode {
  switch (source.kind) {
    case 'file':
      return node('source', { file: source.path })
    case 'block':
      return node('source', { dev: source.path })
    case 'nbd':
      return node(
        'source',
        { protocol: 'nbd', name: source.name },
        'socketPath' in source.server
          ? node('host', { transport: 'unix', socket: source.server.socketPath })
          : hostNode(source.server),
        node('reconnect', { delay: NBD_RECONNECT_S }),
      )
    case 'rbd':
      return node(
        'source',
        { protocol: 'rbd', name: source.name },
        ...source.hosts.map(hostNode),
        nodeUnlessEmpty(node('config', { file: source.configFile })),
      )
    case 'iscsi':
      return node(
        'source',
        { protocol: 'iscsi', name: `${source.iqn}/${source.lun}` },
        ...source.hosts.map(hostNode),
        source.initiatorIqn === undefined
          ? undefined
          : node('initiator', {}, node('iqn', { name: source.initiatorIqn })),
      )
  }
}

const hostNode = ({ name, port }: DiskHost): XmlNode => node('host', { name, port })

function authNode(source: DiskSource): XmlNode | undefined {
  if ((source.kind !== 'rbd' && source.kind !== 'iscsi') || source.auth === undefined) return undefined
  const { username, secret } = source.auth
  const type = source.kind === 'rbd' ? 'ceph' : 'iscsi'
  return node('auth', { username }, node('secret', { type, ...secret }))
}

/** An NVMe controller with one namespace, which QEMU has and libvirt does not know. */
export interface NvmeDisk {
  /** QEMU's id of the drive; the device finds it by that. */
  readonly id: string
  readonly serial: string
  readonly source: DiskSource
  readonly isReadOnly: boolean
  /** The slot on the first PCI bus, for what starts with the guest. */
  readonly slot?: number | undefined
}

/** QEMU's arguments for an NVMe disk. Throws `RpcError` EINVAL for a source that QEMU cannot open itself. */
export function nvmeArguments(disk: NvmeDisk): string[] {
  const drive = optionText({
    ...driveSource(disk.source),
    if: 'none',
    id: disk.id,
    format: formatOf(disk.source),
    readonly: disk.isReadOnly ? 'on' : undefined,
    discard: 'unmap',
  })
  const addr = disk.slot === undefined ? undefined : `0x${disk.slot.toString(16)}`
  return ['-drive', drive, '-device', `nvme,${optionText({ drive: disk.id, serial: disk.serial, addr })}`]
}

/** What QEMU calls the contents. */
export function formatOf(source: DiskSource): string {
  const isLocal = source.kind === 'file' || source.kind === 'block'
  return isLocal && source.format !== 'iso' ? source.format : 'raw'
}

function driveSource(source: DiskSource): Readonly<Record<string, string | number | undefined>> {
  switch (source.kind) {
    case 'file':
    case 'block':
      return { file: source.path }
    case 'nbd':
      return nbdDrive(source)
    case 'rbd':
      return rbdDrive(source)
    case 'iscsi':
      refuseSecret(source)
      return {
        'file.driver': 'iscsi',
        'file.transport': 'tcp',
        'file.portal': `${source.hosts[0]!.name}:${source.hosts[0]!.port ?? 3260}`,
        'file.target': source.iqn,
        'file.lun': source.lun,
        'file.initiator-name': source.initiatorIqn,
      }
    case 'vhost':
      throw new RpcError('EINVAL', 'QEMU has no NVMe disk over vhost-user: take the virtio bus, or NBD')
  }
}

function nbdDrive({ name, server }: Extract<DiskSource, { kind: 'nbd' }>): Record<string, string | number> {
  const address = Object.entries(nbdServer(server)).map(([key, value]) => [`file.server.${key}`, value])
  return {
    'file.driver': 'nbd',
    ...Object.fromEntries(address),
    'file.export': name,
    'file.reconnect-delay': NBD_RECONNECT_S,
  }
}

/** The address of an NBD server in QEMU's words (SocketAddress). */
export const nbdServer = (server: NbdServer): Readonly<Record<string, string>> =>
  'socketPath' in server
    ? { type: 'unix', path: server.socketPath }
    : { type: 'inet', host: server.name, port: `${server.port ?? 10809}` }

function rbdDrive(source: Extract<DiskSource, { kind: 'rbd' }>): Record<string, string | undefined> {
  refuseSecret(source)
  const [pool, ...rest] = source.name.split('/')
  const image = rest.pop()
  const server = source.hosts.flatMap(({ name, port }, index) => [
    [`file.server.${index}.host`, name],
    [`file.server.${index}.port`, `${port ?? 6789}`],
  ])
  return {
    'file.driver': 'rbd',
    'file.pool': pool,
    'file.namespace': rest[0],
    'file.image': image,
    'file.conf': source.configFile,
    ...Object.fromEntries(server),
  }
}

/** libvirt hands a secret to QEMU for its own disks only; in an argument everybody on the machine would read it. */
export function refuseSecret({ kind, auth }: Extract<DiskSource, { kind: 'rbd' | 'iscsi' }>): void {
  if (auth === undefined) return
  const what = kind === 'rbd' ? 'RBD image' : 'iSCSI unit'
  throw new RpcError(
    'EINVAL',
    `an NVMe disk cannot reach an ${what} with a secret by itself: open it in the daemon, so that it is served over NBD`,
  )
}

/** `a=b,c=d`; a comma inside a value is doubled, as QEMU wants it. */
export const optionText = (options: Readonly<Record<string, string | number | undefined>>): string =>
  Object.entries(options)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => `${key}=${String(value).replaceAll(',', ',,')}`)
    .join(',')

/** The opposite: what stands before the first `=` of a part is its key; a first part without one has the key ''. */
export function parseOptions(text: string): ReadonlyMap<string, string> {
  const parts = text.match(/(?:[^,]|,,)+/g) ?? []
  return new Map(
    parts.map(part => {
      const whole = part.replaceAll(',,', ',')
      const at = whole.indexOf('=')
      return at < 0 ? ['', whole] : [whole.slice(0, at), whole.slice(at + 1)]
    }),
  )
}
