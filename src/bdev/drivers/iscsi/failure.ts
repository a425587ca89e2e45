/** Why there is no session with a target, from what libiscsi says of it, for those who are to put it right. */
import { errnoName, type RpcCode } from '../../../core/errors.ts'
import type { IscsiAddress } from './address.ts'

/** As an `RpcError` has it. */
export interface Failure {
  readonly code: RpcCode
  readonly message: string
}

/** Status class and detail of a login response (RFC 7143, section 11.13.5) and what there is to say of it. */
const REFUSALS: ReadonlyMap<number, readonly [RpcCode, (address: IscsiAddress) => string]> = new Map([
  [
    0x0201,
    [
      'EACCES',
      ({ credentials }: IscsiAddress): string =>
        credentials === undefined
          ? 'asks who we are: put USER%PASSWORD@ before the host in the URL'
          : `does not let ${credentials.user} in: check user and password`,
    ],
  ],
  [0x0202, ['EACCES', () => 'does not let this initiator in: allow its initiator_iqn there']],
  [
    0x0203,
    [
      'ENOENT',
      ({ target }: IscsiAddress): string => `has no target ${target}: iscsi-ls lists those that are there`,
    ],
  ],
  [0x0204, ['ENOENT', ({ target }: IscsiAddress): string => `has the target ${target} no more`]],
  [0x0206, ['EBUSY', () => 'takes no more connections in this session']],
  [0x0301, ['EAGAIN', () => 'is not in service at the moment']],
  [0x0302, ['EAGAIN', () => 'has no room for another session']],
])

/** `told` is libiscsi's message of the last thing that went wrong. */
export function explainFailure(told: string, address: IscsiAddress): Failure {
  const where = portalOf(address)
  const refusal = /Status: .*\((\d+)\)/s.exec(told)
  if (refusal !== null) {
    const known = REFUSALS.get(Number(refusal[1]))
    if (known !== undefined) return { code: known[0], message: `${where} ${known[1](address)}` }
    return { code: 'EIO', message: `${where} refuses the login: ${told.replace(/^.*Status: /s, '')}` }
  }
  const errno = /^connect.*\((\d+)\)$/is.exec(told)
  if (errno !== null) {
    const name = errnoName(Number(errno[1]))
    const remedy = name === 'ECONNREFUSED' ? ': start the target, or check host and port' : ''
    return { code: name as RpcCode, message: `nobody answers at ${where} (${name})${remedy}` }
  }
  const error = /(?:socket error .*\(|socket :|errno:)(\d+)/s.exec(told)
  if (error !== null) {
    return { code: 'EIO', message: `the connection to ${where} is lost (${errnoName(Number(error[1]))})` }
  }
  // libiscsi finds the end of a connection and says of it only that it will not make another one.
  const isEnded = told === '' || told.includes('Can not reconnect right now')
  const what = isEnded ? 'the target has ended it' : told
  return { code: 'EIO', message: `the connection to ${where} is lost: ${what}` }
}

export const timedOut = (address: IscsiAddress, seconds: number): Failure => ({
  code: 'ETIMEDOUT',
  message: `${portalOf(address)} does not answer within ${seconds} s: check host and port, and that the target runs`,
})

export const sentAround = (address: IscsiAddress, count: number): Failure => ({
  code: 'EIO',
  message: `${portalOf(address)} sends us to another portal, and that to the next, ${count} times: look at its redirections`,
})

/** For messages and for libiscsi, which wants a numeric `host` with IPv6 in brackets. */
export function portalOf({ host, port }: Pick<IscsiAddress, 'host' | 'port'>): string {
  return `${host.includes(':') && !host.startsWith('[') ? `[${host}]` : host}:${port}`
}
