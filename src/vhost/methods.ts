/** The RPC methods of the vhost-user front end. Those that SPDK has are as SPDK has them. */
import { controllerMethods } from './methods/controller.ts'
import { guestMethods } from './methods/guest.ts'
import { queryMethods } from './methods/query.ts'
import { settingsMethods } from './methods/settings.ts'
import { targetMethods } from './methods/target.ts'
import { transportMethods } from './methods/transport.ts'

export type { VhostContext } from './methods/context.ts'

export const vhostMethods = [
  ...controllerMethods,
  ...targetMethods,
  ...queryMethods,
  ...settingsMethods,
  ...transportMethods,
  ...guestMethods,
]
