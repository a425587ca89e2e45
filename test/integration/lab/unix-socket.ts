/** Sockets of programs that were just started. */
import { readFileSync } from 'node:fs'

/** `__SO_ACCEPTCON`, as /proc/net/unix has it: somebody listens. */
const LISTENS = '00010000'

/**
 * Whether connections to a Unix socket succeed: its file is there a moment earlier. Nobody connects to find out, which a server
 * of one client would take for that.
 */
export function isListening(path: string): boolean {
  return readFileSync('/proc/net/unix', 'utf8')
    .split('\n')
    .some(line => line.endsWith(` ${path}`) && line.split(' ')[3] === LISTENS)
}
