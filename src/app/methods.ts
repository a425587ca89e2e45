/** Every method of the daemon, one list a layer. A new method is one more name in the list of its own layer. */
import { introspectionMethods } from '../rpc/introspection.ts'

export const methods = [...introspectionMethods]
