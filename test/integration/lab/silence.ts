/** Guests that hang while they boot: about one in sixty does under emulation, in its first second, without a word. */
import { statSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'

/** On the busiest machine a kernel that boots says something more often. */
export const SILENCE_MS = 45_000
const LOOK_MS = 100

/** Whether a guest's console, a file, stays as it is for too long before the guest has booted, or failed to. */
export async function isSilent(console: string, booted: Promise<void>, silenceMs: number): Promise<boolean> {
  const settled = booted.then(
    () => true,
    () => true,
  )
  for (let size = -1, sinceMs = performance.now(); ; ) {
    if (await Promise.race([settled, delay(LOOK_MS, false)])) return false
    const now = statSync(console, { throwIfNoEntry: false })?.size ?? 0
    if (now !== size) [size, sinceMs] = [now, performance.now()]
    else if (performance.now() - sinceMs >= silenceMs) return true
  }
}
