/**
 * Files and block devices, under SPDK's two names for them: `bdev_aio_*` and `bdev_uring_*`. Both go through io_uring here;
 * they differ in what their methods take.
 *
 * A regular file is buffered unless `direct` is asked for: the page cache is what makes an image fast, a flush and FUA
 * reach the medium in either case, and hosts are told of the volatile cache. A block device is opened with O_DIRECT, as
 * SPDK does, so that its data is not cached twice and errors are told to the write that caused them.
 */
import { constants, open as openCallback } from 'node:fs'
import { stat, statfs } from 'node:fs/promises'
import { resolve } from 'node:path'
import { promisify } from 'node:util'
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { whereItBegins } from '../../core/relative-path.ts'
import { method } from '../../rpc/method.ts'
import { done, uint32, uuid } from '../../rpc/params.ts'
import { close, fallocate, ioctl, lseek } from '../../sys/libc.ts'
import { mapAnonymous, viewAt } from '../../sys/memory.ts'
import { type BdevInfo, type ChannelContext, type Driver, defineDriver } from '../bdev.ts'
import { checkBlockSize } from '../geometry.ts'
import { IoType } from '../io.ts'
import { type BdevContext, CREATE_ERRORS, deleteMethod } from '../method.ts'
import { deriveUuid } from '../uuid.ts'
import { FileChannel, type OpenFile } from './file-channel.ts'
import { deviceNumbers, mediumIdentity, readText } from './file-identity.ts'
import { requireServer } from './file-server.ts'

/** Unlike `FileHandle`'s, the descriptor is closed by nobody but us. */
const open = promisify(openCallback)

const TMPFS_MAGIC = 0x01021994
const RAMFS_MAGIC = 0x858458f6
const BLKSSZGET = 0x1268
const BLKPBSZGET = 0x127b
const SEEK_END = 2
const PUNCH_HOLE_KEEP_SIZE = 0x03
const DEFAULT_BLOCK_SIZE = 512
const PAGE = 4096

const DIRECT = z
  .boolean()
  .optional()
  .describe('Bypass the page cache (O_DIRECT); by default for block devices, not for files')
const BLOCK_SIZE = uint32
  .optional()
  .describe("Bytes in a block; by default a block device's own, 512 for a file")
const UUID = uuid.optional().describe('Derived from what identifies the medium when not given')

const aioParams = z.object({
  filename: z.string().min(1).describe('Path of a file or a block device'),
  block_size: BLOCK_SIZE,
  readonly: z.boolean().optional().describe('Refuse everything that would change it'),
  fallocate: z
    .boolean()
    .optional()
    .describe('Unmap and write zeroes by punching holes; by default wherever the file system can'),
  uuid: UUID,
  nowait: z.boolean().optional().describe('Accepted: io_uring never makes a reactor wait'),
  direct: DIRECT,
})
const uringParams = z.object({
  filename: z.string().min(1).describe('Path of a file or a block device'),
  block_size: BLOCK_SIZE,
  uuid: UUID,
  direct: DIRECT,
})

type FileParams = z.output<typeof aioParams>

function fileDriver<Params extends FileParams>(
  name: 'aio' | 'uring',
  product: string,
  params: z.ZodType<Params>,
): Driver<Params> {
  return defineDriver({
    name,
    summary: 'A file or a block device, through io_uring.',
    params,
    create: (bdevName, given) => openFile(bdevName, name, product, given),
    config: (info, given) => [
      {
        method: `bdev_${name}_create`,
        // Whole, since the daemon may be started again in another directory.
        params: { name: info.name, ...given, filename: resolve(given.filename), uuid: info.uuid },
      },
    ],
    openChannel(info: BdevInfo, { reactor }: ChannelContext) {
      if (reactor.ring === null) {
        throw new RpcError(
          'ENOTSUP',
          `${info.name} needs io_uring and reactor ${reactor.index} has none: use a malloc bdev there`,
        )
      }
      return new FileChannel(info, reactor, reactor.ring)
    },
    destroy: info => void close((info.device as OpenFile).fd),
  })
}

export const aioDriver = fileDriver('aio', 'AIO disk', aioParams)
export const uringDriver = fileDriver('uring', 'URING bdev', uringParams)

/** Memory for the answers of `ioctl`, of the control thread. */
let scratch = 0

/** What an open descriptor is, as far as a device must know. */
interface Medium {
  readonly isBlockDevice: boolean
  readonly sizeBytes: number
  /** What the medium addresses, and what it writes as one, in bytes. */
  readonly logicalBlockSize: number
  readonly physicalBlockSize: number
  readonly isMemory: boolean
  readonly canPunchHoles: boolean
}

