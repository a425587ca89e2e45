/** What the methods of this layer have in common. */
import { z } from 'zod'
import type { RbdImages } from '../images.ts'

/** What the methods find in the application. */
export interface RbdContext {
  readonly rbd: RbdImages
}

/** Ceph options by name. SPDK sends null for none. */
export const cephOptions = z.record(z.string(), z.string())

export const deviceName = z.string().describe('The device')

export const CEPH_ERRORS = {
  ENOTSUP: 'this machine has no librbd',
  ENOENT: 'there is no such pool, image or snapshot, or no key for the user',
  EACCES: 'the user may not do that',
  ETIMEDOUT: 'no monitor answers',
  EHOSTUNREACH: 'there is no monitor of that name',
  EINVAL: 'an option or a size is one that Ceph refuses',
} as const
