/** Who may connect to a Unix socket: what the operator writes, as the system calls want it. */
import { chmodSync, chownSync } from 'node:fs'
import { RpcError } from '../core/errors.ts'
import { ProgramError, runProgram } from '../core/program.ts'

/** What is absent is as the process makes files. */
export interface SocketAccess {
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
}

/** As SPDK's users know them from `chmod` and `chown`: `0660` and `libvirt-qemu:kvm`. */
export interface AccessOptions {
  readonly mode: string | undefined
  /** `USER`, `USER:GROUP` or `:GROUP`, by name or by number. */
  readonly owner: string | undefined
}

/** Looks a name up in a database of getent(1) and resolves with the entry's fields, or with null. */
export type Lookup = (database: 'passwd' | 'group', name: string) => Promise<readonly string[] | null>

const ID_MAX = 0xffff_fffe

/** Throws `RpcError` EINVAL that names what cannot be. */
export async function resolveAccess(options: AccessOptions, lookup: Lookup = getent): Promise<SocketAccess> {
  const { mode, owner } = options
  return {
    ...(mode === undefined ? {} : { mode: parseMode(mode) }),
    ...(owner === undefined ? {} : await resolveOwner(owner, lookup)),
  }
}

async function resolveOwner(owner: string, lookup: Lookup): Promise<SocketAccess> {
  const [user, group = '', ...more] = owner.split(':') as [string, ...string[]]
  if ((user === '' && group === '') || more.length > 0) {
    const why = more.length > 0 ? 'names more than a user and a group' : 'names nobody'
    throw new RpcError(
      'EINVAL',
      `the socket's owner ${JSON.stringify(owner)} ${why}: give user, user:group or :group`,
    )
  }
  return {
    ...(user === '' ? {} : { uid: await idOf('passwd', user, lookup) }),
    ...(group === '' ? {} : { gid: await idOf('group', group, lookup) }),
  }
}

function parseMode(text: string): number {
  if (/^0?[0-7]{3}$/.test(text)) return Number.parseInt(text, 8)
  throw new RpcError(
    'EINVAL',
    `the socket's mode ${JSON.stringify(text)} is no octal mode of three digits: give one such as 660`,
  )
}

async function idOf(database: 'passwd' | 'group', name: string, lookup: Lookup): Promise<number> {
  const what = database === 'passwd' ? 'user' : 'group'
  const id = /^\d+$/.test(name) ? Number(name) : Number((await lookup(database, name))?.[2] ?? Number.NaN)
  if (Number.isInteger(id) && id <= ID_MAX) return id
  throw new RpcError(
    'EINVAL',
    `there is no ${what} ${JSON.stringify(name)} on this machine: "getent ${database}" lists those there are, and a number is taken as it is`,
  )
}

/**
 * Gives a socket that listens already its owner and then its mode, so that nobody may connect in between who may not in
 * the end. Throws `RpcError` EPERM when this process may not give files away.
 */
export function applyAccess(path: string, { mode, uid, gid }: SocketAccess): void {
  try {
    // -1 leaves it as it is.
    if (uid !== undefined || gid !== undefined) chownSync(path, uid ?? -1, gid ?? -1)
    if (mode !== undefined) chmodSync(path, mode)
  } catch (cause) {
    const owner = `${uid ?? ''}:${gid ?? ''}`
    throw new RpcError(
      'EPERM',
      `the socket ${path} cannot be given to ${owner}: only root gives files to another user. Leave the owner out, or ` +
        'choose a group that this process is in',
      { cause },
    )
  }
}

/** Node has no call for the system's databases, which may be in LDAP or elsewhere. */
const getent: Lookup = async (database, name) => {
  try {
    return (await runProgram('getent', [database, '--', name])).trimEnd().split(':')
  } catch (error) {
    // It ends with a code of its own when there is no such name, and a machine without it knows none.
    if (error instanceof ProgramError) return null
    throw error
  }
}
