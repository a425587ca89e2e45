/** Programs of this machine, to be run here or copied into a guest. */
import { execFile } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'

// An ordinary user's path often lacks the administrator's directories, where half of these live.
const DIRECTORIES = [
  ...(process.env['PATH'] ?? '').split(delimiter),
  ...['/usr/sbin', '/usr/bin', '/sbin', '/bin'],
]

/** Where a program is, or undefined when it is not installed. */
export function findProgram(program: string): string | undefined {
  return DIRECTORIES.map(directory => join(directory, program)).find(isExecutable)
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    // Not there, or not for us: either way it cannot be used.
    return false
  }
}

/** A command line whose program the kernel ends with that signal when this process ends, however it does. */
export function withParent(command: readonly string[], signal: 'TERM' | 'KILL'): string[] {
  const setpriv = findProgram('setpriv')
  return setpriv === undefined ? [...command] : [setpriv, '--pdeathsig', signal, '--', ...command]
}

/** The libraries these programs load, by the paths the loader will look for. Static programs have none. */
export async function sharedLibraries(programs: readonly string[]): Promise<string[]> {
  const listings = await Promise.all(
    programs.map(program => promisify(execFile)('ldd', [program]).catch(() => ({ stdout: '' }))),
  )
  const paths = listings.flatMap(({ stdout }) => stdout.match(/\/\S+/g) ?? [])
  return [...new Set(paths)].sort()
}

/** Merged directories: /bin, /lib, /lib64 and /sbin are links into /usr. */
export const merged = (path: string): string => path.replace(/^\/(bin|lib|lib64|sbin)\//, '/usr/$1/')
