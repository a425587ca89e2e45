/** Where an iSCSI disk is, and as whom we log in: the URLs of libiscsi, which SPDK, QEMU and libvirt take too. */
import { RpcError } from '../../../core/errors.ts'
import { withoutPassword } from '../../../rpc/without-secrets.ts'
import { HeaderDigest } from '../../../sys/libiscsi.ts'

const PORT_DEFAULT = 3260
/** RFC 7143, section 4.2.7.1, in bytes. */
const NAME_MAX = 223
/** What one of libiscsi's strings holds, in bytes. */
const STRING_MAX = 255
/** SAM-5, section 4.7.7.1: what the flat address of a logical unit holds. */
const LUN_MAX = 16383
const FORM = 'iscsi://[USER[%PASSWORD]@]HOST[:PORT]/TARGET/LUN'

export interface Credentials {
  readonly user: string
  readonly password: string
}

export interface IscsiAddress {
  /** A name or a numeric address, IPv6 without brackets. */
  readonly host: string
  readonly port: number
  readonly target: string
  readonly lun: number
  /** By which we prove who we are; absent when the target lets anybody in. */
  readonly credentials?: Credentials
  /** By which the target proves who it is. */
  readonly targetCredentials?: Credentials
  /** One of `HeaderDigest`. */
  readonly headerDigest: number
}

/** Throws `RpcError` EINVAL, whose message has no password. */
export function parseAddress(url: string): IscsiAddress {
  const parts =
    /^iscsi:\/\/(?:([^@/?]*)@)?(\[[^\]]*\]|[^:/?@]*)(?::(\d+))?\/([^/?]+)\/(\d+)(?:\?(.*))?$/s.exec(url)
  const [, login, host = '', port, target = '', lun = '', options = ''] = parts ?? []
  if (parts === null || host === '') throw refusal(url, `no URL of an iSCSI disk: ${FORM}`)
  const portNumber = port === undefined ? PORT_DEFAULT : Number(port)
  if (portNumber < 1 || portNumber > 65535) throw refusal(url, `the port ${port} is not one of 1 to 65535`)
  if (Number(lun) > LUN_MAX) throw refusal(url, `the LUN ${lun} is more than ${LUN_MAX}`)
  checkIscsiName('the target of the URL', target)
  return {
    host: host.replace(/^\[|\]$/g, ''),
    port: portNumber,
    target,
    lun: Number(lun),
    ...(login !== undefined && { credentials: credentialsOf(url, login) }),
    ...parseOptions(url, options),
  }
}

/** Names of initiators and targets. Throws `RpcError` EINVAL. */
export function checkIscsiName(what: string, name: string): void {
  if (/^(?:iqn\.|eui\.|naa\.)[^\s/]+$/.test(name) && Buffer.byteLength(name) <= NAME_MAX) return
  throw new RpcError(
    'EINVAL',
    `${what}, ${name}, is no iSCSI name: up to ${NAME_MAX} bytes such as iqn.2026-01.com.example:storage`,
  )
}

function credentialsOf(url: string, login: string): Credentials {
  // libiscsi takes both; a name has neither.
  const at = login.search(/[%:]/)
  if (at <= 0 || at === login.length - 1)
    throw refusal(url, 'a user has a name and a password: USER%PASSWORD@')
  return checkLengths(url, { user: login.slice(0, at), password: login.slice(at + 1) })
}

function parseOptions(url: string, text: string): Pick<IscsiAddress, 'targetCredentials' | 'headerDigest'> {
  const options = new Map(text === '' ? [] : text.split('&').map(splitOption))
  const known = ['header_digest', 'target_user', 'target_password']
  const unknown = [...options.keys()].find(key => !known.includes(key))
  if (unknown !== undefined)
    throw refusal(url, `the option ${unknown} is not known: there are ${known.join(', ')}`)
  const digest = options.get('header_digest')
  if (digest !== undefined && digest !== 'crc32c' && digest !== 'none') {
    throw refusal(url, `header_digest=${digest} is neither crc32c nor none`)
  }
  const chosen = digest === 'crc32c' ? HeaderDigest.CRC32C : HeaderDigest.NONE
  const headerDigest = digest === undefined ? HeaderDigest.NONE_OR_CRC32C : chosen
  const user = options.get('target_user')
  const password = options.get('target_password')
  if (user === undefined && password === undefined) return { headerDigest }
  if (!user || !password) throw refusal(url, 'target_user and target_password come together')
  if (!/^iscsi:\/\/[^/?]*@/.test(url)) {
    throw refusal(url, 'a target proves who it is only to a user: USER%PASSWORD@ is missing')
  }
  return { headerDigest, targetCredentials: checkLengths(url, { user, password }) }
}

function splitOption(option: string): [key: string, value: string] {
  const at = option.indexOf('=')
  return at < 0 ? [option, ''] : [option.slice(0, at), option.slice(at + 1)]
}

function checkLengths(url: string, credentials: Credentials): Credentials {
  const longest = Math.max(Buffer.byteLength(credentials.user), Buffer.byteLength(credentials.password))
  if (longest > STRING_MAX) throw refusal(url, `names and passwords have at most ${STRING_MAX} bytes`)
  return credentials
}

const refusal = (url: string, why: string): RpcError =>
  new RpcError('EINVAL', `${withoutPassword(url)}: ${why}`)
