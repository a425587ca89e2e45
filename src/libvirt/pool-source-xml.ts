/** `<source>` of a storage pool. */

import { node, nodeUnlessEmpty, textNode, type XmlNode } from '../core/xml.ts'
import { type PoolType, poolTypeRules, sanitizePath } from './pool-types.ts'
import type { XmlReader } from './xml-reader.ts'

export interface PoolSource {
  /** The volume group, Ceph pool, Gluster volume, zpool, cluster. */
  readonly name?: string | undefined
  readonly hosts?: readonly PoolHost[] | undefined
  readonly devices?: readonly PoolDevice[] | undefined
  /** The exported directory of a server. */
  readonly dir?: string | undefined
  /** One of the type's formats. */
  readonly format?: string | undefined
  readonly adapter?: PoolAdapter | undefined
  /** The qualified name by which an initiator logs in (iscsi, iscsi-direct). */
  readonly initiatorIqn?: string | undefined
  readonly auth?: PoolAuth | undefined
  /** The version of NFS (netfs). */
  readonly protocolVersion?: number | undefined
  readonly vendor?: string | undefined
  readonly product?: string | undefined
}

export interface PoolHost {
  readonly name: string
  readonly port?: number | undefined
}

export interface PoolDevice {
  /** A block device, or the qualified name of an iSCSI target. */
  readonly path: string
  /** Whether partitions of a multipath device have a p before their number. */
  readonly partSeparator?: boolean | undefined
  /** Only in what is written about a disk pool that is there. */
  readonly freeExtents?: readonly { readonly startBytes: number; readonly endBytes: number }[] | undefined
}

/** Where a scsi pool's units are: at a host adapter by name or by address, or at a virtual Fibre Channel one. */
export type PoolAdapter =
  | { readonly type: 'scsi_host'; readonly name: string }
  | { readonly type: 'scsi_host'; readonly uniqueId: number; readonly address: PciAddress }
  | {
      readonly type: 'fc_host'
      readonly wwnn: string
      readonly wwpn: string
      readonly parent?: string | undefined
      readonly parentWwnn?: string | undefined
      readonly parentWwpn?: string | undefined
      readonly parentFabricWwn?: string | undefined
      readonly isManaged?: boolean | undefined
    }

export interface PciAddress {
  readonly domain: number
  readonly bus: number
  readonly slot: number
  readonly function: number
}

export interface PoolAuth {
  readonly type: 'chap' | 'ceph'
  readonly username: string
  /** A libvirt secret, by either. */
  readonly secret: { readonly uuid: string } | { readonly usage: string }
}

/** Reads the source; what is required is checked by the caller, for a document may leave the whole element out. */
export function readPoolSource(reader: XmlReader | undefined, type: PoolType): PoolSource {
  const { formats } = poolTypeRules[type]
  if (reader === undefined) return { format: formats?.[0] }
  const format = formats && (reader.child('format')?.choice('type', formats) ?? formats[0])
  const dir = reader.child('dir')?.attribute('path')
  return {
    name: reader.childText('name'),
    hosts: unlessEmpty(reader.children('host').map(readHost)),
    devices: unlessEmpty(reader.children('device').map(readDevice)),
    dir: dir === undefined ? undefined : sanitizePath(dir),
    format,
    adapter: readAdapter(reader.child('adapter')),
    initiatorIqn: reader.child('initiator')?.child('iqn')?.attribute('name'),
    auth: readAuth(reader.child('auth')),
    protocolVersion: readProtocolVersion(reader.child('protocol'), type, format),
    vendor: reader.child('vendor')?.attribute('name'),
    product: reader.child('product')?.attribute('name'),
  }
}

const unlessEmpty = <Item>(items: readonly Item[]): readonly Item[] | undefined =>
  items.length === 0 ? undefined : items

const readHost = (reader: XmlReader): PoolHost => ({
  name: reader.required('name'),
  port: reader.number('port', 0, 65535) || undefined,
})

function readDevice(reader: XmlReader): PoolDevice {
  const separator = reader.choice('part_separator', ['yes', 'no'])
  const extents = reader.children('freeExtent').map(extent => ({
    startBytes: extent.number('start', 0, Number.MAX_SAFE_INTEGER) ?? extent.fail('it has no start'),
    endBytes: extent.number('end', 0, Number.MAX_SAFE_INTEGER) ?? extent.fail('it has no end'),
  }))
  return {
    path: reader.required('path'),
    partSeparator: separator && separator === 'yes',
    freeExtents: unlessEmpty(extents),
  }
}

function readAdapter(reader: XmlReader | undefined): PoolAdapter | undefined {
  if (reader === undefined) return undefined
  const name = reader.attribute('name')
  const parentAddress = reader.child('parentaddr')
  if (reader.choice('type', ['scsi_host', 'fc_host']) === 'fc_host') return readFibreChannel(reader)
  if (name !== undefined && parentAddress !== undefined) {
    reader.fail('an adapter is told by its name or by <parentaddr>, not by both')
  }
  if (name !== undefined) return { type: 'scsi_host', name }
  if (parentAddress === undefined) {
    return reader.fail("a scsi_host adapter has the attribute 'name' or the element <parentaddr>")
  }
  const address = parentAddress.child('address') ?? parentAddress.fail('<parentaddr> has no <address>')
  return {
    type: 'scsi_host',
    uniqueId: parentAddress.number('unique_id', 0, 0xffff_ffff) ?? parentAddress.fail('it has no unique_id'),
    address: readPciAddress(address),
  }
}

