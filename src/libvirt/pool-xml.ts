/**
 * A storage pool's document (libvirt's formatstorage), of all fourteen types. What a type requires, what it takes when
 * nothing is said and in which order it is written are libvirt's, so that a document goes to libvirt and comes back.
 */

import { formatXml, node, textNode } from '../core/xml.ts'
import { type Permissions, permissionsNode, readPermissions } from './permissions-xml.ts'
import { type PoolSource, readPoolSource, sourceNode } from './pool-source-xml.ts'
import { type PoolType, poolTypeRules, poolTypes, sanitizePath } from './pool-types.ts'
import { bytesNode, readBytes } from './size-xml.ts'
import { readUuid } from './uuid-xml.ts'
import { type ForeignPart, withForeign, XmlReader } from './xml-reader.ts'

export type { Permissions } from './permissions-xml.ts'
export type { PoolAdapter, PoolAuth, PoolDevice, PoolHost, PoolSource } from './pool-source-xml.ts'
export { type PoolType, poolTypes } from './pool-types.ts'

export interface PoolDocument {
  readonly type: PoolType
  /** Never empty, no slash. */
  readonly name: string
  /** Lower case, with hyphens; a document without one gets a new one when it is defined. */
  readonly uuid?: string | undefined
  /** Only in what is written about a pool that is there. */
  readonly usage?: PoolUsage | undefined
  /** Whether files are copied on write (btrfs); only dir and fs. */
  readonly copyOnWrite?: boolean | undefined
  readonly source: PoolSource
  /** Absent for rbd, sheepdog, gluster and iscsi-direct: they have nothing in the file system. */
  readonly target?: PoolTarget | undefined
  /** How the allocation of a volume is found: by asking for each, or taken to be its capacity (rbd). */
  readonly refreshAllocation?: 'default' | 'capacity' | undefined
  /** `fs:mount_opts` (fs, netfs). */
  readonly mountOptions?: readonly string[] | undefined
  /** `rbd:config_opts` (rbd). */
  readonly configOptions?: readonly { readonly name: string; readonly value: string }[] | undefined
  /** What this reader does not know, kept. */
  readonly foreign?: readonly ForeignPart[] | undefined
}

export interface PoolUsage {
  readonly capacityBytes: number
  readonly allocationBytes: number
  readonly availableBytes: number
}

export interface PoolTarget {
  /** Absolute, without double or trailing slashes. */
  readonly path: string
  readonly permissions?: Permissions | undefined
}

const FS_NAMESPACE = 'http://libvirt.org/schemas/storagepool/fs/1.0'
const RBD_NAMESPACE = 'http://libvirt.org/schemas/storagepool/rbd/1.0'

/** Reads a pool's document. Throws `RpcError` EINVAL with the line and the reason. */
export function parsePool(text: string): PoolDocument {
  const root = XmlReader.parse(text, 'the pool document', 'pool')
  const type = root.choice('type', poolTypes) ?? root.fail("<pool> has no attribute 'type'")
  const sourceReader = root.child('source')
  const given = readPoolSource(sourceReader, type)
  const name = readName(root, type, given)
  const source = completeSource(root, type, given, name)
  const target = readTarget(root, type, source)
  const document: PoolDocument = {
    type,
    name,
    uuid: readUuid(root.child('uuid')),
    usage: readUsage(root),
    copyOnWrite: readCopyOnWrite(root, type),
    source,
    target,
    refreshAllocation: root.child('refresh')?.child('volume')?.choice('allocation', ['default', 'capacity']),
    mountOptions: readMountOptions(root, type),
    configOptions: readConfigOptions(root, type),
  }
  return { ...document, foreign: root.foreign() }
}

/** Writes a pool's document as libvirt would. */
export function formatPool(pool: PoolDocument): string {
  const namespaces = {
    'xmlns:fs': pool.mountOptions && FS_NAMESPACE,
    'xmlns:rbd': pool.configOptions && RBD_NAMESPACE,
  }
  const root = node(
    'pool',
    { type: pool.type, ...namespaces },
    textNode('name', pool.name),
    textNode('uuid', pool.uuid),
    bytesNode('capacity', pool.usage?.capacityBytes),
    bytesNode('allocation', pool.usage?.allocationBytes),
    bytesNode('available', pool.usage?.availableBytes),
    pool.copyOnWrite === undefined
      ? undefined
      : node('features', {}, node('cow', { state: pool.copyOnWrite ? 'yes' : 'no' })),
    sourceNode(pool.source),
    pool.target &&
      node('target', {}, textNode('path', pool.target.path), permissionsNode(pool.target.permissions)),
    pool.refreshAllocation && node('refresh', {}, node('volume', { allocation: pool.refreshAllocation })),
    pool.mountOptions &&
      node('fs:mount_opts', {}, ...pool.mountOptions.map(name => node('fs:option', { name }))),
    pool.configOptions &&
      node('rbd:config_opts', {}, ...pool.configOptions.map(option => node('rbd:option', { ...option }))),
  )
  return formatXml(withForeign(root, pool.foreign))
}

