/** The `qcow2` driver: disk images in QEMU's format, as `bdev_qcow2_*`. */
import { randomUUID } from 'node:crypto'
import { resolve } from 'node:path'
import { z } from 'zod'
import { RpcError } from '../../../core/errors.ts'
import { logger } from '../../../core/log.ts'
import { uuid } from '../../../rpc/params.ts'
import { Autoclear } from '../../../spec/qcow2.ts'
import { close, lseek } from '../../../sys/libc.ts'
import { type BdevInfo, type ChannelContext, defineDriver } from '../../bdev.ts'
import { IoType } from '../../io.ts'
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
import { mediumOf } from './medium.ts'
import { refuseCutOff } from './missing.ts'
import { loadBitmaps, storeBitmaps } from './open-bitmaps.ts'

const log = logger('bdev')
const SEEK_END = 2
const MIB = 1 << 20
/** Maps 256 GiB with clusters of 64 KiB. */
const CACHE_MIB_DEFAULT = 32
const CACHE_MIB_MAX = 512
const PAGE = 4096

export const qcow2Params = z.object({
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
type Params = z.output<typeof qcow2Params>

export const qcow2Driver = defineDriver({
  name: 'qcow2',
  summary: "A disk image in QEMU's format, through io_uring.",
  params: qcow2Params,
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
    await checkEnd(name, image, read_only)
    if (!read_only) await prepare(name, image)
    links = await openChain({ fd: image.fd, path: image.path, sizeBytes: image.fileSize }, image.header)
    for (const { file, header } of links) {
      if (header !== null) await checkEnd(name, new ImageHandle(file, header), read_only)
    }
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
      ...(await mediumOf(filename)),
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

/** What is left of a file that was cut off can be read; a disk over it is not written to. */
async function checkEnd(name: string, image: ImageHandle, isReadOnly: boolean): Promise<void> {
  try {
    await refuseCutOff(image)
  } catch (error) {
    if (!isReadOnly || !(error instanceof RpcError)) throw error
    log.warning(`${name}: ${error.message}`)
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

const backingOf = async ({ file, format }: ChainLink): Promise<BackingFile> => ({
  fd: file.fd,
  path: file.path,
  format,
  ...(await mediumOf(file.path)),
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

/** The image of a device as it is in the file now, to be looked at. */
export const openImageOf = (info: BdevInfo): Promise<ImageHandle> => imageOf(info.device as Qcow2Device)

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
    await refuseCutOff(await imageOf(device))
    await storeBitmaps(await imageOf(device), device)
    return await work(await imageOf(device))
  } finally {
    try {
      // What work that failed has begun is taken back.
      await repairDirty(await imageOf(device))
      await loadBitmaps(await imageOf(device), device)
    } finally {
      await agreement.want(Wanted.RUN, State.RUNNING)
    }
  }
}
