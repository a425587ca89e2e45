/** Every pool type, one line each. */
import type { PoolBackendType } from '../pool.ts'
import { directoryPool } from './directory.ts'
import { diskPool } from './disk.ts'
import { fileSystemPool, glusterPool, networkFileSystemPool } from './file-system.ts'
import { iscsiPool } from './iscsi.ts'
import { iscsiDirectPool } from './iscsi-direct.ts'
import { logicalPool } from './logical.ts'
import { multipathPool } from './mpath.ts'
import { rbdPool } from './rbd.ts'
import { retiredPools } from './retired.ts'
import { scsiPool } from './scsi.ts'
import { zfsPool } from './zfs.ts'

export const poolBackends: readonly PoolBackendType[] = [
  directoryPool,
  fileSystemPool,
  networkFileSystemPool,
  logicalPool,
  diskPool,
  iscsiPool,
  iscsiDirectPool,
  scsiPool,
  multipathPool,
  rbdPool,
  glusterPool,
  zfsPool,
  ...retiredPools,
]
