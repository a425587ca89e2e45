/** What an operator says about a controller, checked: an address to connect to, and the rules of its options. */
import { isIP, isIPv4, isIPv6 } from 'node:net'
import { RpcError } from '../core/errors.ts'
import type { SocketAddress } from '../reactor/network.ts'
import { NQN_LENGTH_MAX } from '../spec/nvmf.ts'
import type { ReconnectOptions } from './messages.ts'

/** A transport identifier as the methods show it. */
export interface Trid {
  readonly trtype: 'TCP'
  readonly adrfam: 'IPv4' | 'IPv6'
  readonly traddr: string
  readonly trsvcid: string
  readonly subnqn: string
}

export function tridOf({ host, port }: SocketAddress, subnqn: string): Trid {
  return {
    trtype: 'TCP',
    adrfam: isIPv6(host) ? 'IPv6' : 'IPv4',
    traddr: host,
    trsvcid: String(port),
    subnqn,
  }
}

/** The address of `traddr`, `trsvcid`, `adrfam`. Throws `RpcError` INVALID_PARAMS, or ENOTSUP for another transport. */
export function addressOf(params: {
  trtype: string
  traddr: string
  trsvcid?: string | undefined
  adrfam?: string | undefined
}): SocketAddress {
  refuseOtherTransport(params.trtype)
  const { traddr, trsvcid = '4420', adrfam } = params
  if (isIP(traddr) === 0) {
    throw new RpcError('INVALID_PARAMS', `traddr ${traddr} is not an IP address: give one such as 192.0.2.1`)
  }
  const family = adrfam?.toLowerCase()
  if (family !== undefined && family !== (isIPv4(traddr) ? 'ipv4' : 'ipv6')) {
    throw new RpcError('INVALID_PARAMS', `traddr ${traddr} is no address of the family ${adrfam}`)
  }
  return { host: traddr, port: portOf('trsvcid', trsvcid) }
}

/** Where to connect from, undefined for wherever the system chooses. */
export function sourceOf(
  hostaddr: string | undefined,
  hostsvcid: string | undefined,
): SocketAddress | undefined {
  if (hostaddr === undefined) {
    if (hostsvcid === undefined) return undefined
    throw new RpcError('INVALID_PARAMS', `hostsvcid ${hostsvcid} needs hostaddr beside it`)
  }
  if (isIP(hostaddr) === 0) {
    throw new RpcError('INVALID_PARAMS', `hostaddr ${hostaddr} is not an IP address`)
  }
  return { host: hostaddr, port: hostsvcid === undefined ? 0 : portOf('hostsvcid', hostsvcid) }
}

function portOf(name: string, text: string): number {
  const port = Number(text)
  if (/^\d+$/.test(text) && port >= 1 && port <= 65535) return port
  throw new RpcError('INVALID_PARAMS', `${name} ${text} is not a port: give a number from 1 to 65535`)
}

function refuseOtherTransport(trtype: string): void {
  if (trtype.toLowerCase() === 'tcp') return
  throw new RpcError(
    'ENOTSUP',
    trtype.toLowerCase() === 'pcie'
      ? `trtype ${trtype}: local devices are not driven from here: use bdev_aio_create or bdev_uring_create on /dev/nvme…`
      : `trtype ${trtype} is not supported: use TCP (-t tcp), to which every NVMe-oF target can listen as well`,
  )
}

/** Throws `RpcError` INVALID_PARAMS unless `nqn` can be a qualified name. */
export function checkNqn(name: string, nqn: string): void {
  if (nqn.length > NQN_LENGTH_MAX) {
    throw new RpcError('INVALID_PARAMS', `${name} has ${nqn.length} characters, more than ${NQN_LENGTH_MAX}`)
  }
  if (!/^nqn\.\d{4}-\d{2}\.[^\s]+$/.test(nqn)) {
    throw new RpcError(
      'INVALID_PARAMS',
      `${name} "${nqn}" is not an NQN: it has the form nqn.2016-06.io.spdk:cnode1`,
    )
  }
}

/** The rules among SPDK's three parameters. Throws `RpcError` INVALID_PARAMS with the rule that is broken. */
export function checkReconnect(options: ReconnectOptions): void {
  const { ctrlrLossTimeoutSec: loss, reconnectDelaySec: delay, fastIoFailTimeoutSec: fast } = options
  const refuse = (rule: string): never => {
    throw new RpcError(
      'INVALID_PARAMS',
      `${rule} (ctrlr_loss_timeout_sec ${loss}, reconnect_delay_sec ${delay}, fast_io_fail_timeout_sec ${fast})`,
    )
  }
  if (loss < -1) refuse('ctrlr_loss_timeout_sec is -1 (for ever), 0 (never) or a number of seconds')
  if (delay === 0 && loss !== 0) refuse('ctrlr_loss_timeout_sec needs reconnect_delay_sec, at least 1')
  if (delay !== 0 && loss !== -1 && loss < delay) {
    refuse('ctrlr_loss_timeout_sec is -1 or at least reconnect_delay_sec')
  }
  if (fast !== 0 && fast < delay) refuse('fast_io_fail_timeout_sec is at least reconnect_delay_sec')
  if (fast !== 0 && delay === 0) refuse('fast_io_fail_timeout_sec needs reconnect_delay_sec, at least 1')
  if (fast !== 0 && loss !== -1 && fast >= loss) {
    refuse('fast_io_fail_timeout_sec is less than ctrlr_loss_timeout_sec')
  }
}
