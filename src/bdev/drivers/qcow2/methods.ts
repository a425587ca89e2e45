/** The methods of images that are devices: `bdev_qcow2_*`. */
import { z } from 'zod'
import { RpcError } from '../../../core/errors.ts'
import { method } from '../../../rpc/method.ts'
import { done } from '../../../rpc/params.ts'
import type { BdevInfo } from '../../bdev.ts'
import { type BdevContext, deleteMethod } from '../../method.ts'
import { deleteBitmap, insertBitmap } from './bitmaps.ts'
import { BLOCK_SIZE } from './device.ts'
import { changeOpenImage, openImageOf, qcow2Params } from './driver.ts'
import { resize } from './resize.ts'
import { dropSnapshot, readSnapshots, revertTo, takeSnapshot } from './snapshots.ts'

const MIB = 1 << 20

/** The device of that name, if it is an image. */
function imageDevice({ bdevs }: BdevContext, name: string): BdevInfo {
  const info = bdevs.get(name)
  if (info.driver === 'qcow2') return info
  throw new RpcError('ENODEV', `${info.name} is a ${info.driver} bdev, not qcow2`)
}

async function resizeDevice(
  context: BdevContext,
  name: string,
  sizeBytes: number,
  shrink: boolean,
): Promise<void> {
  const info = imageDevice(context, name)
  const owners = context.bdevs.ownersOf(name)
  if (sizeBytes < info.blockCount * BLOCK_SIZE && owners !== '') {
    throw new RpcError(
      'EBUSY',
      `${info.name} cannot shrink while ${owners} has it: take it away from there first`,
    )
  }
  const blockCount = await changeOpenImage(info, async image => {
    await resize(image, sizeBytes, { shrink })
    return Math.floor(image.header.sizeBytes / BLOCK_SIZE)
  })
  await context.bdevs.resize(info.name, blockCount)
}

const CREATE_ERRORS = {
  EEXIST: 'a device has that name or that UUID already',
  EINVAL: 'it is no image, or one that is damaged or has what is not known here',
  ENOTSUP: 'it, or a file underneath, needs what there is not',
  ENOENT: 'there is no such file, or none underneath',
  EBUSY: 'another program has it',
  EACCES: 'the daemon may not open it',
  EROFS: 'it is on a file system that is mounted read only',
  EPERM: 'the daemon may not open it',
  ENOMEM: 'its bitmaps take more than a gibibyte',
} as const

const CHANGE_ERRORS = {
  ENODEV: 'no qcow2 device has that name',
  EROFS: 'it is read only',
  ENOSPC: 'there is no room for what it takes, or refcounts are not wide enough',
  EIO: 'its file cannot be read or written',
} as const

const existing = z.string().describe('The device')
const bitmapName = z.string().min(1).describe("The bitmap's name")
const snapshotName = z.string().min(1).describe("The snapshot's name; of one there is, its id as well")

