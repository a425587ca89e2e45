/** What the methods of the vhost-user front end share. */
import { z } from 'zod'
import type { VhostControllers } from '../controllers.ts'

/** What the methods find in the application. */
export interface VhostContext {
  readonly vhost: VhostControllers
}

/** The only one: of blk controllers, and of SPDK's `virtio_blk_get_transports`. */
export const TRANSPORT = 'vhost_user_blk'

export const ctrlr = z.string().describe('The controller')
export const UNKNOWN = 'no controller has that name'
