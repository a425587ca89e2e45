/** What the RPC methods of drivers have in common. */
import { z } from 'zod'
import { type Method, method } from '../rpc/method.ts'
import { done } from '../rpc/params.ts'
import type { BdevRegistry } from './registry.ts'

/** What a method of the block layer finds in the application. */
export interface BdevContext {
  readonly bdevs: BdevRegistry
}

export const CREATE_ERRORS = {
  EEXIST: 'a device has that name or that UUID already',
  EINVAL: 'the size or the block size is one that no device can have',
  ENOTSUP: 'metadata beside the blocks is asked for',
} as const

export const FILTER_ERRORS = {
  EEXIST: 'a device has that name or that UUID already',
  ENODEV: 'there is no such device to put it over',
  EPERM: 'that device is in use by another filter or front end',
} as const

/** What `rpc.py` takes on its command line, in MiB, in place of the number of blocks that it sends. */
export const TOTAL_SIZE = {
  summary: 'Size in MiB',
  param: 'num_blocks',
  compute: (mebibytes: number, { block_size }: Readonly<Record<string, unknown>>): number =>
    Math.floor((mebibytes * 2 ** 20) / Number(block_size)),
} as const

const deleteParams = z.object({ name: z.string().describe('The device') })

/** `bdev_<driver>_delete`: removes a device of that driver, under whatever uses it. */
export function deleteMethod<const Name extends string>(
  name: Name,
  driver: string,
): Method<Name, typeof deleteParams, typeof done, BdevContext> {
  return method({
    name,
    summary: `Removes a device of the ${driver} driver, under whatever uses it.`,
    params: deleteParams,
    result: done,
    errors: { ENODEV: `no ${driver} device has that name` },
    saves: true,
    cli: { positional: ['name'] },
    async run({ name: bdev }, { bdevs }: BdevContext) {
      await bdevs.remove(bdev, driver)
      return true as const
    },
  })
}
