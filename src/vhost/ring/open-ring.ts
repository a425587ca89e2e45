/** Makes the device's side of a virtqueue, in the layout that was negotiated. */

import type { StartQueue } from '../messages.ts'
import type { GuestMemory } from './guest-memory.ts'
import { PackedRing } from './packed-ring.ts'
import type { RequestOf, Ring } from './ring.ts'
import { SplitRing } from './split-ring.ts'

/** Throws `RingFault` when the addresses or the size are not those of a ring. */
export function openRing(start: StartQueue, memory: GuestMemory, requestOf: RequestOf): Ring {
  return start.isPacked ? new PackedRing(start, memory, requestOf) : new SplitRing(start, memory, requestOf)
}
