/** Every pool type, one line each. */
import type { PoolBackendType } from '../pool.ts'
import { directoryPool } from './directory.ts'
import { fileSystemPool, glusterPool, networkFileSystemPool } from './file-system.ts'
import { rbdPool } from './rbd.ts'

export const poolBackends: readonly PoolBackendType[] = [
  directoryPool,
  fileSystemPool,
  networkFileSystemPool,
  glusterPool,
  rbdPool,
]
