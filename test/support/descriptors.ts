/** Descriptors of this process, for tests of what must leave none behind. */
import { readdirSync, readFileSync } from 'node:fs'
import { syscall } from '../../src/sys/libc.ts'
import { mapAnonymous, unmap, viewAt } from '../../src/sys/memory.ts'

const AF_UNIX = 1
const SOCK_STREAM_NONBLOCK_CLOEXEC = 1 | 0o4000 | 0o2000000
const SYS_SOCKETPAIR = process.arch === 'arm64' ? 199 : 53

/** How many descriptors are open; reading the directory itself takes one, always. */
export const openDescriptors = (): number => readdirSync('/proc/self/fd').length

/** How many mappings this process has of files whose name in /proc/self/maps contains `name`. */
export const mappingsOf = (name: string): number =>
  readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter(line => line.includes(name)).length

/** Two connected Unix stream sockets. The caller closes both. */
export function socketPair(): [number, number] {
  const scratch = mapAnonymous(4096)
  const result = syscall(SYS_SOCKETPAIR, AF_UNIX, SOCK_STREAM_NONBLOCK_CLOEXEC, 0, scratch, 0, 0)
  if (result < 0) throw new Error(`socketpair: ${result}`)
  const view = viewAt(scratch, 8)
  const pair: [number, number] = [view.getInt32(0, true), view.getInt32(4, true)]
  unmap(scratch, 4096)
  return pair
}
