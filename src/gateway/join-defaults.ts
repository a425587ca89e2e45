/** What `gateway_join` need not be told: most gateways have one cluster, and one address that hosts can reach. */
import { isIPv4 } from 'node:net'
import { type NetworkInterfaceInfo, networkInterfaces } from 'node:os'
import { RpcError } from '../core/errors.ts'

/** Of the registered clusters, when there is no choice. Throws `RpcError` ENOENT without one, INVALID_PARAMS with several. */
export function onlyCluster(names: readonly string[]): string {
  const [name] = names
  if (name === undefined) {
    throw new RpcError(
      'ENOENT',
      'no cluster is registered for the group to be in: bdev_rbd_register_cluster first',
    )
  }
  if (names.length === 1) return name
  throw new RpcError(
    'INVALID_PARAMS',
    `there are the clusters ${names.join(', ')}: say which one has the group's pool and images (cluster_name)`,
  )
}

/**
 * This machine's address and NVMe's port, when there is no choice: of IPv4 first, and not of this machine or link alone.
 * Throws `RpcError` INVALID_PARAMS that names those there are.
 */
export function onlyAddress(interfaces = networkInterfaces()): string {
  const all = Object.values(interfaces).flatMap((each: NetworkInterfaceInfo[] = []) => each)
  const reachable = all
    .filter(({ address, internal }) => !internal && !/^(169\.254\.|fe[89ab])/i.test(address))
    .map(({ address }) => address)
  const preferred = reachable.some(isIPv4) ? reachable.filter(isIPv4) : reachable
  const [address] = preferred
  if (address !== undefined && preferred.length === 1) {
    return isIPv4(address) ? `${address}:4420` : `[${address}]:4420`
  }
  const found =
    preferred.length === 0 ? 'no address that hosts can reach' : `the addresses ${preferred.join(', ')}`
  throw new RpcError(
    'INVALID_PARAMS',
    `this machine has ${found}: say where hosts reach this member (address 192.168.1.10:4420)`,
  )
}
