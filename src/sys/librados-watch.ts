/**
 * Watching an object of a pool, and telling those who do. librados tells of a notification by a call from a thread of its
 * own, where no JavaScript may run. So the call is given to a function of the C library that takes the same arguments:
 *
 *   rados_watchcb2_t    (void *argument, uint64_t notification, uint64_t watch, …)
 *   rados_watcherrcb_t  (void *argument, uint64_t watch, int error)
 *   eventfd_write       (int fd,         eventfd_t value)
 *
 * With an eventfd's number as the argument, the notification's number is added to the counter: whoever waits for the
 * eventfd wakes, and can acknowledge it. Arguments beyond the second are in registers that the function does not look at,
 * on x86-64 (System V) as on arm64 (AAPCS64), and its result, an int, goes where nobody looks.
 */
import koffi, { type LibraryHandle } from 'koffi'
import { PAGE_SIZE, u64At } from './blocking.ts'
import type { ObjectName } from './librados.ts'
import { mapAnonymous } from './memory.ts'
import type { RadosOperations } from './rados-operations.ts'

export interface RadosWatches {
  /**
   * Resolves with the watch's handle, or -errno. From here on notifications write to the eventfd, and so does the end of
   * the watch. The number of the eventfd must stay what it is for as long as the process lives. Waits for Ceph as long as
   * the pool is open; a watch that was given up might come to be all the same.
   */
  watch(object: ObjectName, eventfd: number): Promise<number>
  /** Below 0 when the watch is lost: it must be ended, and made anew. Does not ask Ceph. */
  checkWatch(pool: number, watch: number): number
  /** The handle is of no use afterwards, whatever the result. */
  unwatch(pool: number, watch: number, timeoutMs: number): Promise<number>
  /**
   * Tells everybody who watches. Resolves when all have acknowledged it, or with -ETIMEDOUT. `timeoutMs`: whole seconds,
   * at least one, since Ceph takes less for 30 s.
   */
  notify(object: ObjectName, timeoutMs: number): Promise<number>
  /** Acknowledging what is no notification does nothing. */
  acknowledge(object: ObjectName, watch: number, notification: bigint): void
}

/** Ceph's own, 30 s unless configured: how long a watch of a client that is gone is waited for. */
const DEFAULT_TIMEOUT = 0
/** The OSD says that it has given up; it is given up here only when the OSD does not say anything. */
const NOTIFY_GRACE_MS = 1000

export function watchCalls(rados: LibraryHandle, operations: RadosOperations): RadosWatches {
  const watch = rados.func(
    'int rados_aio_watch2(uintptr_t, str, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uint32_t, uintptr_t)',
  )
  const check = rados.func('int rados_watch_check(uintptr_t, uint64_t)')
  const unwatch = rados.func('int rados_aio_unwatch(uintptr_t, uint64_t, uintptr_t)')
  const notify = rados.func(
    'int rados_aio_notify(uintptr_t, str, uintptr_t, uintptr_t, int, uint64_t, uintptr_t, uintptr_t)',
  )
  const acknowledge = rados.func('int rados_notify_ack(uintptr_t, str, uint64_t, uint64_t, uintptr_t, int)')
  const eventfdWrite = Number(koffi.address(koffi.load('libc.so.6').symbol('eventfd_write')))
  const page = mapAnonymous(PAGE_SIZE)
  return {
    async watch({ pool, name }, eventfd) {
      let handle = 0
      const result = await operations.attempt(pool, Number.POSITIVE_INFINITY, completion => {
        const started = watch(
          pool,
          name,
          completion,
          page,
          eventfdWrite,
          eventfdWrite,
          DEFAULT_TIMEOUT,
          eventfd,
        )
        // It is known at once: another call may have the page by the time the watch stands.
        handle = u64At(page)
        return started
      })
      return result < 0 ? result : handle
    },
    checkWatch: (pool, handle) => check(pool, handle),
    unwatch: (pool, handle, timeoutMs) =>
      operations.attempt(pool, timeoutMs, completion => unwatch(pool, handle, completion)),
    notify: ({ pool, name }, timeoutMs) =>
      operations.attempt(pool, timeoutMs + NOTIFY_GRACE_MS, completion =>
        notify(pool, name, completion, 0, 0, timeoutMs, 0, 0),
      ),
    acknowledge({ pool, name }, handle, notification) {
      acknowledge(pool, name, notification, handle, 0, 0)
    },
  }
}
