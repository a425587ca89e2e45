/** Every method of the NVMe-oF target. */
import { discoveryMethods } from './methods/discovery.ts'
import { hostMethods } from './methods/host.ts'
import { listenerMethods } from './methods/listener.ts'
import { namespaceMethods } from './methods/namespace.ts'
import { subsystemMethods } from './methods/subsystem.ts'
import { targetMethods } from './methods/target.ts'
import { transportMethods } from './methods/transport.ts'

export const nvmfMethods = [
  ...targetMethods,
  ...transportMethods,
  ...subsystemMethods,
  ...listenerMethods,
  ...namespaceMethods,
  ...hostMethods,
  ...discoveryMethods,
]
