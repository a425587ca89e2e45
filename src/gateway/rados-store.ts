/** A group's objects in a Ceph pool: namespace `qpair`, one name an object. */
import { errnoName } from '../core/errors.ts'
import { CONFLICT, type Librados, librados } from '../sys/librados.ts'
import { FencedError, type GroupStore, type StoredText, StoreError } from './store.ts'

/** Apart from the images of the pool. */
export const RADOS_NAMESPACE = 'qpair'
/**
 * For so long a client stays shut out. One that is frozen for longer might still send what it had under way; nothing of
 * it would be served, since its lease is over.
 */
const FENCE_SECONDS = 7 * 24 * 3600
/** Ceph's ESHUTDOWN: "blocklisted". */
const SHUT_OUT = -108
const ENOENT = -2

export interface RadosStoreOptions {
  /** Handles of librados; the pool's has the namespace set. */
  readonly cluster: number
  readonly pool: number
  readonly poolName: string
  /** How long an operation may take. */
  readonly timeoutMs: number
}

export class RadosStore implements GroupStore {
  readonly instance: string
  readonly #options: RadosStoreOptions
  readonly #rados: Librados = librados()
  #settling: Promise<void> = Promise.resolve()
  #nextSettling: Promise<void> | undefined
  #isClosed = false

  constructor(options: RadosStoreOptions) {
    this.#options = options
    this.instance = this.#rados.clientAddresses(options.cluster)
  }

  /** Gives up what is under way, and closes the pool's handle. */
  async close(): Promise<void> {
    this.#isClosed = true
    await this.#rados.closePool(this.#options.pool)
  }

  async read(object: string): Promise<StoredText | undefined> {
    const { pool, timeoutMs } = this.#openOptions
    const found = await this.#rados.readObject({ pool, name: object }, timeoutMs)
    if (found === ENOENT) return undefined
    if (typeof found === 'number') throw this.#failure(`reading ${object}`, found)
    return { text: Buffer.from(found.bytes).toString('utf8'), version: found.version }
  }

  async write(object: string, text: string, expected: number | undefined): Promise<boolean> {
    const { pool, timeoutMs } = this.#openOptions
    const place = { pool, name: object }
    const result = await this.#rados.writeObject(place, Buffer.from(text), expected, timeoutMs)
    if (result === CONFLICT) return false
    if (result < 0) throw this.#failure(`writing ${object}`, result)
    return true
  }

  async fence(instance: string): Promise<void> {
    const { cluster } = this.#openOptions
    // A client that speaks both versions of the protocol has an address of each.
    for (const address of instance.replace(/^\[|\]$/g, '').split(',')) {
      const result = await this.#rados.blocklist(cluster, address, FENCE_SECONDS)
      if (result < 0) throw this.#failure(`shutting out ${address}`, result)
    }
    await this.settle()
  }

  /** Those who come while another waits share the next turn: what it asks for is newer than their calls. */
  settle(): Promise<void> {
    this.#nextSettling ??= this.#settling.then(() => {
      this.#nextSettling = undefined
      const settling = this.#settle()
      this.#settling = settling.catch(() => {})
      return settling
    })
    return this.#nextSettling
  }

  /** Handles that are closed must not be used: librados would touch what is gone. */
  get #openOptions(): RadosStoreOptions {
    if (this.#isClosed) throw new StoreError(`the pool ${this.#options.poolName} is closed here`)
    return this.#options
  }

  async #settle(): Promise<void> {
    const result = await this.#rados.awaitNewestMap(this.#openOptions.cluster)
    if (result < 0) throw this.#failure('asking the monitors for the newest map', result)
  }

  #failure(what: string, result: number): Error {
    const { poolName } = this.#options
    const reason = errnoName(-result)
    if (result === SHUT_OUT) return new FencedError(`${what} in pool ${poolName}: this client is shut out`)
    return new StoreError(`${what} in pool ${poolName}: ${reason}`)
  }
}
