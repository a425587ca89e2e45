/**
 * Objects of a Ceph pool, and what shuts a client out: the part of librados that agreement between gateways is built on.
 * Handles come from `librbd()`: cluster and pool are addresses. Results are 0 or more, or -errno.
 */
import koffi, { type LibraryHandle } from 'koffi'
import { errnoNumber } from '../core/errors.ts'
import { PAGE_SIZE, stringAt, u64At, urgent } from './blocking.ts'
import { type RadosWatches, watchCalls } from './librados-watch.ts'
import { bytesAt, mapAnonymous, unmap } from './memory.ts'
import { RadosOperations } from './rados-operations.ts'

const READ_SIZE = 1 << 16
const CREATE_EXCLUSIVE = 1

/** Of an object that another client has written since the version that was expected. */
export const CONFLICT = -errnoNumber('EBUSY')
/** How Ceph says so: a newer or older version, made or removed meanwhile. */
const CONFLICTS = (['ERANGE', 'EOVERFLOW', 'EEXIST', 'ENOENT'] as const).map(name => -errnoNumber(name))

export interface ObjectData {
  readonly bytes: Uint8Array
  /** Grows with every write of the object. */
  readonly version: number
}

/** An object's place. */
export interface ObjectName {
  readonly pool: number
  readonly name: string
}

export interface Librados extends RadosWatches {
  /** What names this connection in Ceph's list of clients that are shut out; empty when it is not connected. */
  clientAddresses(cluster: number): string
  /** Shuts a client out: when this resolves with 0, a newer map of the cluster says so. */
  blocklist(cluster: number, address: string, seconds: number): Promise<number>
  /** Resolves when this connection has the newest map, and so knows everybody who was shut out before the call. */
  awaitNewestMap(cluster: number): Promise<number>
  /** -errno when it cannot be read; -ETIMEDOUT when it was given up. */
  readObject(object: ObjectName, timeoutMs: number): Promise<ObjectData | number>
  /**
   * Replaces an object that still has the version `expected`, or makes one that is not there yet (undefined). `CONFLICT`
   * when another was first. After -ETIMEDOUT it may have been written all the same.
   */
  writeObject(
    object: ObjectName,
    bytes: Uint8Array,
    expected: number | undefined,
    timeoutMs: number,
  ): Promise<number>
  /** Gives up what is under way in the pool, and closes its handle. The cluster's may be closed afterwards. */
  closePool(pool: number): Promise<void>
}

let loaded: Librados | undefined

/** Only for those who have a handle, and so the library. */
export function librados(): Librados {
  loaded ??= load(koffi.load('librados.so.2'))
  return loaded
}

function load(rados: LibraryHandle): Librados {
  const operations = new RadosOperations(rados)
  return {
    ...clientCalls(rados),
    ...readCalls(rados, operations),
    ...writeCalls(rados, operations),
    ...watchCalls(rados, operations),
    closePool: (pool: number) => operations.closePool(pool),
  }
}

function clientCalls(rados: LibraryHandle) {
  const page = mapAnonymous(PAGE_SIZE)
  const getAddresses = rados.func('int rados_getaddrs(uintptr_t, uintptr_t)')
  const release = rados.func('void rados_buffer_free(uintptr_t)')
  // These have no form that does not block.
  const blocklist = urgent(blocklistCall(rados))
  const wait = urgent(rados.func('int rados_wait_for_latest_osdmap(uintptr_t)'))
  return {
    clientAddresses(cluster: number): string {
      if (getAddresses(cluster, page) < 0) return ''
      const at = u64At(page)
      const text = stringAt(at)
      release(at)
      return text
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

function readCalls(rados: LibraryHandle, operations: RadosOperations): Pick<Librados, 'readObject'> {
  const read = rados.func('int rados_aio_read(uintptr_t, str, uintptr_t, uintptr_t, size_t, uint64_t)')

  async function readUpTo({ pool, name }: ObjectName, timeoutMs: number, size: number) {
    const address = mapAnonymous(size)
    try {
      const { result, version } = await operations.perform(pool, timeoutMs, completion =>
        read(pool, name, completion, address, size, 0),
      )
      return result < 0 ? result : { bytes: Uint8Array.from(bytesAt(address, result)), version }
    } finally {
      unmap(address, size)
    }
  }

  return {
    async readObject(object, timeoutMs) {
      for (let size = READ_SIZE; ; size *= 8) {
        const data = await readUpTo(object, timeoutMs, size)
        if (typeof data === 'number' || data.bytes.length < size) return data
      }
    },
  }
}

function writeCalls(rados: LibraryHandle, operations: RadosOperations): Pick<Librados, 'writeObject'> {
  const begin = rados.func('uintptr_t rados_create_write_op()')
  const release = rados.func('void rados_release_write_op(uintptr_t)')
  const assertVersion = rados.func('void rados_write_op_assert_version(uintptr_t, uint64_t)')
  const create = rados.func('void rados_write_op_create(uintptr_t, int, uintptr_t)')
  const writeFull = rados.func('void rados_write_op_write_full(uintptr_t, uintptr_t, size_t)')
  const operate = rados.func(
    'int rados_aio_write_op_operate(uintptr_t, uintptr_t, uintptr_t, str, uintptr_t, int)',
  )
  return {
    async writeObject({ pool, name }, bytes, expected, timeoutMs) {
      const size = Math.max(1, bytes.length)
      const address = mapAnonymous(size)
      bytesAt(address, bytes.length).set(bytes)
      const operation = begin()
      if (expected === undefined) create(operation, CREATE_EXCLUSIVE, 0)
      else assertVersion(operation, expected)
      writeFull(operation, address, bytes.length)
      try {
        const { result } = await operations.perform(pool, timeoutMs, completion =>
          operate(operation, pool, completion, name, 0, 0),
        )
        return CONFLICTS.includes(result) ? CONFLICT : result
      } finally {
        release(operation)
        unmap(address, size)
      }
    },
  }
}
