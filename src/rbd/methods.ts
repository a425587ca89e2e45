/** The RPC methods of RBD images and Ceph clusters: a new one is one more line. */
import { rbdCacheExplain } from './methods/cache.ts'
import {
  bdevRbdGetClustersInfo,
  bdevRbdRegisterCluster,
  bdevRbdUnregisterCluster,
} from './methods/clusters.ts'
import { bdevRbdCreate, bdevRbdDelete, bdevRbdOpen, bdevRbdResize } from './methods/images.ts'
import {
  bdevRbdClone,
  bdevRbdFlatten,
  bdevRbdSnapshotCreate,
  bdevRbdSnapshotDelete,
  bdevRbdSnapshotList,
  bdevRbdSnapshotProtect,
  bdevRbdSnapshotRollback,
  bdevRbdSnapshotUnprotect,
} from './methods/snapshots.ts'

export const rbdMethods = [
  bdevRbdRegisterCluster,
  bdevRbdUnregisterCluster,
  bdevRbdGetClustersInfo,
  bdevRbdCreate,
  bdevRbdOpen,
  bdevRbdDelete,
  bdevRbdResize,
  bdevRbdSnapshotCreate,
  bdevRbdSnapshotDelete,
  bdevRbdSnapshotList,
  bdevRbdSnapshotRollback,
  bdevRbdSnapshotProtect,
  bdevRbdSnapshotUnprotect,
  bdevRbdClone,
  bdevRbdFlatten,
  rbdCacheExplain,
]
