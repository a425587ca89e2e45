/** The `qcow2` driver: disk images in QEMU's format, as `bdev_qcow2_*`. */
import { randomUUID } from 'node:crypto'
import { statfs } from 'node:fs/promises'
import { resolve } from 'node:path'
import { z } from 'zod'
import { RpcError } from '../../../core/errors.ts'
import { logger } from '../../../core/log.ts'
import { method } from '../../../rpc/method.ts'
import { done, uuid } from '../../../rpc/params.ts'
import { Autoclear } from '../../../spec/qcow2.ts'
import { close, lseek } from '../../../sys/libc.ts'
import { type BdevInfo, type ChannelContext, defineDriver } from '../../bdev.ts'
import { IoType } from '../../io.ts'
import { type BdevContext, deleteMethod } from '../../method.ts'
import { Lanes } from '../../plugin/lanes.ts'
import { deriveUuid } from '../../uuid.ts'
import { mediumIdentity } from '../file-identity.ts'
import { type ChainLink, openChain } from './chain.ts'
import { Qcow2Channel } from './channel.ts'
import { repairDirty } from './check.ts'
import { Agreement, type BackingFile, BLOCK_SIZE, type Qcow2Device, State, Wanted } from './device.ts'
import type { Header } from './header.ts'
import { refuseCorrupt } from './image.ts'
import { ImageHandle, readHeader } from './image-handle.ts'
import { loadBitmaps, storeBitmaps } from './open-bitmaps.ts'
import { resize } from './resize.ts'
import { dropSnapshot, readSnapshots, revertTo, takeSnapshot } from './snapshots.ts'

const log = logger('bdev')
const SEEK_END = 2
const TMPFS_MAGIC = 0x01021994
const RAMFS_MAGIC = 0x858458f6
const MIB = 1 << 20
/** Maps 256 GiB with clusters of 64 KiB. */
const CACHE_MIB_DEFAULT = 32
const CACHE_MIB_MAX = 512
const PAGE = 4096

const params = z.object({
  filename: z.string().min(1).describe('Path of the image'),
  read_only: z.boolean().optional().describe('Refuse everything that would change it'),
  cache_size_mb: z
    .int()
    .min(1)
    .max(CACHE_MIB_MAX)
    .optional()
    .describe('MiB of memory for its tables: by default what maps the whole disk, at most 32'),
  discard: z
    .boolean()
    .optional()
    .describe(
      'Give room back that is unmapped or zeroed (default); otherwise it is kept for what is written next',
    ),
  uuid: uuid.optional().describe('Derived from what identifies the file when not given'),
})
type Params = z.output<typeof params>

export const qcow2Driver = defineDriver({
  name: 'qcow2',
  summary: "A disk image in QEMU's format, through io_uring.",
  params,
  create: openDevice,
  config: (info, given) => [
    {
      method: 'bdev_qcow2_create',
      // Whole, since the daemon may be started again in another directory.
      params: { name: info.name, ...given, filename: resolve(given.filename), uuid: info.uuid },
    },
  ],
  openChannel(info: BdevInfo, { reactor }: ChannelContext) {
    if (reactor.ring === null) {
      throw new RpcError('ENOTSUP', `${info.name} needs io_uring and reactor ${reactor.index} has none`)
    }
    return new Qcow2Channel(info, reactor, reactor.ring)
  },
  destroy: closeDevice,
})

async function openDevice(name: string, given: Params): Promise<BdevInfo> {
  const { filename, read_only = false, discard = true } = given
  const image = await ImageHandle.open(filename, read_only)
  let links: ChainLink[] = []
  let device: Qcow2Device | undefined
  try {
    if (!read_only) await prepare(name, image)
    links = await openChain({ fd: image.fd, path: image.path, sizeBytes: image.fileSize }, image.header)
    const { header } = image
    if (header.sizeBytes < BLOCK_SIZE) {
      throw new RpcError(
        'EINVAL',
        `${filename} has a disk of ${header.sizeBytes} bytes, less than a block of 512`,
      )
    }
    device = {
      id: randomUUID(),
      path: filename,
      fd: image.fd,
      isMemory: await isMemory(filename),
      isReadOnly: read_only,
      isDiscarding: discard,
      ...cacheSizes(header, given.cache_size_mb),
      backing: await Promise.all(links.map(backingOf)),
      ...Agreement.create(),
    }
    if (!read_only) await loadBitmaps(image, device)
    return await describe(name, given, header, device)
  } catch (error) {
    for (const link of links) close(link.file.fd)
    image.close()
    if (device !== undefined) new Agreement(device).close()
    throw error
  }
}

/** What has to be so before an image is written to. */
async function prepare(name: string, image: ImageHandle): Promise<void> {
  refuseCorrupt(image)
  const repaired = await repairDirty(image)
  if (repaired !== null) {
    log.notice(
      `${name}: ${image.path} was not closed properly, ${repaired.repaired} refcounts of it are mended`,
    )
  }
  const { autoclear } = image.header
  if ((autoclear & ~Autoclear.BITMAPS) !== 0)
    await image.changeHeader({ autoclear: autoclear & Autoclear.BITMAPS })
}

