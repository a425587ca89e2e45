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

/** A pool's handle that operations use: closed under them, librados would touch what is gone. */
interface PoolUse {
  readonly operations: Set<Promise<unknown>>
  isClosing: boolean
  /** Something was given up that goes on. */
  isAbandoned: boolean
}

export class RadosOperations {
  readonly #calls: ReturnType<typeof completionCalls>
  readonly #page = mapAnonymous(PAGE_SIZE)
  readonly #pools = new Map<number, PoolUse>()

  constructor(rados: LibraryHandle) {
    this.#calls = completionCalls(rados)
  }

  /** One that is given up is cancelled: when this resolves, nothing of its memory is touched any more. */
  perform(pool: number, timeoutMs: number, start: Start): Promise<Performed> {
    return this.#counted(pool, use =>
      this.#run(use, timeoutMs, start, async completion => {
        // It ends at once then; until it has, librados may still touch its buffers.
        this.#calls.cancel(pool, completion)
        await this.#ends(completion, () => false)
      }),
    )
  }

  /** For what cannot be cancelled, and has no memory of ours: when it is given up, it goes on. */
  async attempt(pool: number, timeoutMs: number, start: Start): Promise<number> {
    const { result } = await this.#counted(pool, use =>
      this.#run(use, timeoutMs, start, async () => {
        use.isAbandoned = true
      }),
    )
    return result
  }

  /** Gives up what is under way, and closes the handle when that has ended; one that is still used stays open for good. */
  async closePool(pool: number): Promise<void> {
    const use = this.#useOf(pool)
    use.isClosing = true
    await Promise.allSettled(use.operations)
    this.#pools.delete(pool)
    if (!use.isAbandoned) this.#calls.destroyPool(pool)
  }

  #useOf(pool: number): PoolUse {
    const use = this.#pools.get(pool) ?? { operations: new Set(), isClosing: false, isAbandoned: false }
    this.#pools.set(pool, use)
    return use
  }

  async #counted<T>(pool: number, begin: (use: PoolUse) => Promise<T>): Promise<T> {
    const use = this.#useOf(pool)
    const operation = begin(use)
    use.operations.add(operation)
    try {
      return await operation
    } finally {
      use.operations.delete(operation)
    }
  }

  async #run(
    use: PoolUse,
    timeoutMs: number,
    start: Start,
    giveUp: (completion: number) => Promise<void>,
  ): Promise<Performed> {
    if (use.isClosing) return { result: TIMED_OUT, version: 0 }
    const { create, isComplete, resultOf, versionOf, release } = this.#calls
    create(0, 0, 0, this.#page)
    const completion = u64At(this.#page)
    const deadline = performance.now() + timeoutMs
    try {
      const started = start(completion)
      if (started < 0) return { result: started, version: 0 }
      const inTime = await this.#ends(completion, () => use.isClosing || performance.now() >= deadline)
      if (!inTime) await giveUp(completion)
      const result = isComplete(completion) === 0 ? TIMED_OUT : resultOf(completion)
      if (result < 0) return { result: inTime ? result : TIMED_OUT, version: 0 }
      return { result, version: Number(versionOf(completion)) }
    } finally {
      release(completion)
    }
  }

  /** False when it was given up. */
  async #ends(completion: number, isGivenUp: () => boolean): Promise<boolean> {
    const { isComplete } = this.#calls
    for (let pauseMs = POLL_MS; isComplete(completion) === 0; pauseMs = Math.min(POLL_MS_MAX, pauseMs + 1)) {
      if (isGivenUp()) return false
      await new Promise(resolve => setTimeout(resolve, pauseMs))
    }
    return true
  }
}

const completionCalls = (rados: LibraryHandle) => ({
  create: rados.func('int rados_aio_create_completion(uintptr_t, uintptr_t, uintptr_t, uintptr_t)'),
  isComplete: rados.func('int rados_aio_is_complete(uintptr_t)'),
  resultOf: rados.func('int rados_aio_get_return_value(uintptr_t)'),
  versionOf: rados.func('uint64_t rados_aio_get_version(uintptr_t)'),
  release: rados.func('void rados_aio_release(uintptr_t)'),
  cancel: rados.func('int rados_aio_cancel(uintptr_t, uintptr_t)'),
  destroyPool: rados.func('void rados_ioctx_destroy(uintptr_t)'),
})
