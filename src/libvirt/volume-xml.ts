/** A storage volume's document (libvirt's formatstorage). */

import { formatXml, node, nodeUnlessEmpty, textNode, type XmlNode } from '../core/xml.ts'
import { type Permissions, permissionsNode, readPermissions } from './permissions-xml.ts'
import type { PoolType } from './pool-types.ts'
import { bytesNode, readBytes } from './size-xml.ts'
import { type ForeignPart, withForeign, XmlReader } from './xml-reader.ts'

const volumeTypes = ['file', 'block', 'dir', 'network', 'netdir', 'ploop'] as const
export type VolumeType = (typeof volumeTypes)[number]

/** What a file can hold. libvirt knows them all; which ones a pool can make is the pool's business. */
const fileFormats = [
  'raw',
  'dir',
  'bochs',
  'cloop',
  'dmg',
  'iso',
  'vpc',
  'vdi',
  'fat',
  'vhd',
  'ploop',
  'cow',
  'qcow',
  'qcow2',
  'qed',
  'vmdk',
] as const

/** What a partition is made for, in a disk pool. */
const partitionFormats = [
  'none',
  'linux',
  'fat16',
  'fat32',
  'linux-swap',
  'linux-lvm',
  'linux-raid',
  'extended',
] as const

export interface VolumeDocument {
  /** Only in what is written about a volume that is there. */
  readonly type?: VolumeType | undefined
  /** Never empty, no slash. */
  readonly name: string
  /** What tells it from every other volume; given by the pool. */
  readonly key?: string | undefined
  /** Absent only where a backing store says it. */
  readonly capacityBytes?: number | undefined
  /** Absent: the whole capacity is allocated when the volume is made. */
  readonly allocationBytes?: number | undefined
  readonly physicalBytes?: number | undefined
  /** Where its blocks are on the pool's devices. */
  readonly extents?: readonly VolumeExtent[] | undefined
  readonly target: VolumeTarget
  readonly backingStore?: BackingStore | undefined
  /** What this reader does not know, kept. */
  readonly foreign?: readonly ForeignPart[] | undefined
}

export interface VolumeExtent {
  readonly devicePath: string
  readonly startBytes: number
  readonly endBytes: number
}

export interface VolumeTarget {
  /** Where it is; given by the pool. */
  readonly path?: string | undefined
  /** One of `fileFormats`, in a disk pool one of `partitionFormats`. */
  readonly format?: string | undefined
  readonly permissions?: Permissions | undefined
  readonly timestamps?: Timestamps | undefined
  readonly encryption?: Encryption | undefined
  /** The version of QEMU that can read a qcow2 file: 0.10 or 1.1. */
  readonly compat?: string | undefined
  /** No copy on write by the file system (btrfs). */
  readonly isNoCow?: boolean | undefined
  readonly clusterSizeBytes?: number | undefined
  readonly lazyRefcounts?: boolean | undefined
}

/** Seconds since 1970, with as many as nine digits of a fraction: as text, for a number would lose some. */
export interface Timestamps {
  readonly atime?: string | undefined
  readonly mtime?: string | undefined
  readonly ctime?: string | undefined
  readonly btime?: string | undefined
}

export interface Encryption {
  /** `luks`, or one of the old ones. */
  readonly format: string
  readonly secret?: { readonly uuid: string } | { readonly usage: string } | undefined
}

export interface BackingStore {
  readonly path: string
  readonly format?: string | undefined
  readonly permissions?: Permissions | undefined
}

/** Reads a volume's document for a pool of a type. Throws `RpcError` EINVAL with the line and the reason. */
export function parseVolume(text: string, poolType: PoolType): VolumeDocument {
  const root = XmlReader.parse(text, 'the volume document', 'volume')
  const name = root.childText('name') ?? root.fail('the volume has no <name>')
  if (/[/\n]/.test(name)) root.fail(`the volume's name ${JSON.stringify(name)} has a slash or a line end`)
  const backingStore = readBackingStore(root.child('backingStore'), poolType)
  const capacityBytes = readBytes(root.child('capacity'))
  if (capacityBytes === undefined && backingStore === undefined) root.fail('the volume has no <capacity>')
  const document: VolumeDocument = {
    type: root.choice('type', volumeTypes),
    name,
    key: root.childText('key'),
    capacityBytes,
    allocationBytes: readBytes(root.child('allocation')),
    physicalBytes: readBytes(root.child('physical')),
    extents: readExtents(root.child('source')),
    target: readTarget(root.child('target'), poolType),
    backingStore,
  }
  return { ...document, foreign: root.foreign() }
}

const formatsOf = (poolType: PoolType): readonly string[] =>
  poolType === 'disk' ? partitionFormats : fileFormats