function readFibreChannel(reader: XmlReader): PoolAdapter {
  const managed = reader.choice('managed', ['yes', 'no'])
  const parentWwnn = readWwn(reader, 'parent_wwnn')
  const parentWwpn = readWwn(reader, 'parent_wwpn')
  if ((parentWwnn === undefined) !== (parentWwpn === undefined)) {
    reader.fail('parent_wwnn and parent_wwpn come together')
  }
  return {
    type: 'fc_host',
    wwnn: readWwn(reader, 'wwnn') ?? reader.fail('an fc_host adapter has a wwnn'),
    wwpn: readWwn(reader, 'wwpn') ?? reader.fail('an fc_host adapter has a wwpn'),
    parent: reader.attribute('parent'),
    parentWwnn,
    parentWwpn,
    parentFabricWwn: readWwn(reader, 'parent_fabric_wwn'),
    isManaged: managed && managed === 'yes',
  }
}

function readWwn(reader: XmlReader, name: string): string | undefined {
  const value = reader.attribute(name)
  if (value === undefined || /^[0-9a-fA-F]{16}$/.test(value)) return value
  return reader.fail(`${name}='${value}': it is sixteen hexadecimal digits`)
}

/** libvirt writes the parts as hexadecimal numbers with 0x, and reads decimal ones too. */
export function readPciAddress(reader: XmlReader): PciAddress {
  const part = (name: string, max: number): number => {
    const text = reader.attribute(name) ?? '0'
    const value = /^(?:0x[0-9a-fA-F]{1,8}|[0-9]{1,8})$/.test(text) ? Number(text) : Number.NaN
    return value <= max ? value : reader.fail(`<address ${name}='${text}'>: it is a number up to ${max}`)
  }
  return {
    domain: part('domain', 0xffff),
    bus: part('bus', 0xff),
    slot: part('slot', 0x1f),
    function: part('function', 7),
  }
}

function readAuth(reader: XmlReader | undefined): PoolAuth | undefined {
  if (reader === undefined) return undefined
  const secret = reader.child('secret') ?? reader.fail('<auth> has no <secret>')
  const uuid = secret.attribute('uuid')
  const usage = secret.attribute('usage')
  if ((uuid === undefined) === (usage === undefined)) {
    secret.fail("a secret is told by its 'uuid' or by its 'usage', by one of them")
  }
  return {
    type: reader.choice('type', ['chap', 'ceph']) ?? reader.fail("<auth> has no type, 'chap' or 'ceph'"),
    username: reader.required('username'),
    secret: uuid === undefined ? { usage: usage! } : { uuid },
  }
}

function readProtocolVersion(
  reader: XmlReader | undefined,
  type: PoolType,
  format: string | undefined,
): number | undefined {
  const version = reader?.number('ver', 1, 0xffff_ffff)
  const hasVersion = type === 'netfs' && (format === 'nfs' || format === 'auto')
  if (version !== undefined && !hasVersion) {
    reader!.fail(`a version of the protocol is for netfs pools of format nfs, not for ${format ?? type}`)
  }
  return version
}

/** Writes the source, in libvirt's order. */
export function sourceNode(source: PoolSource): XmlNode {
  return node(
    'source',
    {},
    ...(source.hosts ?? []).map(({ name, port }) => node('host', { name, port })),
    ...(source.devices ?? []).map(deviceNode),
    source.dir === undefined ? undefined : node('dir', { path: source.dir }),
    source.adapter && adapterNode(source.adapter),
    textNode('name', source.name),
    source.initiatorIqn === undefined
      ? undefined
      : node('initiator', {}, node('iqn', { name: source.initiatorIqn })),
    source.format === undefined ? undefined : node('format', { type: source.format }),
    source.auth && authNode(source.auth),
    nodeUnlessEmpty(node('protocol', { ver: source.protocolVersion })),
    nodeUnlessEmpty(node('vendor', { name: source.vendor })),
    nodeUnlessEmpty(node('product', { name: source.product })),
  )
}

function deviceNode({ path, partSeparator, freeExtents }: PoolDevice): XmlNode {
  const extents = (freeExtents ?? []).map(({ startBytes, endBytes }) =>
    node('freeExtent', { start: startBytes, end: endBytes }),
  )
  return node('device', { path, part_separator: yesOrNo(partSeparator) }, ...extents)
}

function adapterNode(adapter: PoolAdapter): XmlNode {
  if (adapter.type === 'fc_host') {
    return node('adapter', {
      type: adapter.type,
      parent: adapter.parent,
      parent_wwnn: adapter.parentWwnn,
      parent_wwpn: adapter.parentWwpn,
      parent_fabric_wwn: adapter.parentFabricWwn,
      managed: yesOrNo(adapter.isManaged),
      wwnn: adapter.wwnn,
      wwpn: adapter.wwpn,
    })
  }
  if ('name' in adapter) return node('adapter', { type: adapter.type, name: adapter.name })
  const { domain, bus, slot, function: fn } = adapter.address
  const address = node('address', {
    domain: hexadecimal(domain, 4),
    bus: hexadecimal(bus, 2),
    slot: hexadecimal(slot, 2),
    function: hexadecimal(fn, 1),
  })
  return node('adapter', { type: adapter.type }, node('parentaddr', { unique_id: adapter.uniqueId }, address))
}

const authNode = ({ type, username, secret }: PoolAuth): XmlNode =>
  node('auth', { type, username }, node('secret', { ...secret }))

const yesOrNo = (value: boolean | undefined): string | undefined =>
  value === undefined ? undefined : value ? 'yes' : 'no'

const hexadecimal = (value: number, digits: number): string => `0x${value.toString(16).padStart(digits, '0')}`
