/**
 * librados and librbd as typed functions, loaded when they are first needed: most machines have neither and need neither.
 * Handles (cluster, pool, image, completion) are addresses, valid on every thread. Results are 0 or more, or -errno.
 *
 * What may wait for the network returns a promise and runs on one of Node's pool of threads, never on a reactor.
 */
import koffi, { type LibraryHandle } from 'koffi'
import { RpcError } from '../core/errors.ts'
import { type Blocking, blocking, textAt, u64At, withPage } from './blocking.ts'
import { type Report, type Snapshots, snapshotCalls } from './librbd-snapshots.ts'
import { mapAnonymous, viewAt } from './memory.ts'
import { progressCallback, reportingProgress } from './progress.ts'

/** `rbd_set_image_notification`: the completions of an image make an eventfd readable. */
export const EVENT_TYPE_EVENTFD = 2

/** For the control thread: what may wait for the network returns a promise. */
export interface Librbd extends ImageIo, Snapshots {
  readonly version: string
  radosCreate(user: string): number
  radosReadFile(cluster: number, path: string | null): number
  radosSet(cluster: number, option: string, value: string): number
  /** Undefined when there is no such option. */
  radosGet(cluster: number, option: string): string | undefined
  radosConnect(cluster: number): Promise<number>
  radosShutdown(cluster: number): Promise<void>
  radosFsid(cluster: number): string
  /** The handle, or -errno. */
  openPool(cluster: number, pool: string, namespace: string): Promise<number>
  closePool(pool: number): void
  /** The pool's number, which stays when it is renamed. */
  poolId(pool: number): number
  /** Empty when there is no such pool. */
  poolName(cluster: number, id: number): string
  /** The handle, or -errno. */
  openImage(pool: number, image: string, snapshot: string | null, readOnly: boolean): Promise<number>
  closeImage(image: number): Promise<number>
  imageSize(image: number): Promise<number>
  imageId(image: number): string
  /** Bytes of an object's part that lies together; what the image is best written in. */
  stripeUnit(image: number): Promise<number>
  /** Object by object when it becomes smaller, which may take long. */
  resizeImage(image: number, sizeBytes: number, report: Report): Promise<number>
  setNotification(image: number, eventfd: number): number
}

/** For reactors: starts I/O to an image, and hears of its end. */
export interface ImageIo {
  createCompletion(argument: number, result: number): number
  releaseCompletion(completion: number): void
  /** 1 when it has ended. */
  isComplete(completion: number): number
  completionResult(completion: number): number
  completionArgument(completion: number): number
  /** Takes up to `count` ended completions to the array of pointers at `address`; returns how many. */
  pollEvents(image: number, address: number, count: number): number
  readv(image: number, iovecs: number, count: number, offset: number, completion: number): number
  writev(image: number, iovecs: number, count: number, offset: number, completion: number): number
  flush(image: number, completion: number): number
  discard(image: number, offset: number, length: number, completion: number): number
  writeZeroes(
    image: number,
    offset: number,
    length: number,
    completion: number,
    zeroFlags: number,
    operationFlags: number,
  ): number
  /**
   * Both buffers have `length` bytes and lie within one stripe unit of the image, with librbd 16 within one sector of 512
   * bytes: it ends with EINVAL otherwise. No event tells of its end.
   */
  compareAndWrite(
    image: number,
    offset: number,
    length: number,
    expected: number,
    data: number,
    completion: number,
    mismatchOffset: number,
    operationFlags: number,
  ): number
}

let loaded: Librbd | undefined

/** Throws `RpcError` ENOTSUP that names the packages, when the machine has no librbd. */
export function librbd(): Librbd {
  loaded ??= load()
  return loaded
}

function open(name: string): LibraryHandle {
  try {
    return koffi.load(name)
  } catch (cause) {
    throw new RpcError(
      'ENOTSUP',
      `this machine has no ${name}, which RBD images need: install librbd1 (Debian, Ubuntu, Fedora, RHEL, SUSE)`,
      { cause },
    )
  }
}

function load(): Librbd {
  const rados = open('librados.so.2')
  const rbd = open('librbd.so.1')
  return { ...clusterCalls(rados), ...imageCalls(rbd), ...snapshotCalls(rbd), ...dataCalls(rbd) }
}

