/** What libvirt's pool types have in their documents (virStoragePoolTypeInfo in its storage_conf.c). */

export const poolTypes = [
  'dir',
  'fs',
  'netfs',
  'logical',
  'disk',
  'iscsi',
  'iscsi-direct',
  'scsi',
  'mpath',
  'rbd',
  'sheepdog',
  'gluster',
  'zfs',
  'vstorage',
] as const

export type PoolType = (typeof poolTypes)[number]

export interface PoolTypeRules {
  /** What its source has to have. A name that is missing is the pool's own, but for rbd. */
  readonly requires: readonly ('host' | 'device' | 'dir' | 'adapter' | 'initiator')[]
  /** Its source has a name: a volume group, a Ceph pool, a Gluster volume … */
  readonly isNamed?: true
  /** The formats its source may have; the first is taken when nothing is said. */
  readonly formats?: readonly string[]
  /** Where its volumes are: `own` at a path of its document, `none` nowhere in the file system, else where this says. */
  readonly target: 'own' | 'none' | ((sourceName: string) => string)
}

export const poolTypeRules: Readonly<Record<PoolType, PoolTypeRules>> = {
  dir: { requires: [], target: 'own' },
  fs: {
    requires: ['device'],
    formats: [
      'auto',
      'ext2',
      'ext3',
      'ext4',
      'ufs',
      'iso9660',
      'udf',
      'gfs',
      'gfs2',
      'vfat',
      'hfs+',
      'xfs',
      'ocfs2',
      'vmfs',
    ],
    target: 'own',
  },
  netfs: { requires: ['host', 'dir'], formats: ['auto', 'nfs', 'glusterfs', 'cifs'], target: 'own' },
  logical: {
    requires: [],
    isNamed: true,
    formats: ['lvm2', 'unknown'],
    target: sourceName => `/dev/${sourceName}`,
  },
  disk: {
    requires: ['device'],
    formats: ['unknown', 'dos', 'dvh', 'gpt', 'mac', 'bsd', 'pc98', 'sun', 'lvm2'],
    target: 'own',
  },
  iscsi: { requires: ['host'], target: 'own' },
  'iscsi-direct': { requires: ['host', 'initiator'], target: 'none' },
  scsi: { requires: ['adapter'], target: 'own' },
  mpath: { requires: [], target: () => '/dev/mapper' },
  rbd: { requires: ['host'], isNamed: true, target: 'none' },
  sheepdog: { requires: ['host'], isNamed: true, target: 'none' },
  gluster: { requires: ['host'], isNamed: true, target: 'none' },
  zfs: { requires: [], isNamed: true, target: sourceName => `/dev/zvol/${sourceName}` },
  vstorage: { requires: [], isNamed: true, target: 'own' },
}

/** A path as libvirt keeps it: no double slashes but at the very start of exactly two, none at the end. */
export function sanitizePath(path: string): string {
  const start = /^\/\/(?!\/)/.test(path) ? '//' : path.startsWith('/') ? '/' : ''
  const rest = path.replace(/^\/+/, '').replaceAll(/\/+/g, '/').replace(/\/$/, '')
  return start + rest
}
