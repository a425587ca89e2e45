/** Every method of guests. */
import { diskMethods } from './methods/disks.ts'
import { guestMethods } from './methods/guests.ts'
import { inspectMethods } from './methods/inspect.ts'

export const vmMethods = [...guestMethods, ...diskMethods, ...inspectMethods]