function clusterCalls(rados: LibraryHandle) {
  const create = rados.func('int rados_create(uintptr_t, const char *)')
  const readFile = rados.func('int rados_conf_read_file(uintptr_t, const char *)')
  const set = rados.func('int rados_conf_set(uintptr_t, const char *, const char *)')
  const get = rados.func('int rados_conf_get(uintptr_t, const char *, uintptr_t, size_t)')
  const fsid = rados.func('int rados_cluster_fsid(uintptr_t, uintptr_t, size_t)')
  const connect = blocking(rados.func('int rados_connect(uintptr_t)'))
  const shutdown = blocking(rados.func('void rados_shutdown(uintptr_t)'))
  const openPool = blocking(rados.func('int rados_ioctx_create(uintptr_t, const char *, uintptr_t)'))
  const setNamespace = rados.func('void rados_ioctx_set_namespace(uintptr_t, const char *)')
  const closePool = rados.func('void rados_ioctx_destroy(uintptr_t)')
  const poolId = rados.func('int64_t rados_ioctx_get_id(uintptr_t)')
  const poolName = rados.func('int rados_pool_reverse_lookup(uintptr_t, int64_t, uintptr_t, size_t)')
  const page = mapAnonymous(4096)
  return {
    radosCreate: (user: string): number => {
      const result = create(page, user)
      return result < 0 ? result : u64At(page)
    },
    radosReadFile: (cluster: number, path: string | null): number => readFile(cluster, path),
    radosSet: (cluster: number, option: string, value: string): number => set(cluster, option, value),
    radosGet: (cluster: number, option: string): string | undefined =>
      get(cluster, option, page, 4096) < 0 ? undefined : textAt(page, 4096),
    radosConnect: (cluster: number): Promise<number> => connect(cluster),
    radosShutdown: async (cluster: number): Promise<void> => void (await shutdown(cluster)),
    radosFsid: (cluster: number): string => (fsid(cluster, page, 64) < 0 ? '' : textAt(page, 64)),
    openPool: (cluster: number, pool: string, namespace: string): Promise<number> =>
      withPage(async out => {
        const result = await openPool(cluster, pool, out)
        if (result < 0) return result
        const handle = u64At(out)
        if (namespace !== '') setNamespace(handle, namespace)
        return handle
      }),
    closePool: (pool: number): void => closePool(pool),
    poolId: (pool: number): number => poolId(pool),
    poolName: (cluster: number, id: number): string =>
      poolName(cluster, id, page, 4096) < 0 ? '' : textAt(page, 4096),
  }
}

function imageCalls(rbd: LibraryHandle) {
  const openImage = blocking(rbd.func('int rbd_open(uintptr_t, const char *, uintptr_t, const char *)'))
  const openReadOnly = blocking(
    rbd.func('int rbd_open_read_only(uintptr_t, const char *, uintptr_t, const char *)'),
  )
  const closeImage = blocking(rbd.func('int rbd_close(uintptr_t)'))
  const getSize = blocking(rbd.func('int rbd_get_size(uintptr_t, uintptr_t)'))
  const getStripeUnit = blocking(rbd.func('int rbd_get_stripe_unit(uintptr_t, uintptr_t)'))
  const getId = rbd.func('int rbd_get_id(uintptr_t, uintptr_t, size_t)')
  const resize = blocking(rbd.func('int rbd_resize(uintptr_t, uint64_t)'))
  const resizeTelling = blocking(
    rbd.func('int rbd_resize_with_progress(uintptr_t, uint64_t, uintptr_t, uintptr_t)'),
  )
  const callback = progressCallback()
  const notify = rbd.func('int rbd_set_image_notification(uintptr_t, int, int)')
  const version = rbd.func('void rbd_version(uintptr_t, uintptr_t, uintptr_t)')
  const page = mapAnonymous(4096)
  version(page, page + 4, page + 8)
  const numbers = viewAt(page, 12)
  const number = (call: Blocking, image: number): Promise<number> =>
    withPage(async out => {
      const result = await call(image, out)
      return result < 0 ? result : u64At(out)
    })
  return {
    version: [0, 4, 8].map(at => numbers.getInt32(at, true)).join('.'),
    openImage: (pool: number, image: string, snapshot: string | null, readOnly: boolean): Promise<number> =>
      withPage(async out => {
        const result = await (readOnly ? openReadOnly : openImage)(pool, image, out, snapshot)
        return result < 0 ? result : u64At(out)
      }),
    closeImage: (image: number): Promise<number> => closeImage(image),
    imageSize: (image: number): Promise<number> => number(getSize, image),
    imageId: (image: number): string => (getId(image, page, 256) < 0 ? '' : textAt(page, 256)),
    stripeUnit: (image: number): Promise<number> => number(getStripeUnit, image),
    resizeImage: (image: number, sizeBytes: number, report: Report): Promise<number> =>
      callback === 0
        ? resize(image, sizeBytes)
        : reportingProgress(report, cell => resizeTelling(image, sizeBytes, callback, cell)),
    setNotification: (image: number, eventfd: number): number => notify(image, eventfd, EVENT_TYPE_EVENTFD),
  }
}

function dataCalls(rbd: LibraryHandle) {
  const create = rbd.func('int rbd_aio_create_completion(uintptr_t, uintptr_t, uintptr_t)')
  return {
    createCompletion: (argument: number, result: number): number => create(argument, 0, result),
    releaseCompletion: rbd.func('void rbd_aio_release(uintptr_t)'),
    isComplete: rbd.func('int rbd_aio_is_complete(uintptr_t)'),
    completionResult: rbd.func('intptr_t rbd_aio_get_return_value(uintptr_t)'),
    completionArgument: rbd.func('uintptr_t rbd_aio_get_arg(uintptr_t)'),
    pollEvents: rbd.func('int rbd_poll_io_events(uintptr_t, uintptr_t, int)'),
    readv: rbd.func('int rbd_aio_readv(uintptr_t, uintptr_t, int, uint64_t, uintptr_t)'),
    writev: rbd.func('int rbd_aio_writev(uintptr_t, uintptr_t, int, uint64_t, uintptr_t)'),
    flush: rbd.func('int rbd_aio_flush(uintptr_t, uintptr_t)'),
    discard: rbd.func('int rbd_aio_discard(uintptr_t, uint64_t, uint64_t, uintptr_t)'),
    writeZeroes: rbd.func('int rbd_aio_write_zeroes(uintptr_t, uint64_t, size_t, uintptr_t, int, int)'),
    compareAndWrite: rbd.func(
      'intptr_t rbd_aio_compare_and_write(uintptr_t, uint64_t, size_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int)',
    ),
  }
}
