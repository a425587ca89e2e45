/** Names of volumes that are files, and the names beside them that are ours. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { RpcError } from '../core/errors.ts'

/** Leaves room for what is put around a name while a volume is made. */
const NAME_BYTES_MAX = 220

/** Throws `RpcError` EINVAL unless a file of a pool may be called so. */
export function checkFileName(name: string, what = 'a volume'): void {
  const problem = problemOf(name)
  if (problem === '') return
  throw new RpcError('EINVAL', `${JSON.stringify(name)} cannot be the name of ${what}: ${problem}`)
}

function problemOf(name: string): string {
  if (name === '') return 'it is empty'
  if (name.startsWith('.')) return 'names that begin with a dot are hidden, and are not volumes'
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for.
  if (/[/\u0000-\u001f\u007f]/.test(name)) return 'a slash or a control character is in it'
  const size = Buffer.byteLength(name)
  return size > NAME_BYTES_MAX ? `it has ${size} bytes, more than ${NAME_BYTES_MAX}` : ''
}

/** Several machines may have one directory, and several daemons of one: each clears up only what it left behind itself. */
let owner = ownerAt('')

/** `place`: what this daemon has again when it comes back, and no other of this machine has: its state directory. */
export function nameOwner(place: string): void {
  owner = ownerAt(place)
}

/** A machine that is a copy of another one has the same machine-id, but other hardware, which root is told of. */
function ownerAt(place: string): string {
  const hardware = textOf('/sys/class/dmi/id/product_uuid')
  return createHash('sha256').update(`${machineId()} ${hardware} ${place}`).digest('hex').slice(0, 8)
}

function machineId(): string {
  const id = textOf('/etc/machine-id')
  // Images of containers and of machines have none yet, which is the same for all that are made of them; and a container
  // without systemd has no such file: its name has to do.
  return /^[\da-f]{32}$/.test(id) ? id : hostname()
}

/** Empty for what is not there, or not for this user. */
function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return ''
  }
}

/** A volume that is being made: hidden until it is whole. */
export const partialName = (name: string): string => `.${name}.${owner}.partial`

/** Beside it, what is needed to go on making it after an interruption. */
export const partialStateName = (name: string): string => `${partialName(name)}.json`

/** Whether this daemon was making the file when it was interrupted. */
export const isPartial = (file: string): boolean => file.startsWith('.') && file.endsWith(`.${owner}.partial`)

export const isPartialState = (file: string): boolean =>
  file.startsWith('.') && file.endsWith(`.${owner}.partial.json`)

/** What this daemon was making under a hidden name; undefined for other names. */
export const wholeName = (name: string): string | undefined =>
  isPartial(name) ? name.slice(1, -`.${owner}.partial`.length) : undefined

/** Beside an image whose tables are being changed: interrupted, they count clusters that nobody has. */
export const checkNoteName = (name: string): string => `.${name}.${owner}.check`

/** The image of such a note of this daemon; undefined for other files. */
export function imageToCheck(file: string): string | undefined {
  const end = `.${owner}.check`
  return file.startsWith('.') && file.endsWith(end) ? file.slice(1, -end.length) : undefined
}

/** Whether any daemon is making it, or was: it is no volume yet, and nobody's business. */
export const isHidden = (name: string): boolean => /^\..+\.[0-9a-f]{8}\.partial$/.test(name)

/** Where the snapshots of raw volumes are, below the directory of the pool: one directory a volume. */
export const SNAPSHOT_DIRECTORY = '.snapshots'
