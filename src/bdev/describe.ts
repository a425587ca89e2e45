/** A device as `bdev_get_bdevs` shows it: SPDK's fields, in SPDK's order. */
import { z } from 'zod'
import type { BdevInfo } from './bdev.ts'
import { IoType } from './io-type.ts'
import { isSupported } from './support.ts'

/** SPDK's names of what a device may support, in its order. What has no type here is never supported. */
const IO_TYPES = {
  read: IoType.READ,
  write: IoType.WRITE,
  unmap: IoType.UNMAP,
  flush: IoType.FLUSH,
  reset: IoType.RESET,
  nvme_admin: undefined,
  nvme_io: undefined,
  nvme_io_md: undefined,
  write_zeroes: IoType.WRITE_ZEROES,
  zcopy: undefined,
  get_zone_info: undefined,
  zone_management: undefined,
  zone_append: undefined,
  compare: IoType.COMPARE,
  compare_and_write: IoType.COMPARE_AND_WRITE,
  /** Any outstanding I/O can be asked to end early. */
  abort: 'always',
  seek_hole: undefined,
  seek_data: undefined,
  copy: undefined,
  nvme_iov_md: undefined,
  nvme_nssr: undefined,
  write_uncorrectable: undefined,
} as const

export const BdevDescription = z.object({
  name: z.string(),
  aliases: z.array(z.string()),
  product_name: z.string(),
  block_size: z.int(),
  num_blocks: z.int(),
  preferred_write_alignment: z.int(),
  preferred_write_granularity: z.int(),
  optimal_write_size: z.int(),
  preferred_unmap_alignment: z.int(),
  preferred_unmap_granularity: z.int(),
  uuid: z.string(),
  assigned_rate_limits: z.object({
    rw_ios_per_sec: z.int(),
    rw_mbytes_per_sec: z.int(),
    r_mbytes_per_sec: z.int(),
    w_mbytes_per_sec: z.int(),
  }),
  claimed: z.boolean(),
  claim_type: z.string().optional(),
  zoned: z.boolean(),
  supported_io_types: z.record(z.string(), z.boolean()),
  driver_specific: z.record(z.string(), z.unknown()),
})

export function describeBdev(
  info: BdevInfo,
  claimType: string | undefined,
): z.output<typeof BdevDescription> {
  const { preferred } = info
  return {
    name: info.name,
    aliases: [...info.aliases, info.uuid],
    product_name: info.product,
    block_size: info.blockSize,
    num_blocks: info.blockCount,
    preferred_write_alignment: preferred?.writeAlignment ?? 0,
    preferred_write_granularity: preferred?.writeGranularity ?? 0,
    optimal_write_size: preferred?.writeSize ?? 0,
    preferred_unmap_alignment: preferred?.unmapAlignment ?? 0,
    preferred_unmap_granularity: preferred?.unmapGranularity ?? 0,
    uuid: info.uuid,
    assigned_rate_limits: {
      rw_ios_per_sec: 0,
      rw_mbytes_per_sec: 0,
      r_mbytes_per_sec: 0,
      w_mbytes_per_sec: 0,
    },
    claimed: claimType !== undefined,
    ...(claimType !== undefined && { claim_type: claimType }),
    zoned: false,
    supported_io_types: Object.fromEntries(
      Object.entries(IO_TYPES).map(([name, type]) => [
        name,
        type === 'always' || (type !== undefined && isSupported(info, type)),
      ]),
    ),
    driver_specific: { ...info.driverSpecific },
  }
}
