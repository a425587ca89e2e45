/** Descriptors of this process, for tests of what must leave none behind. */
import { readdirSync, readFileSync } from 'node:fs'
import { fcntl, read, syscall, write } from '../../src/sys/libc.ts'
import { mapAnonymous, unmap, viewAt } from '../../src/sys/memory.ts'

const AF_UNIX = 1
const F_SETFL = 4
const O_RDWR = 2
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

/** What an eventfd has in its counter that has room for nothing more. */
export const FULL_COUNTER_LOW = 0xffff_fffe

/** What a stranger may do who has an eventfd as well: whoever writes to it waits until somebody reads it. */
export function jamEventfd(fd: number): void {
  const cell = mapAnonymous(4096)
  read(fd, cell, 8)
  const view = viewAt(cell, 8)
  view.setUint32(0, FULL_COUNTER_LOW, true)
  view.setUint32(4, 0xffff_ffff, true)
  const result = write(fd, cell, 8)
  unmap(cell, 4096)
  if (result !== 8) throw new Error(`the eventfd was not filled: ${result}`)
  fcntl(fd, F_SETFL, O_RDWR)
}
