/** The `qpair` command as users type it. */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { Daemon } from './daemon.ts'

const QPAIR = fileURLToPath(new URL('../../../bin/qpair.js', import.meta.url))

/** Runs a command for a daemon, and returns what it prints. Rejects with what it complained of. */
export async function qpair(daemon: Daemon, ...words: readonly string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(process.execPath, [QPAIR, '-r', daemon.socket, ...words])
  return stdout.trim()
}
