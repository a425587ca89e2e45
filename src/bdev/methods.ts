/** Every method of the block layer: of all devices, and of the drivers. */
import { driverMethods } from './drivers/index.ts'
import { deviceMethods } from './methods/devices.ts'

export const bdevMethods = [...deviceMethods, ...driverMethods]
