/** What the methods of this layer share. */
import { z } from 'zod'
import { uint32 } from '../../rpc/params.ts'
import type { NvmeControllers } from '../nvme-controllers.ts'

/** What a method of the NVMe host finds in the application. */
export interface NvmeContext {
  readonly nvme: NvmeControllers
}

export const trid = z.object({
  trtype: z.string(),
  adrfam: z.string(),
  traddr: z.string(),
  trsvcid: z.string(),
  subnqn: z.string(),
})

export const multipathPolicy = z.enum(['active_passive', 'active_active'])
export const multipathSelector = z.enum(['round_robin', 'queue_depth'])

export const multipathOpts = z.strictObject({
  policy: multipathPolicy.optional().describe('active_passive when absent'),
  selector: multipathSelector.optional().describe('For active_active; round_robin when absent'),
  min_io: uint32
    .optional()
    .describe('I/Os on a path before the next has its turn, for round_robin; 1 when absent'),
})
