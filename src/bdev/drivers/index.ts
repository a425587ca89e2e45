/** Every driver and filter: a new one is one more line in each list. */
import type { AnyDriver } from '../bdev.ts'
import { aioDriver, fileMethods, uringDriver } from './file.ts'
import { mallocDriver, mallocMethods } from './malloc.ts'
import { nullDriver, nullMethods } from './null.ts'

export const drivers: readonly AnyDriver[] = [nullDriver, mallocDriver, aioDriver, uringDriver]

export const driverMethods = [...nullMethods, ...mallocMethods, ...fileMethods]
