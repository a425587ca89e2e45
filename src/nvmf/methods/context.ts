/** Parameters and answers that the methods of the target share. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import type { SocketAddress } from '../../reactor/network.ts'
import { type TransportAddress, transportAddressOf } from '../address.ts'
import type { NvmfTarget } from '../target.ts'

export interface NvmfContext {
  readonly nvmf: NvmfTarget
}

/** The name of the one target, which is SPDK's default. */
export const TARGET_NAME = 'nvmf_tgt'

export const tgtName = z
  .string()
  .optional()
  .refine(name => name === undefined || name === TARGET_NAME, {
    error: `Unable to find target: there is one, ${TARGET_NAME}, and the name may be left out`,
  })
  .describe(`The target, of which there is one: ${TARGET_NAME}`)

export const nqn = z.string().describe('The subsystem')
export const discoveryOrNqn = z
  .string()
  .describe('The subsystem; "discovery" is short for the discovery subsystem')
export const host = z.string().describe('NQN of the host')

export const listenAddress = z
  .strictObject({
    trtype: z.string().describe('Transport type: TCP'),
    adrfam: z.string().optional().describe('ipv4 or ipv6; found out from the address when absent'),
    traddr: z.string().describe('An IPv4 or IPv6 address; 0.0.0.0 and :: are every address of the machine'),
    trsvcid: z.string().optional().describe('The port, 4420 by convention; 0 picks a free one'),
  })
  .describe('Where hosts connect to')

/** The letters of SPDK's client for the members of an address. */
export const ADDRESS_FLAGS = {
  trtype: ['t', 'trtype'],
  traddr: ['a', 'traddr'],
  adrfam: ['f', 'adrfam'],
  trsvcid: ['s', 'trsvcid'],
} as const

export const LISTEN_ADDRESS_FLAGS = {
  'listen_address.trtype': ADDRESS_FLAGS.trtype,
  'listen_address.traddr': ADDRESS_FLAGS.traddr,
  'listen_address.adrfam': ADDRESS_FLAGS.adrfam,
  'listen_address.trsvcid': ADDRESS_FLAGS.trsvcid,
} as const

/** An address in an answer. */
export const Address = z.object({
  trtype: z.string(),
  adrfam: z.string(),
  traddr: z.string(),
  trsvcid: z.string(),
})

export const addressOf = (address: TransportAddress): z.input<typeof Address> => ({ ...address })
export const peerAddressOf = (address: SocketAddress): z.input<typeof Address> => ({
  ...transportAddressOf(address),
})

export const UNKNOWN_NQN = 'no subsystem has that NQN, or something given cannot be'

/** Refuses what would silently leave a connection unprotected. */
export function refuseSecureChannel(isWanted: boolean | undefined): void {
  if (isWanted !== true) return
  throw new RpcError(
    'INVALID_PARAMS',
    'secure_channel asks for TLS, which this version does not have: leave it out and protect the network itself',
  )
}