async function openFile(name: string, driver: string, product: string, given: FileParams): Promise<BdevInfo> {
  const { filename: path, readonly = false } = given
  await requireServer(path)
  const isBlockDevice = await checkKind(name, path)
  const direct = given.direct ?? isBlockDevice
  const fd = await openDescriptor(name, path, readonly, direct)
  try {
    const medium = await inspect(fd, path, isBlockDevice, readonly)
    const blockSize = given.block_size || (isBlockDevice ? medium.logicalBlockSize : DEFAULT_BLOCK_SIZE)
    checkBlocks(name, path, blockSize, medium, direct)
    const supports: IoType[] = [IoType.READ, IoType.WRITE, IoType.FLUSH]
    if (medium.canPunchHoles && given.fallocate !== false) supports.push(IoType.UNMAP, IoType.WRITE_ZEROES)
    const device: OpenFile = {
      fd,
      path,
      alignment: direct ? medium.logicalBlockSize : 1,
      isMemory: medium.isMemory,
    }
    return {
      name,
      aliases: [],
      driver,
      product,
      uuid: given.uuid ?? deriveUuid('file', ...(await mediumIdentity(path))),
      blockSize,
      physicalBlockSize: Math.max(blockSize, medium.physicalBlockSize),
      blockCount: medium.sizeBytes / blockSize,
      supports: new Set(supports),
      writeCache: !medium.isMemory,
      readOnly: readonly,
      bases: [],
      device,
      driverSpecific: { [driver]: describe(given, driver) },
    }
  } catch (error) {
    close(fd)
    throw error
  }
}

function describe(given: FileParams, driver: string): Record<string, unknown> {
  const { filename, block_size = 0, readonly = false, fallocate: punch = true, nowait = false } = given
  if (driver === 'uring') return { filename }
  return { filename, block_size_override: block_size > 0, readonly, fallocate: punch, nowait }
}

/** Throws `RpcError` unless the path is a file or a block device; says which. */
async function checkKind(name: string, path: string): Promise<boolean> {
  const stats = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    const remedy =
      cause.code === 'ENOENT'
        ? `: make it first, for example with truncate -s 10G ${path}${whereItBegins(path)}`
        : ''
    throw new RpcError('ENOENT', `${name} cannot open ${path}: ${cause.code}${remedy}`, { cause })
  })
  if (stats.isFile()) return false
  if (stats.isBlockDevice()) return true
  const what = stats.isDirectory() ? 'a directory' : 'neither'
  throw new RpcError('EINVAL', `${name} needs a file or a block device and ${path} is ${what}: name a file`)
}

function openDescriptor(name: string, path: string, readonly: boolean, direct: boolean): Promise<number> {
  const flags = (readonly ? constants.O_RDONLY : constants.O_RDWR) | (direct ? constants.O_DIRECT : 0)
  return open(path, flags).catch((cause: NodeJS.ErrnoException) => {
    let remedy = 'check who owns it'
    if (cause.code === 'EINVAL' && direct) remedy = 'its file system has no O_DIRECT, use direct: false'
    else if (!readonly) remedy = 'if it is only to be read, use readonly: true (bdev_aio_create)'
    const code =
      cause.code === 'EACCES' || cause.code === 'EROFS' || cause.code === 'EPERM' ? cause.code : 'EINVAL'
    const how = readonly ? 'reading' : 'reading and writing'
    throw new RpcError(code, `${name} cannot open ${path} for ${how}: ${cause.code}; ${remedy}`, { cause })
  })
}

async function inspect(fd: number, path: string, isBlockDevice: boolean, readonly: boolean): Promise<Medium> {
  const sizeBytes = lseek(fd, 0, SEEK_END)
  if (isBlockDevice) {
    return {
      isBlockDevice,
      sizeBytes,
      logicalBlockSize: queryBlockDevice(fd, BLKSSZGET),
      physicalBlockSize: queryBlockDevice(fd, BLKPBSZGET),
      isMemory: false,
      canPunchHoles: !readonly && (await canZeroWithoutWriting((await stat(path)).rdev)),
    }
  }
  const { type } = await statfs(path)
  return {
    isBlockDevice,
    sizeBytes,
    logicalBlockSize: DEFAULT_BLOCK_SIZE,
    physicalBlockSize: PAGE,
    isMemory: type === TMPFS_MAGIC || type === RAMFS_MAGIC,
    // Behind the end there is nothing to lose, and the size stays.
    canPunchHoles: !readonly && fallocate(fd, PUNCH_HOLE_KEEP_SIZE, sizeBytes, PAGE) === 0,
  }
}

function queryBlockDevice(fd: number, request: number): number {
  if (scratch === 0) scratch = mapAnonymous(PAGE)
  return ioctl(fd, request, scratch) === 0 ? viewAt(scratch, 4).getUint32(0, true) : DEFAULT_BLOCK_SIZE
}

