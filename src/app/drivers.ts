/** Every driver of the daemon: the built-in ones, and those that a user's module brings. */
import type { AnyDriver } from '../bdev/bdev.ts'
import { drivers } from '../bdev/drivers/index.ts'
import { loadUserDriver } from '../bdev/drivers/plugin.ts'
import { nvmeDriver } from '../nvme/driver.ts'
import { rbdDriver } from '../rbd/driver.ts'
import { virtioDriver } from '../virtio/driver.ts'

/** Each thread loads them for itself: functions do not travel between threads. `modules`: drivers written by users. */
export async function loadDrivers(modules: readonly string[]): Promise<readonly AnyDriver[]> {
  return [
    ...drivers,
    nvmeDriver,
    virtioDriver,
    rbdDriver,
    ...(await Promise.all(modules.map(loadUserDriver))),
  ]
}