function readTarget(reader: XmlReader | undefined, poolType: PoolType): VolumeTarget {
  if (reader === undefined) return {}
  const compat = reader.childText('compat')
  if (compat !== undefined && !/^[0-9]+\.[0-9]+$/.test(compat)) {
    reader.child('compat')!.fail(`<compat>${compat}: it is a version such as 1.1`)
  }
  const timestamps = reader.child('timestamps')
  return {
    path: reader.childText('path'),
    format: reader.child('format')?.choice('type', formatsOf(poolType)),
    permissions: readPermissions(reader),
    timestamps: timestamps && {
      atime: timestamps.childText('atime'),
      mtime: timestamps.childText('mtime'),
      ctime: timestamps.childText('ctime'),
      btime: timestamps.childText('btime'),
    },
    encryption: readEncryption(reader.child('encryption')),
    compat,
    isNoCow: reader.child('nocow') && true,
    clusterSizeBytes: readBytes(reader.child('clusterSize')),
    lazyRefcounts: reader.child('features')?.child('lazy_refcounts') && true,
  }
}

function readEncryption(reader: XmlReader | undefined): Encryption | undefined {
  if (reader === undefined) return undefined
  const secret = reader.child('secret')
  // There is only one type; it is written, and nobody needs to hear it.
  secret?.choice('type', ['passphrase'])
  const uuid = secret?.attribute('uuid')
  const usage = secret?.attribute('usage')
  return {
    format: reader.required('format'),
    secret: uuid !== undefined ? { uuid } : usage === undefined ? undefined : { usage },
  }
}

function readBackingStore(reader: XmlReader | undefined, poolType: PoolType): BackingStore | undefined {
  const path = reader?.childText('path')
  if (reader === undefined || path === undefined) return undefined
  return {
    path,
    format: reader.child('format')?.choice('type', formatsOf(poolType)),
    permissions: readPermissions(reader),
  }
}

function readExtents(source: XmlReader | undefined): readonly VolumeExtent[] | undefined {
  const extents = (source?.children('device') ?? []).flatMap(device =>
    device.children('extent').map(extent => ({
      devicePath: device.required('path'),
      startBytes: extent.number('start', 0, Number.MAX_SAFE_INTEGER) ?? extent.fail('it has no start'),
      endBytes: extent.number('end', 0, Number.MAX_SAFE_INTEGER) ?? extent.fail('it has no end'),
    })),
  )
  return extents.length === 0 ? undefined : extents
}

/** Writes a volume's document as libvirt would. */
export function formatVolume(volume: VolumeDocument): string {
  const { target, backingStore } = volume
  const root = node(
    'volume',
    { type: volume.type },
    textNode('name', volume.name),
    textNode('key', volume.key),
    nodeUnlessEmpty(node('source', {}, ...extentNodes(volume.extents ?? []))),
    bytesNode('capacity', volume.capacityBytes),
    bytesNode('allocation', volume.allocationBytes),
    bytesNode('physical', volume.physicalBytes),
    nodeUnlessEmpty(
      node(
        'target',
        {},
        textNode('path', target.path),
        target.format === undefined ? undefined : node('format', { type: target.format }),
        permissionsNode(target.permissions),
        target.timestamps && timestampsNode(target.timestamps),
        target.encryption && encryptionNode(target.encryption),
        textNode('compat', target.compat),
        target.isNoCow ? node('nocow') : undefined,
        textNode('clusterSize', target.clusterSizeBytes, { unit: 'B' }),
        target.lazyRefcounts ? node('features', {}, node('lazy_refcounts')) : undefined,
      ),
    ),
    backingStore &&
      node(
        'backingStore',
        {},
        textNode('path', backingStore.path),
        backingStore.format === undefined ? undefined : node('format', { type: backingStore.format }),
        permissionsNode(backingStore.permissions),
      ),
  )
  return formatXml(withForeign(root, volume.foreign))
}

/** One element a device, though a device's extents need not stand together. */
function extentNodes(extents: readonly VolumeExtent[]): XmlNode[] {
  const paths = [...new Set(extents.map(({ devicePath }) => devicePath))]
  return paths.map(path =>
    node(
      'device',
      { path },
      ...extents
        .filter(({ devicePath }) => devicePath === path)
        .map(({ startBytes, endBytes }) => node('extent', { start: startBytes, end: endBytes })),
    ),
  )
}

const timestampsNode = ({ atime, mtime, ctime, btime }: Timestamps): XmlNode | undefined =>
  nodeUnlessEmpty(
    node(
      'timestamps',
      {},
      textNode('atime', atime),
      textNode('mtime', mtime),
      textNode('ctime', ctime),
      textNode('btime', btime),
    ),
  )

const encryptionNode = ({ format, secret }: Encryption): XmlNode =>
  node('encryption', { format }, secret && node('secret', { type: 'passphrase', ...secret }))
