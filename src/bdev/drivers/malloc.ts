/** A device in memory: as fast as any can be, and gone with the process. */
import { randomUUID } from 'node:crypto'
import { totalmem } from 'node:os'
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { int32, uint32, uint64, uuid } from '../../rpc/params.ts'
import { Status } from '../../spec/nvme-status.ts'
import { madvise } from '../../sys/libc.ts'
import { mapAnonymous, memset, unmap } from '../../sys/memory.ts'
import { type BdevInfo, type DriverChannel, defineDriver } from '../bdev.ts'
import { checkBlockSize, checkGeometry, refuseMetadata } from '../geometry.ts'
import { type BdevIo, IoType } from '../io.ts'
import { type BdevContext, CREATE_ERRORS, deleteMethod, TOTAL_SIZE } from '../method.ts'

const params = z.object({
  block_size: uint32.describe('Bytes in a block'),
  num_blocks: uint64.describe('Blocks in the device'),
  uuid: uuid.optional().describe('Random, and kept over restarts, when not given'),
  optimal_io_boundary: uint32.optional().describe('Accepted; memory has no boundaries'),
  md_size: uint32.optional().describe('Only 0'),
  md_interleave: z.boolean().optional().describe('Without meaning while there is no metadata'),
  dif_type: int32.optional().describe('Only 0'),
  dif_is_head_of_md: z.boolean().optional().describe('Without meaning while there is no metadata'),
  physical_block_size: uint32
    .optional()
    .describe('Bytes that the medium writes as one; block_size by default'),
  dif_pi_format: uint32.optional().describe('Without meaning while there is no metadata'),
  numa_id: int32.optional().describe('Accepted; the kernel places the memory where it is first used'),
})

/** Where the memory is: every thread sees it at the same address. */
interface Memory {
  readonly address: number
  readonly sizeBytes: number
}

export const mallocDriver = defineDriver({
  name: 'malloc',
  summary: 'A disk in memory: fast, thin, and gone with the process.',
  params,
  create,
  openChannel: info => new MallocChannel(info),
  destroy(info) {
    const { address, sizeBytes } = info.device as Memory
    unmap(address, sizeBytes)
  },
})

function create(name: string, given: z.output<typeof params>): BdevInfo {
  checkGeometry(name, given.block_size, given.num_blocks)
  refuseMetadata(name, given)
  const physicalBlockSize = given.physical_block_size ?? given.block_size
  checkBlockSize(name, 'physical_block_size', physicalBlockSize)
  const sizeBytes = given.block_size * given.num_blocks
  if (sizeBytes > totalmem()) {
    throw new RpcError(
      'ENOMEM',
      `${name} would take ${sizeBytes} bytes of memory and the machine has ${totalmem()}: make it smaller, or use bdev_aio_create`,
    )
  }
  const memory: Memory = { address: mapAnonymous(sizeBytes), sizeBytes }
  return {
    name,
    aliases: [],
    driver: 'malloc',
    product: 'Malloc disk',
    uuid: given.uuid ?? randomUUID(),
    blockSize: given.block_size,
    physicalBlockSize: Math.max(physicalBlockSize, given.block_size),
    blockCount: given.num_blocks,
    supports: new Set([IoType.READ, IoType.WRITE, IoType.FLUSH, IoType.WRITE_ZEROES, IoType.UNMAP]),
    writeCache: false,
    readOnly: false,
    bases: [],
    device: memory,
    driverSpecific: {},
  }
}

class MallocChannel implements DriverChannel {
  readonly lends = true
  readonly #address: number
  readonly #blockSize: number

  constructor({ device, blockSize }: BdevInfo) {
    this.#address = (device as Memory).address
    this.#blockSize = blockSize
  }

  submit(io: BdevIo): void {
    const size = io.blockCount * this.#blockSize
    const address = this.#address + io.firstBlock * this.#blockSize
    switch (io.type) {
      case IoType.READ:
        if (io.lent) io.segments.set(address, size)
        else io.segments.copyFrom(address, 0, size)
        break
      case IoType.WRITE:
        io.segments.copyTo(address, 0, size)
        break
      case IoType.WRITE_ZEROES:
      case IoType.UNMAP:
        zero(address, size)
        break
    }
    io.complete(Status.SUCCESS)
  }

  abort(): void {}

  close(): void {}
}

const PAGE = 4096
const MADV_DONTNEED = 4
/** Below this, clearing is cheaper than a system call and the page faults that follow. */
const GIVE_BACK_MIN = 64 * 1024

/** Clears a range, and gives whole pages of a large one back to the kernel. */
function zero(address: number, size: number): void {
  const first = Math.ceil(address / PAGE) * PAGE
  const end = Math.floor((address + size) / PAGE) * PAGE
  if (end - first < GIVE_BACK_MIN || madvise(first, end - first, MADV_DONTNEED) < 0) {
    memset(address, 0, size)
    return
  }
  memset(address, 0, first - address)
  memset(end, 0, address + size - end)
}

/** For devices whose creator gave no name. */
let unnamed = 0

export const mallocMethods = [
  method({
    name: 'bdev_malloc_create',
    summary: 'Creates a disk in memory.',
    params: z.object({
      name: z.string().min(1).optional().describe('Its name; Malloc0, Malloc1 … by default'),
      ...params.shape,
    }),
    result: z.string().describe('The name'),
    errors: { ...CREATE_ERRORS, ENOMEM: 'the machine has less memory than that' },
    saves: true,
    cli: {
      positional: ['total_size', 'block_size'],
      computed: { total_size: TOTAL_SIZE },
      flags: {
        name: 'b',
        uuid: 'u',
        physical_block_size: 'p',
        optimal_io_boundary: 'o',
        md_size: 'm',
        md_interleave: 'i',
        dif_type: 't',
        dif_is_head_of_md: 'd',
        dif_pi_format: 'f',
        numa_id: 'n',
      },
    },
    async run({ name, ...rest }, { bdevs }: BdevContext) {
      let free = name
      while (free === undefined) {
        const candidate = `Malloc${unnamed++}`
        if (bdevs.find(candidate) === undefined) free = candidate
      }
      return (await bdevs.create('malloc', free, rest)).name
    },
  }),
  deleteMethod('bdev_malloc_delete', 'malloc'),
]
