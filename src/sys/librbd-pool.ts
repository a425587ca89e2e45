/**
 * What a Ceph pool has in images, and how full it is: without opening one of them. Handles come from `librbd()`. Results
 * are 0 or more, or -errno.
 */
import koffi, { type LibraryHandle } from 'koffi'
import { errnoNumber } from '../core/errors.ts'
import { blocking, PAGE_SIZE, stringAt, u64At, withPage } from './blocking.ts'
import type { Report } from './librbd-snapshots.ts'
import { bytesAt, mapAnonymous, unmap, viewAt } from './memory.ts'
import { machineCode, progressCallback, reportingProgress } from './progress.ts'
import { RadosOperations } from './rados-operations.ts'

export interface ImageName {
  readonly name: string
  /** Of the objects that hold it; empty for images of format 1, of which Ceph has made none since 2016. */
  readonly id: string
}

export interface CreateImageOptions {
  /** Bytes of an object, as a power of two; Ceph's own when absent. */
  readonly order?: number | undefined
  /** Where its data is to be instead. */
  readonly dataPool?: string | undefined
}

export interface LibrbdPool {
  listImages(pool: number): Promise<ImageName[] | number>
  /**
   * Sizes in bytes by image id, undefined for an image that has gone. They are asked of the headers, many at a time, as
   * `rbd_open` itself does it: no image is opened, watched or locked.
   */
  imageSizes(pool: number, ids: readonly string[]): Promise<ReadonlyMap<string, number | undefined> | number>
  createImage(pool: number, name: string, sizeBytes: number, options: CreateImageOptions): Promise<number>
  /** Object by object, which may take long. */
  removeImage(pool: number, name: string, report: Report): Promise<number>
  renameImage(pool: number, from: string, to: string): Promise<number>
  /** The id of the image that Ceph opens by this name, whether or not the pool lists it. */
  idOf(pool: number, name: string): Promise<string | number>
  /** Takes the name away from the image that it leads to, of which nothing else changes. */
  forgetName(pool: number, name: string): Promise<number>
  /**
   * Bytes of the objects that an open image has, as `rbd du` counts them: at once where it has fast-diff, long otherwise.
   * Undefined where this machine has no way to be told.
   */
  usedBytes(image: number, sizeBytes: number): Promise<number | undefined>
  /** Addresses of the clients, of any machine, that have an open image open for writing. */
  watchers(image: number): Promise<string[] | number>
  /** Of the whole cluster, in bytes. */
  clusterUsage(cluster: number): Promise<{ totalBytes: number; availableBytes: number } | number>
  /** Bytes that the pool's objects have, before replication. */
  poolBytes(pool: number): Promise<number>
  /** Of a handle that was used here: once nothing of it is under way. */
  closePool(pool: number): Promise<void>
}

let loaded: LibrbdPool | undefined

/** Only for those who have a handle, and so the libraries. */
export function librbdPool(): LibrbdPool {
  loaded ??= load(koffi.load('librados.so.2'), koffi.load('librbd.so.1'))
  return loaded
}

function load(rados: LibraryHandle, rbd: LibraryHandle): LibrbdPool {
  const operations = new RadosOperations(rados)
  return {
    ...imageCalls(rbd),
    ...usageCalls(rados),
    ...nameCalls(rados, operations),
    listImages: listCall(rbd),
    usedBytes: usedCall(rbd),
    watchers: watchersCall(rbd),
    imageSizes: sizesCall(rados, operations),
    closePool: pool => operations.closePool(pool),
  }
}

/** `rbd_image_spec_t`: two pointers, the id and the name. */
const SPEC_SIZE = 16
const IMAGES_AT_FIRST = 4096
const ERANGE = -errnoNumber('ERANGE')

function listCall(rbd: LibraryHandle): LibrbdPool['listImages'] {
  const list = blocking(rbd.func('int rbd_list2(uintptr_t, uintptr_t, uintptr_t)'))
  const cleanup = rbd.func('void rbd_image_spec_list_cleanup(uintptr_t, size_t)')
  /** What was found, or how many there is to be room for. */
  async function listUpTo(pool: number, count: number, page: number): Promise<ImageName[] | number> {
    const entries = mapAnonymous(count * SPEC_SIZE)
    try {
      viewAt(page, 8).setBigUint64(0, BigInt(count), true)
      const result = await list(pool, entries, page)
      const found = u64At(page)
      if (result === ERANGE) return found
      if (result < 0) return result
      const images = Array.from({ length: found }, (_, index) => {
        const at = entries + index * SPEC_SIZE
        return { id: stringAt(u64At(at)), name: stringAt(u64At(at + 8)) }
      })
      cleanup(entries, found)
      return images
    } finally {
      unmap(entries, count * SPEC_SIZE)
    }
  }
  return pool =>
    withPage(async page => {
      for (let room = IMAGES_AT_FIRST; ; ) {
        const found = await listUpTo(pool, room, page)
        if (typeof found !== 'number' || found < 0) return found
        // Others may make images meanwhile.
        room = found + IMAGES_AT_FIRST
      }
    })
}