export const qcow2Methods = [
  method({
    name: 'bdev_qcow2_create',
    summary: "Makes a disk image in QEMU's format a disk.",
    params: z.object({ name: z.string().min(1).describe('Its name'), ...qcow2Params.shape }),
    result: z.string().describe('The name'),
    errors: CREATE_ERRORS,
    saves: true,
    cli: { positional: ['filename', 'name'] },
    async run({ name, ...rest }, { bdevs }: BdevContext) {
      return (await bdevs.create('qcow2', name, rest)).name
    },
  }),
  deleteMethod('bdev_qcow2_delete', 'qcow2'),
  method({
    name: 'bdev_qcow2_resize',
    summary: 'Gives the image another size. Hosts that have it open are told at once.',
    params: z.object({
      name: existing,
      new_size: z
        .int()
        .min(1)
        .max(2 ** 32)
        .describe('Its size in MiB'),
      shrink: z.boolean().optional().describe('Cut off what lies behind a smaller size'),
    }),
    result: done,
    errors: {
      ...CHANGE_ERRORS,
      EINVAL: 'it would shrink and that was not asked for, or its clusters are too small',
      EBUSY: 'it would shrink while somebody has it',
      ENOTSUP: 'a longer backing file would show through',
    },
    saves: true,
    cli: { positional: ['name', 'new_size'] },
    async run({ name, new_size, shrink = false }, context: BdevContext) {
      await resizeDevice(context, name, new_size * MIB, shrink)
      return true as const
    },
  }),
  method({
    name: 'bdev_qcow2_snapshot_create',
    summary: 'Takes a snapshot within the image.',
    params: z.object({ name: existing, snapshot_name: snapshotName }),
    result: z.object({ id: z.string(), name: z.string() }),
    errors: {
      ...CHANGE_ERRORS,
      EEXIST: 'it has a snapshot of that name',
      EINVAL: 'no snapshot can have that name',
    },
    saves: true,
    cli: { positional: ['name', 'snapshot_name'] },
    async run({ name, snapshot_name }, context: BdevContext) {
      const taken = await changeOpenImage(imageDevice(context, name), image =>
        takeSnapshot(image, snapshot_name),
      )
      return { id: taken.id, name: taken.name }
    },
  }),
  method({
    name: 'bdev_qcow2_snapshot_list',
    summary: 'The snapshots within the image.',
    params: z.object({ name: existing }),
    result: z.array(
      z.object({
        id: z.string(),
        name: z.string(),
        date: z.string(),
        size_bytes: z.int(),
        vm_state_bytes: z.int(),
      }),
    ),
    errors: { ENODEV: 'no qcow2 device has that name' },
    cli: { positional: ['name'] },
    async run({ name }, context: BdevContext) {
      const snapshots = await readSnapshots(await openImageOf(imageDevice(context, name)))
      return snapshots.map(({ id, name: snapshot, date, diskSizeBytes, vmStateBytes }) => ({
        id,
        name: snapshot,
        date: date.toISOString(),
        size_bytes: diskSizeBytes,
        vm_state_bytes: vmStateBytes,
      }))
    },
  }),
  method({
    name: 'bdev_qcow2_snapshot_apply',
    summary: 'Has the disk be what it was when the snapshot was taken. Nobody may have the device.',
    params: z.object({ name: existing, snapshot_name: snapshotName }),
    result: done,
    errors: { ...CHANGE_ERRORS, ENOENT: 'it has no such snapshot', EBUSY: 'somebody has the device' },
    saves: true,
    cli: { positional: ['name', 'snapshot_name'] },
    async run({ name, snapshot_name }, context: BdevContext) {
      const info = imageDevice(context, name)
      const owners = context.bdevs.ownersOf(name)
      if (owners !== '') {
        throw new RpcError(
          'EBUSY',
          `${info.name} cannot go back while ${owners} has it: take it away from there first`,
        )
      }
      const blockCount = await changeOpenImage(info, async image => {
        await revertTo(image, snapshot_name)
        return Math.floor(image.header.sizeBytes / BLOCK_SIZE)
      })
      await context.bdevs.resize(info.name, blockCount)
      return true as const
    },
  }),
  method({
    name: 'bdev_qcow2_snapshot_delete',
    summary: 'Deletes a snapshot within the image.',
    params: z.object({ name: existing, snapshot_name: snapshotName }),
    result: done,
    errors: { ...CHANGE_ERRORS, ENOENT: 'it has no such snapshot' },
    saves: true,
    cli: { positional: ['name', 'snapshot_name'] },
    async run({ name, snapshot_name }, context: BdevContext) {
      await changeOpenImage(imageDevice(context, name), image => dropSnapshot(image, snapshot_name))
      return true as const
    },
  }),
  method({
    name: 'bdev_qcow2_bitmap_create',
    summary: 'Makes a dirty bitmap within the image, which records writes from now on.',
    params: z.object({
      name: existing,
      bitmap_name: bitmapName,
      granularity: z
        .int()
        .optional()
        .describe('Bytes of the disk for each bit: a power of two from 512, 65536 by default'),
    }),
    result: done,
    errors: {
      ...CHANGE_ERRORS,
      EEXIST: 'it has a bitmap of that name',
      EINVAL: 'no bitmap can be so',
      ENOTSUP: 'the image is of version 2',
    },
    saves: true,
    cli: { positional: ['name', 'bitmap_name'] },
    async run({ name, bitmap_name, granularity = 65536 }, context: BdevContext) {
      await changeOpenImage(imageDevice(context, name), image =>
        insertBitmap(image, bitmap_name, granularity, true),
      )
      return true as const
    },
  }),
  method({
    name: 'bdev_qcow2_bitmap_delete',
    summary: 'Deletes a dirty bitmap within the image.',
    params: z.object({ name: existing, bitmap_name: bitmapName }),
    result: done,
    errors: { ...CHANGE_ERRORS, ENOENT: 'it has no such bitmap' },
    saves: true,
    cli: { positional: ['name', 'bitmap_name'] },
    async run({ name, bitmap_name }, context: BdevContext) {
      await changeOpenImage(imageDevice(context, name), image => deleteBitmap(image, bitmap_name))
      return true as const
    },
  }),
]
