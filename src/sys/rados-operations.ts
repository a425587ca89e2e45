/**
 * Operations of librados that neither block nor call back: librados works on its own threads, and whether an operation
 * has ended is looked at every few milliseconds. So one that never ends costs no thread, and can be given up.
 */
import type { LibraryHandle } from 'koffi'
import { errnoNumber } from '../core/errors.ts'
import { PAGE_SIZE, u64At } from './blocking.ts'
import { mapAnonymous } from './memory.ts'

const POLL_MS = 1
const POLL_MS_MAX = 8

const TIMED_OUT = -errnoNumber('ETIMEDOUT')

/** Starts an operation that tells `completion` of its end. Below 0: it did not start. */
type Start = (completion: number) => number

export interface Performed {
  readonly result: number
  /** Of the object; 0 when it failed. */
  readonly version: number
}

export interface RadosOperations {
  /** One that is given up is cancelled: when this resolves, nothing of its memory is touched any more. */
  perform(pool: number, timeoutMs: number, start: Start): Promise<Performed>
  /** For what cannot be cancelled, and has no memory of ours: when it is given up, it goes on. */
  attempt(pool: number, timeoutMs: number, start: Start): Promise<number>
  /** Gives up what is under way, and closes the handle when that has ended; one that is still used stays open for good. */
  closePool(pool: number): Promise<void>
}

/** A pool's handle that operations use: closed under them, librados would touch what is gone. */
interface PoolUse {
  readonly operations: Set<Promise<unknown>>
  isClosing: boolean
  /** Something was given up that goes on. */
  isAbandoned: boolean
}

export function radosOperations(rados: LibraryHandle): RadosOperations {
  const create = rados.func('int rados_aio_create_completion(uintptr_t, uintptr_t, uintptr_t, uintptr_t)')
  const isComplete = rados.func('int rados_aio_is_complete(uintptr_t)')
  const resultOf = rados.func('int rados_aio_get_return_value(uintptr_t)')
  const versionOf = rados.func('uint64_t rados_aio_get_version(uintptr_t)')
  const release = rados.func('void rados_aio_release(uintptr_t)')
  const cancel = rados.func('int rados_aio_cancel(uintptr_t, uintptr_t)')
  const destroyPool = rados.func('void rados_ioctx_destroy(uintptr_t)')
  const page = mapAnonymous(PAGE_SIZE)
  const pools = new Map<number, PoolUse>()

  const useOf = (pool: number): PoolUse => {
    const use = pools.get(pool) ?? { operations: new Set(), isClosing: false, isAbandoned: false }
    pools.set(pool, use)
    return use
  }

  /** False when it was given up. */
  async function ends(completion: number, isGivenUp: () => boolean): Promise<boolean> {
    for (let pauseMs = POLL_MS; isComplete(completion) === 0; pauseMs = Math.min(POLL_MS_MAX, pauseMs + 1)) {
      if (isGivenUp()) return false
      await new Promise(resolve => setTimeout(resolve, pauseMs))
    }
    return true
  }

  async function run(
    use: PoolUse,
    timeoutMs: number,
    start: Start,
    giveUp: (completion: number) => Promise<void>,
  ): Promise<Performed> {
    if (use.isClosing) return { result: TIMED_OUT, version: 0 }
    create(0, 0, 0, page)
    const completion = u64At(page)
    const deadline = performance.now() + timeoutMs
    try {
      const started = start(completion)
      if (started < 0) return { result: started, version: 0 }
      const inTime = await ends(completion, () => use.isClosing || performance.now() >= deadline)
      if (!inTime) await giveUp(completion)
      const result = isComplete(completion) === 0 ? TIMED_OUT : resultOf(completion)
      if (result < 0) return { result: inTime ? result : TIMED_OUT, version: 0 }
      return { result, version: Number(versionOf(completion)) }
    } finally {
      release(completion)
    }
  }

  async function counted<T>({ operations }: PoolUse, operation: Promise<T>): Promise<T> {
    operations.add(operation)
    try {
      return await operation
    } finally {
      operations.delete(operation)
    }
  }

  return {
    perform(pool, timeoutMs, start) {
      const use = useOf(pool)
      const giveUp = async (completion: number): Promise<void> => {
        // It ends at once then; until it has, librados may still touch its buffers.
        cancel(pool, completion)
        await ends(completion, () => false)
      }
      return counted(use, run(use, timeoutMs, start, giveUp))
    },
    async attempt(pool, timeoutMs, start) {
      const use = useOf(pool)
      const giveUp = async (): Promise<void> => {
        use.isAbandoned = true
      }
      return (await counted(use, run(use, timeoutMs, start, giveUp))).result
    },
    async closePool(pool) {
      const use = useOf(pool)
      use.isClosing = true
      await Promise.allSettled(use.operations)
      pools.delete(pool)
      if (!use.isAbandoned) destroyPool(pool)
    },
  }
}