/** `rbd_image_watcher_t`: a pointer to the address, the client's number, a cookie. */
const WATCHER_SIZE = 24
const WATCHERS_MAX = 128

function watchersCall(rbd: LibraryHandle): LibrbdPool['watchers'] {
  const list = blocking(rbd.func('int rbd_watchers_list(uintptr_t, uintptr_t, uintptr_t)'))
  const cleanup = rbd.func('void rbd_watchers_list_cleanup(uintptr_t, size_t)')
  return image =>
    withPage(async page => {
      const entries = mapAnonymous(WATCHERS_MAX * WATCHER_SIZE)
      try {
        viewAt(page, 8).setBigUint64(0, BigInt(WATCHERS_MAX), true)
        const result = await list(image, entries, page)
        if (result < 0) return result
        const found = u64At(page)
        const addresses = Array.from({ length: found }, (_, at) =>
          stringAt(u64At(entries + at * WATCHER_SIZE)),
        )
        cleanup(entries, found)
        return addresses
      } finally {
        unmap(entries, WATCHERS_MAX * WATCHER_SIZE)
      }
    })
}

/** Headers that are asked at once. */
const HEADERS_AT_ONCE = 128
const HEADER_TIMEOUT_MS = 30_000
/** `CEPH_NOSNAP`: of the image, not of a snapshot. */
const NO_SNAPSHOT = 0xffff_ffff_ffff_fffen
const ANSWER_SIZE = 64
const ENOENT = -errnoNumber('ENOENT')

/**
 * Ceph's object class `rbd`, method `get_size`: in a snapshot's number (u64), out the order (u8) and the size (u64), all
 * little endian.
 */
function sizesCall(rados: LibraryHandle, operations: RadosOperations): LibrbdPool['imageSizes'] {
  const exec = rados.func(
    'int rados_aio_exec(uintptr_t, str, uintptr_t, str, str, uintptr_t, size_t, uintptr_t, size_t)',
  )
  const question = mapAnonymous(PAGE_SIZE)
  viewAt(question, 8).setBigUint64(0, NO_SNAPSHOT, true)

  async function sizeOf(pool: number, id: string, answer: number): Promise<number> {
    const { result } = await operations.perform(pool, HEADER_TIMEOUT_MS, completion =>
      exec(pool, `rbd_header.${id}`, completion, 'rbd', 'get_size', question, 8, answer, ANSWER_SIZE),
    )
    return result < 0 ? result : u64At(answer + 1)
  }

  return async (pool, ids) => {
    const answers = mapAnonymous(HEADERS_AT_ONCE * ANSWER_SIZE)
    const sizes = new Map<string, number | undefined>()
    const waiting = ids.values()
    let failure = 0
    const ask = async (answer: number): Promise<void> => {
      for (const id of waiting) {
        const size = await sizeOf(pool, id, answer)
        if (size < 0 && size !== ENOENT) failure = size
        if (failure < 0) return
        sizes.set(id, size < 0 ? undefined : size)
      }
    }
    try {
      await Promise.all(
        Array.from({ length: HEADERS_AT_ONCE }, (_, index) => ask(answers + index * ANSWER_SIZE)),
      )
    } finally {
      unmap(answers, HEADERS_AT_ONCE * ANSWER_SIZE)
    }
    return failure < 0 ? failure : sizes
  }
}

const NAME_TIMEOUT_MS = 30_000

/** The object `rbd_id.NAME` holds the id as Ceph encodes a text: its length (u32, little endian) and its bytes. */
function nameCalls(
  rados: LibraryHandle,
  operations: RadosOperations,
): Pick<LibrbdPool, 'idOf' | 'forgetName'> {
  const read = rados.func('int rados_aio_read(uintptr_t, str, uintptr_t, uintptr_t, size_t, uint64_t)')
  const remove = rados.func('int rados_aio_remove(uintptr_t, str, uintptr_t)')
  return {
    idOf: (pool, name) =>
      withPage(async page => {
        const { result } = await operations.perform(pool, NAME_TIMEOUT_MS, completion =>
          read(pool, `rbd_id.${name}`, completion, page, PAGE_SIZE, 0),
        )
        return result < 0 ? result : Buffer.from(bytesAt(page, result).subarray(4)).toString()
      }),
    forgetName: (pool, name) =>
      operations.attempt(pool, NAME_TIMEOUT_MS, completion => remove(pool, `rbd_id.${name}`, completion)),
  }
}

