/** Every method of guests. */
import { diskMethods } from './methods/disks.ts'

export const vmMethods = [...diskMethods]
