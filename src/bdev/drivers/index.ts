/** Every driver and filter: a new one is one more line in each list. */
import type { AnyDriver } from '../bdev.ts'
import { delayDriver, delayMethods } from '../filters/delay.ts'
import { errorDriver, errorMethods } from '../filters/error.ts'
import { passthruDriver, passthruMethods } from '../filters/passthru.ts'
import { aioDriver, fileMethods, uringDriver } from './file.ts'
import { iscsiDriver } from './iscsi/driver.ts'
import { mallocDriver, mallocMethods } from './malloc.ts'
import { nullDriver, nullMethods } from './null.ts'
import { pluginDriver, pluginMethods } from './plugin.ts'
import { qcow2Driver } from './qcow2/driver.ts'
import { qcow2Methods } from './qcow2/methods.ts'

export const drivers: readonly AnyDriver[] = [
  nullDriver,
  mallocDriver,
  aioDriver,
  uringDriver,
  qcow2Driver,
  iscsiDriver,
  delayDriver,
  errorDriver,
  passthruDriver,
  pluginDriver,
]

export const driverMethods = [
  ...nullMethods,
  ...mallocMethods,
  ...fileMethods,
  ...qcow2Methods,
  ...delayMethods,
  ...errorMethods,
  ...passthruMethods,
  ...pluginMethods,
]
