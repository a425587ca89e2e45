/** What the documents of both iSCSI types say: the target, where it is, and who asks. */
import { RpcError } from '../core/errors.ts'
import type { PoolDocument } from '../libvirt/pool-xml.ts'
import type { Secrets } from './secrets.ts'

export interface IscsiTarget {
  /** `HOST:PORT`, as iscsiadm has it. */
  readonly portal: string
  readonly name: string
  /** Undefined: the machine's own. */
  readonly initiator: string | undefined
}

export interface IscsiCredentials {
  readonly user: string
  readonly password: string
}

const PORT = 3260

/** `iqn.`, `eui.` or `naa.` and what follows (RFC 7143, 4.2.7): nothing that is an option or a path. */
const ISCSI_NAME = /^(?:iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,220}$/

/** Throws `RpcError` EINVAL for what is no name of a target, an initiator or a host. */
export function targetOf(document: PoolDocument): IscsiTarget {
  const { name, source } = document
  const [device] = source.devices ?? []
  if (device === undefined) {
    throw new RpcError('EINVAL', `pool ${name} has no <device path='iqn…'/> in its <source>: name the target`)
  }
  const { initiatorIqn } = source
  return {
    portal: portalOf(document),
    name: checkName(name, 'a target', device.path),
    initiator: initiatorIqn === undefined ? undefined : checkName(name, 'an initiator', initiatorIqn),
  }
}

function portalOf({ name, source }: PoolDocument): string {
  const host = source.hosts![0]!
  if (!/^[A-Za-z0-9_[:][A-Za-z0-9_.:%\][-]*$/.test(host.name)) {
    throw new RpcError('EINVAL', `pool ${name}: ${JSON.stringify(host.name)} is no name or address of a host`)
  }
  const address = host.name.includes(':') && !host.name.startsWith('[') ? `[${host.name}]` : host.name
  return `${address}:${host.port ?? PORT}`
}

function checkName(pool: string, what: string, name: string): string {
  if (ISCSI_NAME.test(name)) return name
  throw new RpcError(
    'EINVAL',
    `pool ${pool}: ${JSON.stringify(name)} cannot be the name of ${what}: it begins with iqn., eui. or naa.`,
  )
}

/** Throws `RpcError` EINVAL unless the document has nobody log in, or somebody by CHAP. */
export function refuseOtherAuth({ name, source }: PoolDocument): void {
  const { auth } = source
  if (auth === undefined || auth.type === 'chap') return
  throw new RpcError('EINVAL', `pool ${name} has <auth type='${auth.type}'>: iSCSI knows type='chap' only`)
}

/** As whom to log in; undefined for nobody. Throws `RpcError` when the secret is not there. */
export async function credentialsOf(
  document: PoolDocument,
  secrets: Secrets,
): Promise<IscsiCredentials | undefined> {
  refuseOtherAuth(document)
  const { auth } = document.source
  if (auth === undefined) return undefined
  const { bytes } = await secrets.valueFor(document.name, auth)
  return { user: auth.username, password: bytes.toString() }
}
