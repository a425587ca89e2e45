/** What the backend of a pool can do to its volumes. What it cannot is refused by name. */
import { RpcError } from '../../core/errors.ts'
import type { SnapshotOperations, VolumeOperation, VolumeOperations } from '../pool.ts'
import type { Pool } from '../storage-pool.ts'

/** The backend's operation. Throws `RpcError` ENOTSUP with the reason when it has none. */
export function operationOf<Name extends Exclude<VolumeOperation, 'snapshots'>>(
  pool: Pool,
  operation: Name,
): NonNullable<VolumeOperations[Name]> {
  const { volumes } = pool.backend
  const found = volumes[operation]
  if (found !== undefined) return found.bind(volumes) as NonNullable<VolumeOperations[Name]>
  throw notSupported(pool, operation)
}

/** As `operationOf`, of snapshots. */
export function snapshotOperationsOf(pool: Pool): SnapshotOperations {
  const { snapshots } = pool.backend.volumes
  if (snapshots !== undefined) return snapshots
  throw notSupported(pool, 'snapshots')
}

function notSupported({ name, document, backend }: Pool, operation: VolumeOperation): RpcError {
  const reason = backend.volumes.reasons?.[operation] ?? 'its storage has no such operation'
  return new RpcError(
    'ENOTSUP',
    `pool ${name} is of type ${document.type}, whose volumes cannot ${operation}: ${reason}`,
  )
}
