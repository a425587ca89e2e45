/** Types whose software nobody can have any more, or only from its vendor: their documents are kept, and never start. */
import { RpcError } from '../../core/errors.ts'
import type { PoolDocument, PoolType } from '../../libvirt/pool-xml.ts'
import type { PoolBackend, PoolBackendType } from '../pool.ts'
import { DeviceVolumes } from './device-volumes.ts'

export const retiredPools: readonly PoolBackendType[] = [
  retired(
    'sheepdog',
    'Sheepdog: kept, and not started.',
    'Sheepdog is not developed any more, and QEMU has had no driver for it since 6.1. Ceph took its place: copy its ' +
      'images with "dog vdi read" on a machine that still has it, and volume import them into a pool of type=\'rbd\'',
  ),
  retired(
    'vstorage',
    'Virtuozzo Storage: kept, and not started.',
    "Virtuozzo Storage is its vendor's own, and mounted with its own program: mount it with vstorage-mount, and define a " +
      "pool of type='dir' on the mount",
  ),
]

function retired(type: PoolType, summary: string, instead: string): PoolBackendType {
  return {
    type,
    summary,
    create: ({ name }: PoolDocument): PoolBackend => {
      const refuse = (): never => {
        throw new RpcError('ENOTSUP', `pool ${name} is of type ${type} and cannot be started: ${instead}`)
      }
      return {
        volumes: new DeviceVolumes(instead),
        start: async () => refuse(),
        // It never runs, so that nobody comes here.
        stop: async () => {},
        refresh: async () => refuse(),
        opening: refuse,
      }
    },
  }
}