/** The pool's own name, or that of its source where the type has one. */
function readName(root: XmlReader, type: PoolType, source: PoolSource): string {
  const own = root.childText('name')
  const name = own ?? (poolTypeRules[type].isNamed ? source.name : undefined)
  if (name === undefined) return root.fail('the pool has no <name>')
  if (/[/\n]/.test(name)) root.fail(`the pool's name ${JSON.stringify(name)} has a slash or a line end`)
  return name
}

/** Fills in what is taken when nothing is said, and refuses a source that lacks something. */
function completeSource(root: XmlReader, type: PoolType, given: PoolSource, name: string): PoolSource {
  const { requires, isNamed } = poolTypeRules[type]
  const has = {
    host: given.hosts !== undefined,
    device: given.devices !== undefined,
    dir: given.dir !== undefined,
    adapter: given.adapter !== undefined,
    initiator: given.initiatorIqn !== undefined,
  }
  for (const part of requires) {
    if (!has[part]) root.fail(`a pool of type ${type} has ${EXAMPLES[part]} in its <source>`)
  }
  if (type === 'rbd' && given.name === undefined) {
    root.fail("a pool of type rbd has the Ceph pool's <name> in its <source>")
  }
  return {
    ...given,
    name: isNamed ? (given.name ?? name) : given.name,
    dir: type === 'gluster' ? (given.dir ?? '/') : given.dir,
  }
}

const EXAMPLES = {
  host: "a <host name='…'/>",
  device: "a <device path='…'/>",
  dir: "a <dir path='…'/>",
  adapter: 'an <adapter>',
  initiator: "an <initiator><iqn name='…'/></initiator>",
} as const

function readTarget(root: XmlReader, type: PoolType, source: PoolSource): PoolTarget | undefined {
  const { target } = poolTypeRules[type]
  if (target === 'none') return undefined
  const reader = root.child('target')
  const own = reader?.childText('path')
  const path = target === 'own' ? own : target(source.name ?? '')
  if (path === undefined) return root.fail(`a pool of type ${type} has a <path> in its <target>`)
  if (!path.startsWith('/')) root.fail(`the target path ${path} is not absolute`)
  return { path: sanitizePath(path), permissions: readPermissions(reader) }
}

function readUsage(root: XmlReader): PoolUsage | undefined {
  const bytes = (name: string): number | undefined => readBytes(root.child(name))
  const capacityBytes = bytes('capacity')
  const allocationBytes = bytes('allocation')
  const availableBytes = bytes('available')
  if (capacityBytes === undefined || allocationBytes === undefined || availableBytes === undefined) {
    return undefined
  }
  return { capacityBytes, allocationBytes, availableBytes }
}

function readCopyOnWrite(root: XmlReader, type: PoolType): boolean | undefined {
  const cow = root.child('features')?.child('cow')
  const state = cow?.choice('state', ['yes', 'no'])
  if (state === undefined) return undefined
  if (type !== 'dir' && type !== 'fs') cow!.fail(`copy on write is set for dir and fs pools, not for ${type}`)
  return state === 'yes'
}

function readMountOptions(root: XmlReader, type: PoolType): readonly string[] | undefined {
  root.refuseElsewhere('mount_opts', FS_NAMESPACE)
  const reader = root.child('mount_opts', FS_NAMESPACE)
  if (reader === undefined) return undefined
  if (type !== 'fs' && type !== 'netfs')
    reader.fail(`mount options are for fs and netfs pools, not for ${type}`)
  return reader.children('option', FS_NAMESPACE).map(option => option.required('name'))
}

function readConfigOptions(root: XmlReader, type: PoolType): PoolDocument['configOptions'] {
  root.refuseElsewhere('config_opts', RBD_NAMESPACE)
  const reader = root.child('config_opts', RBD_NAMESPACE)
  if (reader === undefined) return undefined
  if (type !== 'rbd') reader.fail(`configuration options are for rbd pools, not for ${type}`)
  return reader
    .children('option', RBD_NAMESPACE)
    .map(option => ({ name: option.required('name'), value: option.required('value') }))
}