async function describe(name: string, given: Params, header: Header, device: Qcow2Device): Promise<BdevInfo> {
  const { read_only = false, discard = true, filename } = given
  const { clusterSize, unitSize } = header.geometry
  const unitBlocks = unitSize / BLOCK_SIZE
  return {
    name,
    aliases: [],
    driver: 'qcow2',
    product: 'QCOW2 disk',
    uuid: given.uuid ?? deriveUuid('file', ...(await mediumIdentity(filename))),
    blockSize: BLOCK_SIZE,
    physicalBlockSize: Math.min(clusterSize, PAGE),
    blockCount: Math.floor(header.sizeBytes / BLOCK_SIZE),
    supports: new Set([IoType.READ, IoType.WRITE, IoType.FLUSH, IoType.UNMAP, IoType.WRITE_ZEROES]),
    preferred: {
      writeAlignment: 0,
      writeGranularity: 0,
      writeSize: 0,
      unmapAlignment: unitBlocks,
      unmapGranularity: unitBlocks,
    },
    writeCache: true,
    readOnly: read_only,
    bases: [],
    device,
    driverSpecific: {
      qcow2: {
        filename,
        read_only,
        discard,
        version: header.version,
        cluster_size: clusterSize,
        backing_files: device.backing.map(({ path, format }) => ({ path, format })),
      },
    },
  }
}

/** Enough for all of the disk, within bounds; refcounts are needed in a few places at a time. */
function cacheSizes(
  header: Header,
  givenMib: number | undefined,
): Pick<Qcow2Device, 'l2CacheBytes' | 'refcountCacheBytes'> {
  const { clusterSize, entrySize } = header.geometry
  const whole = Math.ceil(header.sizeBytes / clusterSize) * entrySize
  const most = (givenMib ?? CACHE_MIB_DEFAULT) * MIB
  const l2CacheBytes = Math.min(most, Math.max(whole, MIB / 4))
  return { l2CacheBytes, refcountCacheBytes: Math.max(MIB / 4, l2CacheBytes / 4) }
}

async function isMemory(path: string): Promise<boolean> {
  const { type } = await statfs(path)
  return type === TMPFS_MAGIC || type === RAMFS_MAGIC
}

const backingOf = async ({ file, format }: ChainLink): Promise<BackingFile> => ({
  fd: file.fd,
  path: file.path,
  format,
  isMemory: await isMemory(file.path),
})

async function closeDevice(info: BdevInfo): Promise<void> {
  const device = info.device as Qcow2Device
  const agreement = new Agreement(device)
  await agreement.want(Wanted.STOP, State.STOPPED)
  if (!device.isReadOnly) await storeBitmaps(await imageOf(device), device)
  agreement.close()
  new Lanes(device.lanes).close()
  for (const { fd } of device.backing) close(fd)
  close(device.fd)
}

/** The image as it is in the file now. */
async function imageOf({ fd, path }: Qcow2Device): Promise<ImageHandle> {
  const file = { fd, path, sizeBytes: lseek(fd, 0, SEEK_END) }
  return new ImageHandle(file, await readHeader(file))
}

/**
 * Changes an image that is a device: requests wait meanwhile, and what the reactors knew of it is read anew. Throws what
 * `work` throws; the device goes on in any case.
 */
export async function changeOpenImage<T>(
  info: BdevInfo,
  work: (image: ImageHandle) => Promise<T>,
): Promise<T> {
  const device = info.device as Qcow2Device
  if (device.isReadOnly) throw new RpcError('EROFS', `${info.name} is read only: create it without read_only`)
  const agreement = new Agreement(device)
  await agreement.want(Wanted.PAUSE, State.PAUSED)
  try {
    await storeBitmaps(await imageOf(device), device)
    return await work(await imageOf(device))
  } finally {
    // What work that failed has begun is taken back.
    await repairDirty(await imageOf(device))
    await loadBitmaps(await imageOf(device), device)
    await agreement.want(Wanted.RUN, State.RUNNING)
  }
}

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
} as const

const CHANGE_ERRORS = {
  ENODEV: 'no qcow2 device has that name',
  EROFS: 'it is read only',
  ENOSPC: 'there is no room for what it takes, or refcounts are not wide enough',
} as const

const existing = z.string().describe('The device')
const snapshotName = z.string().min(1).describe("The snapshot's name; of one there is, its id as well")

export const qcow2Methods = [
  method({
    name: 'bdev_qcow2_create',
    summary: "Makes a disk image in QEMU's format a disk.",
    params: z.object({ name: z.string().min(1).describe('Its name'), ...params.shape }),
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
      const snapshots = await readSnapshots(await imageOf(imageDevice(context, name).device as Qcow2Device))
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
]
