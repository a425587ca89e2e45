/** A guest lets go of a disk when it likes, and QEMU of what was beneath it a moment later. */
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError } from '../core/errors.ts'

/** How long a guest may take to let go of a disk; the command line waits a minute for an answer. */
export const RELEASE_MS = 40_000
const POLL_MS = 250

/** It has been asked, and has not let go. `guest`: `guest web`, `the guest in domain web`. */
export const stillThere = (guest: string, target: string): RpcError =>
  new RpcError(
    'ETIMEDOUT',
    `${guest} has not let go of ${target} within ${RELEASE_MS / 1000} s: is it mounted there, or does the guest stand still, or ` +
      'is it still starting? It may yet; type the command again',
  )

/** Waits until something is so; throws `stillThere` when it takes too long. */
export async function untilLetGo(
  guest: string,
  target: string,
  isGone: () => Promise<boolean>,
): Promise<void> {
  const deadlineMs = performance.now() + RELEASE_MS
  while (!(await isGone())) {
    if (performance.now() > deadlineMs) throw stillThere(guest, target)
    await delay(POLL_MS)
  }
}

/**
 * Removes a block node or a character device behind a device that has just gone: QEMU finishes with that a moment after it has
 * taken it off its list, and until then the device has it.
 */
export function removeBehind(guest: string, target: string, remove: () => Promise<unknown>): Promise<void> {
  return untilLetGo(guest, target, async () => {
    try {
      await remove()
      return true
    } catch (error) {
      if (/ is (?:in use|busy)/.test((error as Error).message)) return false
      throw error
    }
  })
}
