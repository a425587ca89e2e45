/**
 * The saved configuration on disk, in the form of SPDK's configuration file: `{"subsystems": [{"subsystem", "config"}]}`.
 * A save is complete or did not happen, whenever the machine stops.
 */
import { mkdir, open, readFile, rename } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { RpcError } from '../core/errors.ts'
import type { MethodCall } from '../rpc/config.ts'

export interface SubsystemConfig {
  readonly subsystem: string
  readonly config: readonly MethodCall[]
}

export interface SavedConfig {
  readonly subsystems: readonly SubsystemConfig[]
}

export const STATE_FILE = 'config.json'

/** The saved configuration in `path`, or undefined when there is no such file. Throws `RpcError` for what is none. */
export async function readConfig(path: string): Promise<SavedConfig | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new RpcError('EIO', `cannot read the configuration ${path}: ${(cause as Error).message}`, { cause })
  }
  return parseConfig(text, path)
}

/** Checks the shape of a configuration file. An entry may itself be a list of calls (SPDK's batches). */
export function parseConfig(text: string, path: string): SavedConfig {
  const wrong = (what: string, cause?: unknown): RpcError =>
    new RpcError('EINVAL', `${path} is no configuration file: ${what}. Repair it, or move it away`, { cause })
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (cause) {
    throw wrong((cause as Error).message, cause)
  }
  const subsystems = (parsed as { subsystems?: unknown } | null)?.subsystems
  if (!Array.isArray(subsystems)) throw wrong('it has no list "subsystems"')
  return {
    subsystems: subsystems.map((entry: { subsystem?: unknown; config?: unknown } | null) => {
      const { subsystem, config } = entry ?? {}
      if (typeof subsystem !== 'string') throw wrong('an entry of "subsystems" has no name "subsystem"')
      // SPDK writes null for a subsystem that has nothing to configure.
      const calls: unknown[] = config === null || config === undefined ? [] : [config].flat(3)
      for (const call of calls) {
        if (typeof (call as { method?: unknown } | null)?.method !== 'string') {
          throw wrong(`an entry of "${subsystem}" has no "method": ${JSON.stringify(call)}`)
        }
      }
      return { subsystem, config: calls as MethodCall[] }
    }),
  }
}

/** Replaces the file in one step, and returns once it is on stable storage. Throws `RpcError` when that fails. */
export async function writeConfig(path: string, config: SavedConfig): Promise<void> {
  try {
    await replace(path, `${JSON.stringify(config, null, 2)}\n`)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    throw new RpcError(
      code === 'ENOSPC' || code === 'EROFS' || code === 'EACCES' ? code : 'EIO',
      `the change is in force but not saved, so a restart would lose it: cannot write ${path}: ${message}. ` +
        'See to its file system; the next change that is saved saves this one too',
      { cause },
    )
  }
}

async function replace(path: string, text: string): Promise<void> {
  const directory = dirname(path)
  const draft = join(directory, `.${STATE_FILE}.new`)
  const file = await open(draft, 'w', 0o600)
  try {
    await file.writeFile(text)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(draft, path)
  const folder = await open(directory, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

/** Makes the state directory; its files may hold secrets, so it is the owner's alone. */
export async function makeStateDirectory(directory: string): Promise<void> {
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 })
  } catch (cause) {
    const { message } = cause as Error
    throw new RpcError('EACCES', `cannot make the state directory ${directory} (--state): ${message}`, {
      cause,
    })
  }
}
