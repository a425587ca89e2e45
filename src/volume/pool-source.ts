/** What a pool has to itself, so that no two pools are made of the same storage: each would believe that all of it is its own. */

import { realPath } from '../core/real-path.ts'
import type { PoolDocument } from '../libvirt/pool-xml.ts'

const ISCSI_PORT = 3260
/** Types whose target is a directory of their own; the others say /dev, all of them. */
const HAVE_DIRECTORY: ReadonlySet<string> = new Set(['dir', 'fs', 'netfs', 'gluster', 'vstorage'])

/**
 * Everything that a pool of this document has to itself, as text for people. Two documents that have one in common are of
 * the same storage: libvirt's rule (virStoragePoolObjSourceFindDuplicate), and the same for types that it leaves out.
 */
export async function holdingsOf(document: PoolDocument): Promise<readonly string[]> {
  const { type, target } = document
  const sources = await sourcesOf(document)
  if (target === undefined || !HAVE_DIRECTORY.has(type)) return sources
  // What is mounted there may be of a server that is gone, and keeps whoever looks waiting.
  return [`the directory ${type === 'dir' ? await realPath(target.path) : target.path}`, ...sources]
}

async function sourcesOf({ type, source }: PoolDocument): Promise<string[]> {
  const { name = '', dir = '', devices = [], adapter, initiatorIqn = 'this host' } = source
  switch (type) {
    case 'fs':
    case 'disk':
      return devicesOf(devices)
    case 'logical':
      return [`the volume group ${name}`, ...(await devicesOf(devices))]
    case 'netfs':
      return hostsOf(source).map(host => `the directory ${dir} of ${host}`)
    case 'gluster':
      return hostsOf(source).map(host => `the Gluster volume ${name} of ${host}, from ${dir} on`)
    case 'rbd':
      return hostsOf(source).map(host => `the Ceph pool ${name} of the monitor ${host}`)
    case 'zfs':
      return [`the dataset ${name}`]
    case 'scsi':
      return [`the adapter ${JSON.stringify(adapter)}`]
    // The kernel and libiscsi are two initiators, whatever both call themselves.
    case 'iscsi':
    case 'iscsi-direct':
      return hostsOf(source, ISCSI_PORT).flatMap(host =>
        devices.map(({ path }) => `the target ${path} of ${host} by ${type} as ${initiatorIqn}`),
      )
    default:
      return []
  }
}

function hostsOf({ hosts = [] }: PoolDocument['source'], usualPort?: number): string[] {
  return hosts.map(({ name, port = usualPort }) => (port === undefined ? name : `${name}:${port}`))
}

const devicesOf = (devices: NonNullable<PoolDocument['source']['devices']>): Promise<string[]> =>
  Promise.all(devices.map(async ({ path }) => `the device ${await realPath(path)}`))
