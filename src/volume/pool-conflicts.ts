/** No two pools have a name, a UUID or storage in common: two books of what is in one place would both be wrong. */
import { RpcError } from '../core/errors.ts'
import type { StoragePool } from './storage-pool.ts'

/** Throws `RpcError` EEXIST when another pool has the name, the UUID or a part of the storage that a pool is to have. */
export function refuseTwin(
  pools: Iterable<StoragePool>,
  { name, uuid, holdings }: Pick<StoragePool, 'name' | 'uuid' | 'holdings'>,
): void {
  for (const other of pools) {
    if (other.name === name) {
      if (other.uuid === uuid) continue
      throw new RpcError(
        'EEXIST',
        `there is a pool ${name} with the UUID ${other.uuid}, not ${uuid}: undefine that one, or choose another name`,
      )
    }
    if (other.uuid === uuid) {
      throw new RpcError('EEXIST', `pool ${other.name} has the UUID ${uuid}: leave the UUID of ${name} out`)
    }
    const shared = holdings.find(each => other.holdings.includes(each))
    if (shared === undefined) continue
    throw new RpcError(
      'EEXIST',
      `Storage source conflict with pool: '${other.name}', which has ${shared} already: use that one, or give ${name} another`,
    )
  }
}

/** By other names than those that `holdingsOf` knows: other monitors, a directory that is mounted elsewhere, too. */
export function refuseAlias(pools: Iterable<StoragePool>, pool: StoragePool): void {
  for (const other of pools) {
    if (other === pool || !other.isActive) continue
    if (other.identity === undefined || other.identity !== pool.identity) continue
    throw new RpcError(
      'EEXIST',
      `Storage source conflict with pool: '${other.name}', which has the storage of ${pool.name} by another name: use that one`,
    )
  }
}
