/**
 * Objects of a Ceph pool, and what fences a client: the part of librados that agreement between gateways is built on.
 * Handles come from `librbd()`: cluster and pool are addresses. Results are 0 or more, or -errno.
 *
 * Operations on objects neither block nor call back: librados works on its own threads, and whether an operation has
 * ended is looked at every few milliseconds. So one that never ends costs no thread, and can be given up.
 */
import { promisify } from 'node:util'
import koffi, { type LibraryHandle } from 'koffi'
import { errnoNumber } from '../core/errors.ts'
import { bytesAt, mapAnonymous, unmap, viewAt } from './memory.ts'

const PAGE = 4096
const POLL_MS = 1
const POLL_MS_MAX = 8
const READ_SIZE = 1 << 16

/** Of an object that another client has written since the version that was expected. */
export const CONFLICT = -errnoNumber('EBUSY')

export interface ObjectData {
  readonly bytes: Uint8Array
  /** Grows with every write of the object. */
  readonly version: number
}

export interface Librados {
  /** What names this connection in Ceph's list of clients that are shut out. */
  clientAddresses(cluster: number): string
  /** Shuts a client out: when this resolves with 0, a newer map of the cluster says so. */
  blocklist(cluster: number, address: string, seconds: number): Promise<number>
  /** Resolves when this connection has the newest map, and so knows everybody who was shut out before the call. */
  awaitNewestMap(cluster: number): Promise<number>
  /** Rejects never: -errno, ETIMEDOUT when it was given up. */
  readObject(pool: number, name: string, timeoutMs: number): Promise<ObjectData | number>
  /**
   * Replaces an object that still has the version `expected`, or makes one that is not there yet (undefined). `CONFLICT`
   * when another was first. After ETIMEDOUT it may have been written all the same.
   */
  writeObject(
    pool: number,
    name: string,
    bytes: Uint8Array,
    expected: number | undefined,
    timeoutMs: number,
  ): Promise<number>
}

let loaded: Librados | undefined

/** Only for those who have a handle, and so the library. */
export function librados(): Librados {
  loaded ??= load(koffi.load('librados.so.2'))
  return loaded
}

function load(rados: LibraryHandle): Librados {
  return { ...clientCalls(rados), ...objectCalls(rados) }
}

function clientCalls(rados: LibraryHandle) {
  const page = mapAnonymous(PAGE)
  const pointer = viewAt(page, 8)
  const getAddresses = rados.func('int rados_getaddrs(uintptr_t, uintptr_t)')
  const release = rados.func('void rados_buffer_free(uintptr_t)')
  // Fills the rest with zeroes.
  const copyText = koffi.load('libc.so.6').func('uintptr_t strncpy(uintptr_t, uintptr_t, size_t)')
  // These have no asynchronous form: each takes one of Node's threads while it lasts.
  const blocklist = promisify(blocklistCall(rados).async) as (...args: unknown[]) => Promise<number>
  const wait = promisify(rados.func('int rados_wait_for_latest_osdmap(uintptr_t)').async) as (
    cluster: number,
  ) => Promise<number>
  return {
    clientAddresses(cluster: number): string {
      if (getAddresses(cluster, page) < 0) return ''
      const at = pointer.getUint32(0, true) + pointer.getUint32(4, true) * 2 ** 32
      copyText(page, at, PAGE - 1)
      release(at)
      return Buffer.from(bytesAt(page, PAGE)).toString('latin1').replace(/\0.*$/s, '')
    },
    blocklist: (cluster: number, address: string, seconds: number) => blocklist(cluster, address, seconds),
    awaitNewestMap: (cluster: number) => wait(cluster),
  }
}

/** Ceph before version 16 has it under an older name. */
function blocklistCall(rados: LibraryHandle) {
  try {
    return rados.func('int rados_blocklist_add(uintptr_t, str, uint32_t)')
  } catch {
    // Not there under the new name.
    return rados.func('int rados_blacklist_add(uintptr_t, str, uint32_t)')
  }
}

