/** Connections to Ceph clusters. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import type { NamedCluster } from '../clusters.ts'
import { CEPH_ERRORS, cephOptions, type RbdContext } from './params.ts'

const clusterName = z.string().min(1).describe('The cluster')

const clusterRow = z.object({
  cluster_name: z.string(),
  user_id: z.string().optional(),
  config_param: cephOptions.optional(),
  config_file: z.string().optional(),
  key_file: z.string().optional(),
  core_mask: z.string().optional(),
})

/** Everybody who may list clusters may see it, so it has no key. */
const rowOf = ({
  name,
  user,
  options,
  file,
  keyFile,
  coreMask,
}: NamedCluster): z.input<typeof clusterRow> => {
  const { key: _, ...told } = options
  return {
    cluster_name: name,
    ...(user === undefined ? {} : { user_id: user }),
    ...(Object.keys(told).length === 0 ? {} : { config_param: told }),
    ...(file === undefined ? {} : { config_file: file }),
    ...(keyFile === undefined ? {} : { key_file: keyFile }),
    ...(coreMask === undefined ? {} : { core_mask: coreMask }),
  }
}

export const bdevRbdRegisterCluster = method({
  name: 'bdev_rbd_register_cluster',
  summary: 'Connects to a Ceph cluster, for images that name it: they share the connection.',
  params: z.object({
    name: clusterName,
    user_id: z.string().min(1).optional().describe('Without "client."; admin when absent'),
    config_param: cephOptions.nullish().describe('Ceph options, stronger than the file'),
    config_file: z.string().min(1).optional().describe('A ceph.conf; Ceph looks for one when absent'),
    key_file: z.string().min(1).optional().describe('The keyring'),
    core_mask: z.string().optional().describe("Accepted: librbd's threads run where the kernel puts them"),
  }),
  result: z.string().describe('The name'),
  errors: { ...CEPH_ERRORS, EEXIST: 'a cluster has that name already' },
  saves: true,
  concurrent: true,
  cli: { positional: ['name'], flags: { user_id: ['user'] }, commands: ['rbd register-cluster'] },
  async run({ name, user_id, config_param, config_file, key_file, core_mask }, { rbd }: RbdContext) {
    await rbd.clusters.register({
      name,
      user: user_id,
      options: config_param ?? {},
      file: config_file,
      searches: Object.keys(config_param ?? {}).length === 0,
      keyFile: key_file,
      coreMask: core_mask,
    })
    return name
  },
})

export const bdevRbdUnregisterCluster = method({
  name: 'bdev_rbd_unregister_cluster',
  summary: 'Leaves a Ceph cluster.',
  params: z.object({ name: clusterName }),
  result: done,
  errors: { ENOENT: 'no cluster has that name', EBUSY: 'images of it are open' },
  saves: true,
  cli: { positional: ['name'], commands: ['rbd unregister-cluster'] },
  async run({ name }, { rbd }: RbdContext) {
    await rbd.clusters.unregister(name)
    return true as const
  },
})

export const bdevRbdGetClustersInfo = method({
  name: 'bdev_rbd_get_clusters_info',
  summary: 'Lists the registered Ceph clusters, or tells of one.',
  params: z.object({ name: z.string().optional().describe('Only this cluster') }),
  result: z.union([z.array(clusterRow), clusterRow]),
  errors: { ENOENT: 'no cluster has that name, or none is registered' },
  cli: {
    flags: { name: 'b' },
    columns: ['cluster_name', 'user_id', 'config_file'],
    commands: ['rbd clusters'],
  },
  run({ name }, { rbd }: RbdContext) {
    if (name !== undefined) return rowOf(rbd.clusters.get(name))
    const all = rbd.clusters.list()
    // As SPDK answers; an empty list would be kinder.
    if (all.length === 0)
      throw new RpcError('ENOENT', 'no cluster is registered: see bdev_rbd_register_cluster')
    return all.map(rowOf)
  },
})
