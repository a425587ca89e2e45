/** Every method of guests. */
import { diskMethods } from './methods/disks.ts'
import { guestMethods } from './methods/guests.ts'

export const vmMethods = [...guestMethods, ...diskMethods]
