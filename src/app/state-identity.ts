/** What tells a state directory from those of other daemons, also where machine and path have the same names. */
import { randomUUID } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { logger } from '../core/log.ts'

const log = logger('app')

/** Made once, by chance, and kept in the directory; empty where it cannot be kept. */
export async function stateIdentity(directory: string): Promise<string> {
  const path = join(directory, 'identity')
  try {
    await writeFile(path, `${randomUUID()}\n`, { flag: 'wx', mode: 0o600, flush: true })
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code !== 'EEXIST') log.warning(`the state directory gets no identity of its own: ${message}`)
  }
  return (await readFile(path, 'utf8').catch(() => '')).trim()
}
