/** Images as devices. */
import { z } from 'zod'
import { CREATE_ERRORS } from '../../bdev/method.ts'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, uint32, uint64, uuid } from '../../rpc/params.ts'
import type { ClusterOptions } from '../cluster.ts'
import { parseRbdName } from '../rbd-name.ts'
import { CEPH_ERRORS, cephOptions, deviceName, type RbdContext } from './params.ts'

const MIB = 2 ** 20

export const bdevRbdCreate = method({
  name: 'bdev_rbd_create',
  summary: 'Makes an image of a Ceph cluster a disk.',
  params: z.object({
    name: z.string().min(1).optional().describe('Its name; Ceph0, Ceph1 … by default'),
    pool_name: z.string().min(1).describe('The pool'),
    rbd_name: z.string().min(1).describe('The image'),
    block_size: uint32.describe('Bytes in a block'),
    cluster_name: z.string().min(1).optional().describe('A registered cluster'),
    user_id: z.string().min(1).optional().describe('Without a cluster: the user, without "client."'),
    config: cephOptions.nullish().describe('Without a cluster: Ceph options'),
    uuid: uuid.optional().describe('Derived from cluster, pool and image when not given'),
    read_only: z.boolean().default(false).describe('Refuse everything that would change it'),
    namespace: z.string().optional().describe("The pool's namespace that has the image"),
    snapshot: z.string().min(1).optional().describe('A snapshot of it: read only'),
  }),
  result: z.string().describe('The name'),
  errors: { ...CREATE_ERRORS, ...CEPH_ERRORS, EROFS: 'the image cannot be written to' },
  saves: true,
  concurrent: true,
  cli: {
    positional: ['pool_name', 'rbd_name', 'block_size'],
    commands: ['rbd create'],
    flags: {
      name: 'b',
      user_id: ['user'],
      cluster_name: 'c',
      uuid: 'u',
      read_only: ['r', 'readonly'],
    },
  },
  async run(params, { rbd }: RbdContext) {
    const name = params.name ?? rbd.freeName()
    const info = await rbd.create({
      name,
      pool: params.pool_name,
      namespace: params.namespace ?? '',
      image: params.rbd_name,
      snapshot: params.snapshot,
      blockSize: params.block_size,
      uuid: params.uuid,
      readOnly: params.read_only,
      cluster: clusterOf(name, params),
      call: { method: 'bdev_rbd_create', params: { ...params } },
    })
    return info.name
  },
})

interface ClusterParams {
  readonly cluster_name?: string | undefined
  readonly user_id?: string | undefined
  readonly config?: Readonly<Record<string, string>> | null | undefined
}

function clusterOf(name: string, { cluster_name, user_id, config }: ClusterParams): string | ClusterOptions {
  const options = config ?? {}
  if (cluster_name === undefined) {
    // As SPDK: whoever gives options gives all of them.
    const searches = Object.keys(options).length === 0
    return { user: user_id, options, file: undefined, searches, keyFile: undefined }
  }
  if (user_id === undefined && Object.keys(options).length === 0) return cluster_name
  throw new RpcError(
    'EINVAL',
    `${name} has a cluster_name (${cluster_name}) and user_id or config as well: those belong to the cluster, give one or the other`,
  )
}

export const bdevRbdOpen = method({
  name: 'bdev_rbd_open',
  summary: 'Makes an image a disk that is named as QEMU names it, with the options in its name.',
  params: z.object({
    filename: z
      .string()
      .describe(
        'rbd:POOL/IMAGE[@SNAPSHOT][:id=USER][:conf=FILE][:OPTION=VALUE…], or json:{"driver":"rbd",…}',
      ),
    block_size: uint32.default(512).describe('Bytes in a block'),
    name: z.string().min(1).optional().describe('Its name; Ceph0, Ceph1 … by default'),
    uuid: uuid.optional().describe('Derived from cluster, pool and image when not given'),
    read_only: z.boolean().default(false).describe('Refuse everything that would change it'),
  }),
  result: z.string().describe('The name'),
  errors: { ...CREATE_ERRORS, ...CEPH_ERRORS, EROFS: 'the image cannot be written to' },
  saves: true,
  concurrent: true,
  cli: {
    positional: ['filename', 'block_size'],
    flags: { name: 'b', uuid: 'u', read_only: ['r', 'readonly'] },
    commands: ['rbd open'],
  },
  async run(params, { rbd }: RbdContext) {
    const { pool, namespace, image, snapshot, user, file, options } = parseRbdName(params.filename)
    const info = await rbd.create({
      name: params.name ?? rbd.freeName(),
      ...{ pool, namespace, image, snapshot },
      blockSize: params.block_size,
      uuid: params.uuid,
      readOnly: params.read_only,
      // As QEMU: the options are stronger than the file, and the file is there even so.
      cluster: { user, options, file, searches: file === undefined, keyFile: undefined },
      call: { method: 'bdev_rbd_open', params: { ...params } },
    })
    return info.name
  },
})

export const bdevRbdDelete = method({
  name: 'bdev_rbd_delete',
  summary: 'Removes an RBD device, under whatever uses it. The image stays.',
  params: z.object({ name: deviceName }),
  result: done,
  errors: { ENODEV: 'no RBD device has that name' },
  saves: true,
  concurrent: true,
  cli: { positional: ['name'], commands: ['rbd delete'] },
  async run({ name }, { rbd }: RbdContext) {
    await rbd.remove(name)
    return true as const
  },
})

export const bdevRbdResize = method({
  name: 'bdev_rbd_resize',
  summary: 'Makes the image of an RBD device larger. Whoever has it open is told at once.',
  params: z.object({
    name: deviceName,
    new_size: uint64.describe('Its new size, in MiB'),
  }),
  result: done,
  errors: {
    ENODEV: 'no RBD device has that name',
    EINVAL: 'the image has more than that, or Ceph refuses the size',
  },
  concurrent: true,
  cli: { positional: ['name', 'new_size'], commands: ['rbd resize'] },
  async run({ name, new_size }, { rbd }: RbdContext) {
    await rbd.resize(name, new_size * MIB, { shrink: false })
    return true as const
  },
})