/** Whether the kernel zeroes a range of the block device by a command instead of writing it. */
async function canZeroWithoutWriting(rdev: number): Promise<boolean> {
  const device = `/sys/dev/block/${deviceNumbers(rdev)}`
  const limit =
    (await readText(`${device}/queue/write_zeroes_max_bytes`)) ||
    (await readText(`${device}/../queue/write_zeroes_max_bytes`))
  return Number(limit) > 0
}

function checkBlocks(name: string, path: string, blockSize: number, medium: Medium, direct: boolean): void {
  const { sizeBytes, logicalBlockSize, isBlockDevice } = medium
  checkBlockSize(name, 'block_size', blockSize)
  if (isBlockDevice && direct && blockSize % logicalBlockSize !== 0) {
    throw new RpcError(
      'EINVAL',
      `${name} has a block_size of ${blockSize} and ${path} has blocks of ${logicalBlockSize} bytes: ` +
        `use ${logicalBlockSize}, or direct: false`,
    )
  }
  if (sizeBytes >= blockSize && sizeBytes % blockSize === 0) return
  const next = Math.max(1, Math.ceil(sizeBytes / blockSize)) * blockSize
  const smaller = sizeBytes > 0 && sizeBytes % 512 === 0 ? ', or a block_size of 512' : ''
  throw new RpcError(
    'EINVAL',
    `${path} has ${sizeBytes} bytes, not a whole number of blocks of ${blockSize}: ` +
      `use truncate -s ${next} ${path}${smaller}`,
  )
}

async function rescan({ bdevs }: BdevContext, name: string, driver: string): Promise<true> {
  const info = bdevs.get(name)
  if (info.driver !== driver) {
    throw new RpcError(
      'ENODEV',
      `${name} is a ${info.driver} bdev, not ${driver}: use bdev_${driver}_rescan for those`,
    )
  }
  const { fd, path } = info.device as OpenFile
  const sizeBytes = lseek(fd, 0, SEEK_END)
  // As SPDK does: what is not a whole block at the end is left out.
  const blockCount = Math.floor(sizeBytes / info.blockSize)
  if (blockCount < 1) {
    throw new RpcError(
      'EINVAL',
      `${name}: ${path} has ${sizeBytes} bytes, less than a block of ${info.blockSize}`,
    )
  }
  await bdevs.resize(name, blockCount)
  return true
}

const FILE_ERRORS = {
  ...CREATE_ERRORS,
  ENOENT: 'there is no such file',
  EACCES: 'the daemon may not open it',
  EROFS: 'it is on a file system that is mounted read only',
  EPERM: 'the daemon may not open it',
} as const

const RESCAN_ERRORS = {
  ENODEV: 'no such device has that name',
  EINVAL: 'nothing is left of it',
  EBUSY: 'it became smaller while somebody has it',
} as const

const bdevName = z.string().min(1).describe('Its name')
const existing = z.object({ name: z.string().describe('The device') })

export const fileMethods = [
  method({
    name: 'bdev_aio_create',
    summary: 'Makes a file or a block device a disk.',
    params: z.object({ name: bdevName, ...aioParams.shape }),
    result: z.string().describe('The name'),
    errors: FILE_ERRORS,
    saves: true,
    cli: {
      positional: ['filename', 'name', 'block_size'],
      flags: { readonly: 'r', fallocate: 'f', uuid: 'u', nowait: ['n', 'no-wait'] },
    },
    async run({ name, ...rest }, { bdevs }: BdevContext) {
      return (await bdevs.create('aio', name, rest)).name
    },
  }),
  method({
    name: 'bdev_aio_rescan',
    summary: "Takes over the file's present size. Hosts that have it open are told at once.",
    params: existing,
    result: done,
    errors: RESCAN_ERRORS,
    cli: { positional: ['name'] },
    run: ({ name }, context: BdevContext) => rescan(context, name, 'aio'),
  }),
  deleteMethod('bdev_aio_delete', 'aio'),
  method({
    name: 'bdev_uring_create',
    summary: 'Makes a file or a block device a disk.',
    params: z.object({ name: bdevName, ...uringParams.shape }),
    result: z.string().describe('The name'),
    errors: FILE_ERRORS,
    saves: true,
    cli: { positional: ['filename', 'name', 'block_size'], flags: { uuid: 'u' } },
    async run({ name, ...rest }, { bdevs }: BdevContext) {
      return (await bdevs.create('uring', name, rest)).name
    },
  }),
  method({
    name: 'bdev_uring_rescan',
    summary: "Takes over the file's present size. Hosts that have it open are told at once.",
    params: existing,
    result: done,
    errors: RESCAN_ERRORS,
    cli: { positional: ['name'] },
    run: ({ name }, context: BdevContext) => rescan(context, name, 'uring'),
  }),
  deleteMethod('bdev_uring_delete', 'uring'),
]
