/** Where the sockets of vhost controllers are made. */
import { constants } from 'node:fs'
import { access, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { type RpcCode, RpcError } from '../core/errors.ts'

/** `sun_path` of a Unix socket has 108 bytes, the last of them a zero. */
const PATH_BYTES_MAX = 107

/** Makes the directory if it is not there; who may enter it is as the process makes files. Throws `RpcError`. */
export async function makeSocketDirectory(directory: string): Promise<void> {
  try {
    await mkdir(directory, { recursive: true })
    await access(directory, constants.W_OK | constants.X_OK)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    // Of a file that is there, mkdir says only that something is.
    const isFile = code === 'EEXIST'
    const why = isFile ? 'it is a file' : message
    throw new RpcError(
      isFile ? 'ENOTDIR' : (code as RpcCode),
      `no sockets of vhost controllers can be made in ${directory} (-S): ${why}. ` +
        'Give a directory that this user may write to',
      { cause },
    )
  }
}

/** The socket of a controller. Throws `RpcError` EINVAL for a name that cannot be one of a socket there. */
export function socketPathOf(directory: string, name: string): string {
  if (name === '' || name === '.' || name === '..' || /[/\0]/.test(name)) {
    throw new RpcError(
      'EINVAL',
      `a controller cannot be named ${escaped(name)}: its socket is a file of that name in ${directory} (-S)`,
    )
  }
  if (/\p{Cc}/u.test(name)) {
    throw new RpcError(
      'EINVAL',
      `a controller cannot be named ${escaped(name)}: it has control characters, which lines of a log and ` +
        'libvirt XML cannot hold: choose a name without them',
    )
  }
  const path = join(directory, name)
  const size = Buffer.byteLength(path)
  if (size > PATH_BYTES_MAX) {
    throw new RpcError(
      'EINVAL',
      `the socket ${path} has a path of ${size} bytes, and a Unix socket's has at most ${PATH_BYTES_MAX}: ` +
        'choose a shorter name, or a shorter directory (-S)',
    )
  }
  return path
}

/** JSON leaves DEL and C1 as they are. */
const escaped = (name: string): string =>
  JSON.stringify(name).replace(
    /\p{Cc}/gu,
    control => `\\u${control.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
