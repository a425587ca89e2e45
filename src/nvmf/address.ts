/** Transport addresses as RPCs, listeners and discovery entries have them. */
import { isIP } from 'node:net'
import { RpcError } from '../core/errors.ts'
import type { SocketAddress } from '../reactor/network.ts'

/** As in RPC results: `trtype` and `adrfam` in SPDK's spelling, `trsvcid` the port in decimal digits. */
export interface TransportAddress {
  readonly trtype: 'TCP'
  readonly adrfam: 'IPv4' | 'IPv6'
  readonly traddr: string
  readonly trsvcid: string
}

/** As in RPC parameters: any case, and what can be found out left out. */
export interface AddressParams {
  readonly trtype: string
  readonly adrfam?: string | undefined
  readonly traddr: string
  readonly trsvcid?: string | undefined
}

const TCP_HINT = 'use TCP: "nvmf_create_transport -t TCP", and "-t tcp" for its listeners'

/** Throws INVALID_PARAMS unless this daemon has a transport of that name. */
export function checkTrtype(trtype: string): void {
  const name = trtype.toUpperCase()
  if (name === 'TCP') return
  if (name === 'RDMA') {
    throw new RpcError(
      'INVALID_PARAMS',
      `transport type ${trtype} is known, but RDMA needs hardware that this daemon does not drive; ${TCP_HINT}`,
    )
  }
  throw new RpcError('INVALID_PARAMS', `Invalid transport type '${trtype}': ${TCP_HINT}`)
}

/** Checks an address and brings it into its one spelling. Throws INVALID_PARAMS that names what is wrong. */
export function parseTransportAddress(params: AddressParams): TransportAddress {
  const { traddr, trsvcid } = params
  checkTrtype(params.trtype)
  const version = isIP(traddr)
  if (version === 0) {
    throw new RpcError(
      'INVALID_PARAMS',
      `traddr "${traddr}" is neither an IPv4 nor an IPv6 address; names are not looked up, give the address itself`,
    )
  }
  const adrfam = version === 4 ? 'IPv4' : 'IPv6'
  if (params.adrfam !== undefined && params.adrfam.toUpperCase() !== adrfam.toUpperCase()) {
    throw new RpcError(
      'INVALID_PARAMS',
      `adrfam ${params.adrfam} does not fit traddr ${traddr}, which is an ${adrfam} address; leave adrfam out`,
    )
  }
  if (trsvcid === undefined || trsvcid === '') {
    throw new RpcError('INVALID_PARAMS', `Service ID is required: give the port of ${traddr}, such as 4420`)
  }
  if (!/^\d{1,5}$/.test(trsvcid) || Number(trsvcid) > 65535) {
    throw new RpcError('INVALID_PARAMS', `trsvcid "${trsvcid}" is not a port number from 0 to 65535`)
  }
  return { trtype: 'TCP', adrfam, traddr: plainHost(traddr), trsvcid: String(Number(trsvcid)) }
}

/** IPv6 in its shortest lower-case form, so that two spellings of one address are equal. */
function plainHost(host: string): string {
  if (isIP(host) === 4) return host
  const [address, zone] = host.split('%', 2)
  const plain = new URL(`http://[${address}]`).hostname.slice(1, -1)
  return zone === undefined ? plain : `${plain}%${zone}`
}

export const isSameAddress = (a: TransportAddress, b: TransportAddress): boolean =>
  a.traddr === b.traddr && a.trsvcid === b.trsvcid

export const isWildcard = ({ traddr }: TransportAddress): boolean => traddr === '0.0.0.0' || traddr === '::'

export const formatTransportAddress = ({ adrfam, traddr, trsvcid }: TransportAddress): string =>
  adrfam === 'IPv6' ? `[${traddr}]:${trsvcid}` : `${traddr}:${trsvcid}`

export const socketAddressOf = ({ traddr, trsvcid }: TransportAddress): SocketAddress => ({
  host: traddr,
  port: Number(trsvcid),
})

/** The address of a connection's end. */
export const transportAddressOf = ({ host, port }: SocketAddress): TransportAddress => ({
  trtype: 'TCP',
  adrfam: isIP(host) === 6 ? 'IPv6' : 'IPv4',
  traddr: host,
  trsvcid: String(port),
})