function objectCalls(rados: LibraryHandle) {
  const createCompletion = rados.func(
    'int rados_aio_create_completion(uintptr_t, uintptr_t, uintptr_t, uintptr_t)',
  )
  const isComplete = rados.func('int rados_aio_is_complete(uintptr_t)')
  const resultOf = rados.func('int rados_aio_get_return_value(uintptr_t)')
  const versionOf = rados.func('uint64_t rados_aio_get_version(uintptr_t)')
  const release = rados.func('void rados_aio_release(uintptr_t)')
  const cancel = rados.func('int rados_aio_cancel(uintptr_t, uintptr_t)')
  const read = rados.func('int rados_aio_read(uintptr_t, str, uintptr_t, uintptr_t, size_t, uint64_t)')
  const createWrite = rados.func('uintptr_t rados_create_write_op()')
  const releaseWrite = rados.func('void rados_release_write_op(uintptr_t)')
  const assertVersion = rados.func('void rados_write_op_assert_version(uintptr_t, uint64_t)')
  const createObject = rados.func('void rados_write_op_create(uintptr_t, int, uintptr_t)')
  const writeFull = rados.func('void rados_write_op_write_full(uintptr_t, uintptr_t, size_t)')
  const operate = rados.func(
    'int rados_aio_write_op_operate(uintptr_t, uintptr_t, uintptr_t, str, uintptr_t, int)',
  )
  const page = mapAnonymous(PAGE)
  const pointer = viewAt(page, 8)

  /** Starts an operation, waits until it has ended or was given up, and returns its result and its object's version. */
  async function perform(
    pool: number,
    timeoutMs: number,
    start: (completion: number) => number,
  ): Promise<{ result: number; version: number }> {
    createCompletion(0, 0, 0, page)
    const completion = pointer.getUint32(0, true) + pointer.getUint32(4, true) * 2 ** 32
    const started = start(completion)
    try {
      if (started < 0) return { result: started, version: 0 }
      const deadline = performance.now() + timeoutMs
      let isGivenUp = false
      for (
        let pauseMs = POLL_MS;
        isComplete(completion) === 0;
        pauseMs = Math.min(POLL_MS_MAX, pauseMs + 1)
      ) {
        await new Promise(resolve => setTimeout(resolve, pauseMs))
        if (isGivenUp || performance.now() < deadline) continue
        // It ends at once then; until it has, librados may still touch its buffers.
        isGivenUp = true
        cancel(pool, completion)
      }
      const result = resultOf(completion)
      if (isGivenUp && result < 0) return { result: -errnoNumber('ETIMEDOUT'), version: 0 }
      return { result, version: Number(versionOf(completion)) }
    } finally {
      release(completion)
    }
  }

  async function readInto(pool: number, name: string, timeoutMs: number, size: number) {
    const address = mapAnonymous(size)
    try {
      const { result, version } = await perform(pool, timeoutMs, completion =>
        read(pool, name, completion, address, size, 0),
      )
      if (result < 0) return result
      return { bytes: Uint8Array.from(bytesAt(address, result)), version }
    } finally {
      unmap(address, size)
    }
  }

  return {
    async readObject(pool: number, name: string, timeoutMs: number): Promise<ObjectData | number> {
      for (let size = READ_SIZE; ; size *= 8) {
        const data = await readInto(pool, name, timeoutMs, size)
        if (typeof data === 'number' || data.bytes.length < size) return data
      }
    },
    async writeObject(
      pool: number,
      name: string,
      bytes: Uint8Array,
      expected: number | undefined,
      timeoutMs: number,
    ): Promise<number> {
      const size = Math.ceil(Math.max(1, bytes.length) / PAGE) * PAGE
      const address = mapAnonymous(size)
      bytesAt(address, bytes.length).set(bytes)
      const operation = createWrite()
      if (expected === undefined) createObject(operation, 1, 0)
      else assertVersion(operation, expected)
      writeFull(operation, address, bytes.length)
      try {
        const { result } = await perform(pool, timeoutMs, completion =>
          operate(operation, pool, completion, name, 0, 0),
        )
        return isConflict(result) ? CONFLICT : result
      } finally {
        releaseWrite(operation)
        unmap(address, size)
      }
    },
  }
}

/** Another version, or made or removed meanwhile. */
const CONFLICTS = (['ERANGE', 'EOVERFLOW', 'EEXIST', 'ENOENT'] as const).map(name => -errnoNumber(name))
const isConflict = (result: number): boolean => CONFLICTS.includes(result)
