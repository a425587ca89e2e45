/** Reads zeroes and discards writes: measures every layer but the medium. */
import { randomUUID } from 'node:crypto'
import { z } from 'zod'
import { assert } from '../../core/assert.ts'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, int32, uint32, uint64, uuid } from '../../rpc/params.ts'
import { Status } from '../../spec/nvme-status.ts'
import { mapAnonymous } from '../../sys/memory.ts'
import { type BdevInfo, type DriverChannel, defineDriver } from '../bdev.ts'
import { ExtentState } from '../extents.ts'
import { checkBlockSize, checkGeometry, refuseMetadata } from '../geometry.ts'
import { type BdevIo, IoType } from '../io.ts'
import { type BdevContext, CREATE_ERRORS, deleteMethod, TOTAL_SIZE } from '../method.ts'

/** Memory that is only ever read: the kernel backs all of it with one page of zeroes. */
const ZEROES_SIZE = 2 ** 30
let zeroes = 0

const params = z.object({
  block_size: uint32.describe('Bytes in a block'),
  num_blocks: uint64.describe('Blocks in the device'),
  uuid: uuid.optional().describe('Random, and kept over restarts, when not given'),
  physical_block_size: uint32
    .optional()
    .describe('Bytes that the medium writes as one; block_size by default'),
  md_size: uint32.optional().describe('Only 0'),
  dif_type: int32.optional().describe('Only 0'),
  dif_pi_format: uint32.optional().describe('Without meaning while there is no metadata'),
  dif_is_head_of_md: z.boolean().optional().describe('Without meaning while there is no metadata'),
  preferred_write_granularity: uint32.optional().describe('Told to hosts: blocks'),
  preferred_write_alignment: uint32.optional().describe('Told to hosts: blocks'),
  optimal_write_size: uint32.optional().describe('Told to hosts: blocks'),
  preferred_unmap_granularity: uint32.optional().describe('Told to hosts: blocks'),
  preferred_unmap_alignment: uint32.optional().describe('Told to hosts: blocks'),
})

export const nullDriver = defineDriver({
  name: 'null',
  summary: 'Reads zeroes and discards writes: measures every layer but the medium.',
  params,
  create,
  config: (info, given) => [
    {
      method: 'bdev_null_create',
      params: { name: info.name, ...given, num_blocks: info.blockCount, uuid: info.uuid },
    },
  ],
  // There is no state to keep apart, so every reactor gets the same channel.
  openChannel: () => channel,
})

function create(name: string, given: z.output<typeof params>): BdevInfo {
  checkGeometry(name, given.block_size, given.num_blocks)
  refuseMetadata(name, given)
  const physicalBlockSize = given.physical_block_size ?? given.block_size
  checkBlockSize(name, 'physical_block_size', physicalBlockSize)
  return {
    name,
    aliases: [],
    driver: 'null',
    product: 'Null disk',
    uuid: given.uuid ?? randomUUID(),
    blockSize: given.block_size,
    physicalBlockSize: Math.max(physicalBlockSize, given.block_size),
    blockCount: given.num_blocks,
    supports: new Set([IoType.READ, IoType.WRITE, IoType.WRITE_ZEROES]),
    preferred: {
      writeAlignment: given.preferred_write_alignment ?? 0,
      writeGranularity: given.preferred_write_granularity ?? 0,
      writeSize: given.optimal_write_size ?? 0,
      unmapAlignment: given.preferred_unmap_alignment ?? 0,
      unmapGranularity: given.preferred_unmap_granularity ?? 0,
    },
    writeCache: false,
    readOnly: false,
    bases: [],
    device: null,
    driverSpecific: {},
  }
}

const channel: DriverChannel = {
  lends: true,
  submit(io) {
    if (io.type === IoType.READ) read(io)
    io.complete(Status.SUCCESS)
  },
  extents(_firstBlock, blockCount, extents) {
    extents.push(blockCount, ExtentState.HOLE | ExtentState.ZERO)
  },
  abort() {},
  close() {},
}

function read(io: BdevIo): void {
  if (!io.lent) {
    io.segments.zero()
    return
  }
  const size = io.blockCount * io.channel!.info.blockSize
  assert(size <= ZEROES_SIZE, 'no front end reads more than 1 GiB at once')
  if (zeroes === 0) zeroes = mapAnonymous(ZEROES_SIZE)
  io.segments.set(zeroes, size)
}

const MIB = 2 ** 20

export const nullMethods = [
  method({
    name: 'bdev_null_create',
    summary: 'Creates a device that reads zeroes and discards writes.',
    params: z.object({ name: z.string().min(1).describe('Its name'), ...params.shape }),
    result: z.string().describe('The name'),
    errors: CREATE_ERRORS,
    saves: true,
    cli: {
      positional: ['name', 'total_size', 'block_size'],
      computed: { total_size: TOTAL_SIZE },
      flags: {
        uuid: 'u',
        physical_block_size: 'p',
        md_size: 'm',
        dif_type: 't',
        dif_is_head_of_md: 'd',
        dif_pi_format: 'f',
        preferred_write_alignment: 'a',
        preferred_write_granularity: 'g',
        optimal_write_size: 's',
        preferred_unmap_alignment: 'c',
        preferred_unmap_granularity: 'r',
      },
    },
    async run({ name, ...rest }, { bdevs }: BdevContext) {
      return (await bdevs.create('null', name, rest)).name
    },
  }),
  deleteMethod('bdev_null_delete', 'null'),
  method({
    name: 'bdev_null_resize',
    summary: 'Resizes a null device. Hosts that have it open are told at once.',
    params: z.object({
      name: z.string().describe('The device'),
      new_size: uint64.describe('Its new size, in MiB'),
    }),
    result: done,
    errors: {
      ENODEV: 'no null device has that name',
      EINVAL: 'the size is no whole number of blocks, or 0',
      EBUSY: 'the device would shrink while somebody has it',
    },
    saves: true,
    cli: { positional: ['name', 'new_size'] },
    async run({ name, new_size }, { bdevs }: BdevContext) {
      const info = bdevs.get(name)
      if (info.driver !== 'null') throw new RpcError('ENODEV', `${name} is a ${info.driver} bdev, not null`)
      checkGeometry(info.name, info.blockSize, (new_size * MIB) / info.blockSize)
      await bdevs.resize(name, (new_size * MIB) / info.blockSize)
      return true as const
    },
  }),
]