/** `RBD_IMAGE_OPTION_*`. */
const ORDER = 2
const DATA_POOL = 10

function imageCalls(rbd: LibraryHandle): Pick<LibrbdPool, 'createImage' | 'removeImage' | 'renameImage'> {
  const create = blocking(rbd.func('int rbd_create4(uintptr_t, const char *, uint64_t, uintptr_t)'))
  const remove = blocking(rbd.func('int rbd_remove(uintptr_t, const char *)'))
  const removeTelling = blocking(
    rbd.func('int rbd_remove_with_progress(uintptr_t, const char *, uintptr_t, uintptr_t)'),
  )
  const callback = progressCallback()
  const rename = blocking(rbd.func('int rbd_rename(uintptr_t, const char *, const char *)'))
  const createOptions = rbd.func('void rbd_image_options_create(uintptr_t)')
  const destroyOptions = rbd.func('void rbd_image_options_destroy(uintptr_t)')
  const setNumber = rbd.func('int rbd_image_options_set_uint64(uintptr_t, int, uint64_t)')
  const setText = rbd.func('int rbd_image_options_set_string(uintptr_t, int, const char *)')
  return {
    createImage: (pool, name, sizeBytes, { order, dataPool }) =>
      withPage(async page => {
        createOptions(page)
        const options = u64At(page)
        try {
          if (order !== undefined) setNumber(options, ORDER, order)
          if (dataPool !== undefined) setText(options, DATA_POOL, dataPool)
          return await create(pool, name, sizeBytes, options)
        } finally {
          destroyOptions(options)
        }
      }),
    removeImage: (pool, name, report) =>
      callback === 0
        ? remove(pool, name)
        : reportingProgress(report, cell => removeTelling(pool, name, callback, cell)),
    renameImage: (pool, from, to) => rename(pool, from, to),
  }
}

/** `rados_cluster_stat_t`: KiB in all, used, available, and objects; u64 each. `rados_pool_stat_t` begins with bytes. */
const KIB = 1024
const POOL_STAT_SIZE = 256

function usageCalls(rados: LibraryHandle): Pick<LibrbdPool, 'clusterUsage' | 'poolBytes'> {
  const clusterStat = blocking(rados.func('int rados_cluster_stat(uintptr_t, uintptr_t)'))
  const poolStat = blocking(rados.func('int rados_ioctx_pool_stat(uintptr_t, uintptr_t)'))
  return {
    clusterUsage: cluster =>
      withPage(async page => {
        const result = await clusterStat(cluster, page)
        if (result < 0) return result
        return { totalBytes: u64At(page) * KIB, availableBytes: u64At(page + 16) * KIB }
      }),
    poolBytes: pool =>
      withPage(async page => {
        bytesAt(page, POOL_STAT_SIZE).fill(0)
        const result = await poolStat(pool, page)
        return result < 0 ? result : u64At(page)
      }),
  }
}

/**
 * The callback of `rbd_diff_iterate2`, `int (uint64_t offset, size_t length, int exists, void *sum)`, which librbd calls on
 * threads of its own: adds the lengths of what exists. See `progress.ts`.
 */
const ADD_LENGTH_X64 = Uint8Array.of(
  ...[0xf3, 0x0f, 0x1e, 0xfa], // endbr64
  ...[0x85, 0xd2], //             test edx, edx
  ...[0x74, 0x04], //             je past the next
  ...[0xf0, 0x48, 0x01, 0x31], // lock add [rcx], rsi
  ...[0x31, 0xc0], //             xor eax, eax
  0xc3, //                        ret
)

function usedCall(rbd: LibraryHandle): LibrbdPool['usedBytes'] {
  const iterate = blocking(
    rbd.func(
      'int rbd_diff_iterate2(uintptr_t, const char *, uint64_t, uint64_t, uint8_t, uint8_t, uintptr_t, uintptr_t)',
    ),
  )
  let callback: number | undefined
  return async (image, sizeBytes) => {
    callback ??= machineCode(ADD_LENGTH_X64)
    if (callback === 0) return undefined
    const sum = mapAnonymous(PAGE_SIZE)
    try {
      const result = await iterate(image, null, 0, sizeBytes, 0, 1, callback, sum)
      return result < 0 ? undefined : u64At(sum)
    } finally {
      unmap(sum, PAGE_SIZE)
    }
  }
}
