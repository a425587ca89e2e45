/** Library calls that may wait for the network: how a caller waits for them, and where they put their results. */
import { promisify } from 'node:util'
import koffi, { type LibraryHandle } from 'koffi'
import { bytesAt, mapAnonymous, viewAt } from './memory.ts'

/** How a caller of several arguments waits for a library call. */
export type Blocking = (...args: readonly unknown[]) => Promise<number>

/** As libuv reads it. The launcher sets it for the daemon. */
const THREADS = Number(process.env['UV_THREADPOOL_SIZE'] ?? 4) || 1
/** All but one, so that files and names are still served while a peer does not answer. */
const BLOCKING_MAX = Math.max(1, THREADS - 1)
let blockingCount = 0
const blockingQueue: (() => void)[] = []

/** A call that may wait, on one of Node's threads; in turn, while as many as may be wait. */
export function blocking(call: ReturnType<LibraryHandle['func']>): Blocking {
  const start = promisify(call.async) as Blocking
  return async (...args) => {
    if (blockingCount === BLOCKING_MAX) await new Promise<void>(resolve => blockingQueue.push(resolve))
    else blockingCount++
    try {
      return await start(...args)
    } finally {
      const next = blockingQueue.shift()
      if (next === undefined) blockingCount--
      else next()
    }
  }
}

let urgentCount = 0
let lastUrgent: Promise<unknown> = Promise.resolve()

/**
 * A call that must not wait for those: it has the thread that they leave, one such call after the other. For what others
 * wait for, such as shutting a client out that holds them up.
 */
export function urgent(call: ReturnType<LibraryHandle['func']>): Blocking {
  const start = promisify(call.async) as Blocking
  return async (...args) => {
    urgentCount++
    const turn = lastUrgent.then(() => start(...args))
    lastUrgent = turn.catch(() => {})
    try {
      return await turn
    } finally {
      urgentCount--
    }
  }
}

/** A thread waits in such a call. */
export const isWaiting = (): boolean => blockingCount + urgentCount > 0

export const PAGE_SIZE = 16384

/** Out parameters: a page each, as calls on other threads may overlap. */
const pages: number[] = []

/** Lends `work` a page of `PAGE_SIZE` bytes, of any content, until it is done. */
export async function withPage<T>(work: (page: number) => Promise<T>): Promise<T> {
  const page = pages.pop() ?? mapAnonymous(PAGE_SIZE)
  try {
    return await work(page)
  } finally {
    pages.push(page)
  }
}

export function u64At(address: number): number {
  const view = viewAt(address, 8)
  return view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32
}

export const i32At = (address: number): number => viewAt(address, 4).getInt32(0, true)

/** Text that ends with a zero, within `size` bytes. */
export const textAt = (address: number, size: number): string =>
  Buffer.from(bytesAt(address, size)).toString('utf8').replace(/\0.*$/s, '')

const strlen: (address: number) => number = koffi.load('libc.so.6').func('size_t strlen(uintptr_t)')

/** Text that ends with a zero somewhere. */
export const stringAt = (address: number): string =>
  address === 0 ? '' : Buffer.from(bytesAt(address, strlen(address))).toString('utf8')
