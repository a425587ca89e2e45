/**
 * The package's entry `qpair/client`: a typed JSON-RPC client.
 *
 *     import { connectQpair } from 'qpair/client'
 *     const qpair = await connectQpair('/var/tmp/spdk.sock')
 *     for (const { name } of await qpair.call('bdev_get_bdevs')) console.log(name)
 */
import type { methods } from './app/methods.ts'
import { type ConnectOptions, connect, type RpcClient } from './rpc/client.ts'

export { DEFAULT_SOCKET } from './rpc/address.ts'
export {
  type ConnectOptions,
  connect,
  RpcCallError,
  RpcClient,
  RpcConnectionError,
} from './rpc/client.ts'

/** A client that knows the methods of qpair's daemon. */
export type QpairClient = RpcClient<typeof methods>

/** Connects to a daemon: the path of its socket, or `IP:PORT`. */
export const connectQpair = (address?: string, options?: ConnectOptions): Promise<QpairClient> =>
  connect<typeof methods>(address, options)
