/** The RPC methods of RBD images and Ceph clusters. */
import { z } from 'zod'
import { CREATE_ERRORS } from '../bdev/method.ts'
import { RpcError } from '../core/errors.ts'
import { method } from '../rpc/method.ts'
import { done, uint32, uint64, uuid } from '../rpc/params.ts'
import type { NamedCluster } from './clusters.ts'
import type { RbdImages } from './images.ts'

/** What the methods find in the application. */
export interface RbdContext {
  readonly rbd: RbdImages
}

const MIB = 2 ** 20

/** Ceph options by name. SPDK sends null for none. */
const options = z.record(z.string(), z.string())

const clusterName = z.string().min(1).describe('The cluster')

const CEPH_ERRORS = {
  ENOTSUP: 'this machine has no librbd',
  ENOENT: 'there is no such pool, image or snapshot, or no key for the user',
  EACCES: 'the user may not do that',
  ETIMEDOUT: 'no monitor answers',
  EINVAL: 'an option or a size is one that Ceph refuses',
} as const

const clusterRow = z.object({
  cluster_name: z.string(),
  user_id: z.string().optional(),
  config_param: options.optional(),
  config_file: z.string().optional(),
  key_file: z.string().optional(),
  core_mask: z.string().optional(),
})

const rowOf = ({
  name,
  user,
  options: given,
  file,
  keyFile,
  coreMask,
}: NamedCluster): z.input<typeof clusterRow> => ({
  cluster_name: name,
  ...(user === undefined ? {} : { user_id: user }),
  ...(Object.keys(given).length === 0 ? {} : { config_param: given }),
  ...(file === undefined ? {} : { config_file: file }),
  ...(keyFile === undefined ? {} : { key_file: keyFile }),
  ...(coreMask === undefined ? {} : { core_mask: coreMask }),
})

export const rbdMethods = [
  method({
    name: 'bdev_rbd_register_cluster',
    summary: 'Connects to a Ceph cluster, for images that name it: they share the connection.',
    params: z.object({
      name: clusterName,
      user_id: z.string().min(1).optional().describe('Without "client."; admin when absent'),
      config_param: options.nullish().describe('Ceph options, stronger than the file'),
      config_file: z.string().min(1).optional().describe('A ceph.conf; Ceph looks for one when absent'),
      key_file: z.string().min(1).optional().describe('The keyring'),
      core_mask: z.string().optional().describe("Accepted: librbd's threads run where the kernel puts them"),
    }),
    result: z.string().describe('The name'),
    errors: { ...CEPH_ERRORS, EEXIST: 'a cluster has that name already' },
    saves: true,
    cli: { positional: ['name'], flags: { user_id: ['user'] } },
    async run({ name, user_id, config_param, config_file, key_file, core_mask }, { rbd }: RbdContext) {
      await rbd.clusters.register({
        name,
        user: user_id,
        options: config_param ?? {},
        file: config_file,
        keyFile: key_file,
        coreMask: core_mask,
      })
      return name
    },
  }),
  method({
    name: 'bdev_rbd_unregister_cluster',
    summary: 'Leaves a Ceph cluster.',
    params: z.object({ name: clusterName }),
    result: done,
    errors: { ENOENT: 'no cluster has that name', EBUSY: 'images of it are open' },
    saves: true,
    cli: { positional: ['name'] },
    async run({ name }, { rbd }: RbdContext) {
      await rbd.clusters.unregister(name)
      return true as const
    },
  }),
  method({
    name: 'bdev_rbd_get_clusters_info',
    summary: 'Lists the registered Ceph clusters, or tells of one.',
    params: z.object({ name: z.string().optional().describe('Only this cluster') }),
    result: z.union([z.array(clusterRow), clusterRow]),
    errors: { ENOENT: 'no cluster has that name, or none is registered' },
    cli: { flags: { name: 'b' }, columns: ['cluster_name', 'user_id', 'config_file'] },
    run({ name }, { rbd }: RbdContext) {
      if (name !== undefined) return rowOf(rbd.clusters.get(name))
      const all = rbd.clusters.list()
      // As SPDK answers; an empty list would be kinder.
      if (all.length === 0)
        throw new RpcError('ENOENT', 'no cluster is registered: see bdev_rbd_register_cluster')
      return all.map(rowOf)
    },
  }),
  method({
    name: 'bdev_rbd_create',
    summary: 'Makes an image of a Ceph cluster a disk.',
    params: z.object({
      name: z.string().min(1).optional().describe('Its name; Ceph0, Ceph1 … by default'),
      pool_name: z.string().min(1).describe('The pool'),
      rbd_name: z.string().min(1).describe('The image'),
      block_size: uint32.describe('Bytes in a block'),
      cluster_name: z.string().min(1).optional().describe('A registered cluster'),
      user_id: z.string().min(1).optional().describe('Without a cluster: the user, without "client."'),
      config: options.nullish().describe('Without a cluster: Ceph options'),
      uuid: uuid.optional().describe('Derived from cluster, pool and image when not given'),
      read_only: z.boolean().default(false).describe('Refuse everything that would change it'),
      namespace: z.string().optional().describe("The pool's namespace that has the image"),
      snapshot: z.string().min(1).optional().describe('A snapshot of it: read only'),
    }),
    result: z.string().describe('The name'),
    errors: { ...CREATE_ERRORS, ...CEPH_ERRORS, EROFS: 'the image cannot be written to' },
    saves: true,
    cli: {
      positional: ['pool_name', 'rbd_name', 'block_size'],
      flags: {
        name: 'b',
        user_id: ['user'],
        cluster_name: 'c',
        uuid: 'u',
        read_only: ['r', 'readonly'],
      },
    },
    async run(params, { rbd }: RbdContext) {
      const { config, namespace = '', ...given } = params
      const name = given.name ?? rbd.freeName()
      const info = await rbd.create({
        name,
        pool: given.pool_name,
        namespace,
        image: given.rbd_name,
        snapshot: given.snapshot,
        blockSize: given.block_size,
        uuid: given.uuid,
        readOnly: given.read_only,
        cluster: given.cluster_name,
        user: given.user_id,
        config: config ?? undefined,
        call: { method: 'bdev_rbd_create', params: { ...params } },
      })
      return info.name
    },
  }),
  method({
    name: 'bdev_rbd_delete',
    summary: 'Removes an RBD device, under whatever uses it. The image stays.',
    params: z.object({ name: z.string().describe('The device') }),
    result: done,
    errors: { ENODEV: 'no RBD device has that name' },
    saves: true,
    cli: { positional: ['name'] },
    async run({ name }, { rbd }: RbdContext) {
      await rbd.remove(name)
      return true as const
    },
  }),
  method({
    name: 'bdev_rbd_resize',
    summary: 'Resizes the image of an RBD device. Whoever has it open is told at once.',
    params: z.object({
      name: z.string().describe('The device'),
      new_size: uint64.describe('Its new size, in MiB'),
    }),
    result: done,
    errors: {
      ENODEV: 'no RBD device has that name',
      EINVAL: 'Ceph refuses the size',
      EBUSY: 'the device would shrink while somebody has it',
    },
    cli: { positional: ['name', 'new_size'] },
    async run({ name, new_size }, { rbd }: RbdContext) {
      await rbd.resize(name, new_size * MIB)
      return true as const
    },
  }),
]
