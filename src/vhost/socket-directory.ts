/** Where the sockets of vhost controllers are made. */
import { constants } from 'node:fs'
import { access, mkdir } from 'node:fs/promises'
import { RpcError } from '../core/errors.ts'

const CODES = ['EACCES', 'ENOTDIR', 'ENOSPC', 'EROFS'] as const

/** Makes the directory if it is not there; who may enter it is as the process makes files. Throws `RpcError`. */
export async function makeSocketDirectory(directory: string): Promise<void> {
  try {
    await mkdir(directory, { recursive: true })
    await access(directory, constants.W_OK | constants.X_OK)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    // Of a file that is there, mkdir says only that something is.
    const why = code === 'EEXIST' ? 'it is a file' : message
    throw new RpcError(
      CODES.find(known => known === code) ?? 'ENOTDIR',
      `no sockets of vhost controllers can be made in ${directory} (-S): ${why}. ` +
        'Give a directory that this user may write to',
      { cause },
    )
  }
}
