/**
 * A guest's screen over VNC. By itself VNC lets everybody in who reaches its port, and every user of this machine reaches its
 * loopback: so it is a Unix socket of the daemon's user, or a port with a password.
 */
import { randomInt } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { RpcError } from '../../core/errors.ts'
import type { Qmp } from '../qmp.ts'

export type Screen =
  | { readonly type: 'unix' }
  /** `display`: port 5900 + N; the first that is free when undefined. */
  | { readonly type: 'tcp'; readonly address: string; readonly display: number | undefined }

/** Where it is to be seen. */
export interface OpenScreen {
  /** A path, or ADDRESS:PORT. */
  readonly address: string
  /** Told once: QEMU keeps it, and nothing else does. */
  readonly password: string | undefined
}

const LOOPBACK = '127.0.0.1'
const DISPLAYS_MAX = 99
/** Of VNC's only kind of password: DES takes eight characters. */
const PASSWORD_LENGTH = 8
/** None that looks like another. */
const LETTERS = 'abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789'

/** `unix`, `auto`, `N`, `ADDRESS:N` or `ADDRESS:auto`. Throws `RpcError` EINVAL. */
export function parseScreen(text: string): Screen {
  if (text === 'unix') return { type: 'unix' }
  const [, address = LOOPBACK, display] = /^(?:(\[[\da-f:.]+\]|[\w.-]+):)?(auto|\d{1,2})$/i.exec(text) ?? []
  if (display !== undefined) {
    return { type: 'tcp', address, display: display === 'auto' ? undefined : Number(display) }
  }
  throw new RpcError(
    'EINVAL',
    `screen ${text} is none of unix, auto, N, ADDRESS:N and ADDRESS:auto, N being a display from 0 to ${DISPLAYS_MAX}: port ` +
      '5900 + N',
  )
}

/** `socketPath`: in a directory of the daemon's user alone. */
export function screenOption(screen: Screen, socketPath: string): string {
  if (screen.type === 'unix') return `unix:${socketPath.replaceAll(',', ',,')}`
  const { address, display } = screen
  const at = display === undefined ? `0,to=${DISPLAYS_MAX}` : String(display)
  return `${address}:${at},password=on`
}

/** The password that is wished, else one by chance. Throws `RpcError` ENOENT or EINVAL. */
export async function passwordFor(screen: Screen, file: string | undefined): Promise<string | undefined> {
  if (screen.type === 'unix') return undefined
  if (file === undefined) {
    return Array.from({ length: PASSWORD_LENGTH }, () => LETTERS[randomInt(LETTERS.length)]).join('')
  }
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (cause) {
    throw new RpcError('ENOENT', `the password of the screen: ${(cause as Error).message}`, { cause })
  }
  const password = text.replace(/\r?\n$/, '')
  if (password !== '' && Buffer.byteLength(password) <= PASSWORD_LENGTH) return password
  throw new RpcError(
    'EINVAL',
    `${file} has a password of ${Buffer.byteLength(password)} bytes: VNC takes 1 to ${PASSWORD_LENGTH}, and would cut off the rest`,
  )
}

/** Until it has its password QEMU lets nobody in. */
export async function openScreen(
  qmp: Pick<Qmp, 'execute'>,
  password: string | undefined,
): Promise<OpenScreen> {
  if (password !== undefined) await qmp.execute('set_password', { protocol: 'vnc', password })
  const { host, service, family } = await qmp.execute<{ host: string; service: string; family: string }>(
    'query-vnc',
  )
  if (family === 'unix') return { address: service, password }
  return { address: `${family === 'ipv6' ? `[${host}]` : host}:${service}`, password }
}

/** What travels in the clear. */
export const isRemote = (screen: Screen): boolean =>
  screen.type === 'tcp' && !/^(127\.|localhost$|\[::1\]$)/.test(screen.address)
