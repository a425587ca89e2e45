/** Who has which volumes to himself at the moment: whoever looks whether a volume is used has it until he is done with it. */
import { RpcError } from '../core/errors.ts'
import { type Pool, volumeIn } from './storage-pool.ts'
import { checkFileName } from './volume-name.ts'

export class VolumeClaims {
  /** Volumes that somebody has to himself, and names that he will give, with what is done: `POOL/NAME`. */
  readonly #taken = new Map<string, string>()
  /** Volumes that are read, with what is done: any number may, and nobody changes them meanwhile. */
  readonly #held = new Map<string, readonly string[]>()

  /**
   * Has volumes of a pool, or names to be, to oneself (`takes`), or keeps others from changing them (`holds`, as POOL/NAME):
   * who looks whether somebody uses a volume has it from before the look to the end of what he does. What is returned gives
   * them back. `doing` goes on after the volume's name. Throws `RpcError` EBUSY.
   */
  take(pool: Pool, takes: readonly string[], holds: readonly string[], doing: string): () => void {
    for (const name of takes) this.refuseBusy(pool, name, 'change')
    for (const key of holds) this.#refuseTaken(key)
    const keys = takes.map(name => `${pool.name}/${name}`)
    for (const key of keys) this.#taken.set(key, doing)
    for (const key of holds) this.#held.set(key, [...(this.#held.get(key) ?? []), doing])
    return () => {
      for (const key of keys) this.#taken.delete(key)
      for (const key of holds) this.#letGo(key, doing)
    }
  }

  /** Throws `RpcError` EBUSY when long work is at the volume; work that only reads it is in nobody's way who reads. */
  refuseBusy(pool: Pool, name: string, use: 'read' | 'change'): void {
    const key = `${pool.name}/${name}`
    this.#refuseTaken(key)
    const reader = this.#held.get(key)?.[0]
    if (reader !== undefined && use === 'change') throw busy(key, reader)
  }

  /** Throws `RpcError` EEXIST or EBUSY when the name is that of a volume, or will be, and EINVAL when it cannot be. */
  refuseName(pool: Pool, name: string): void {
    this.#refuseTaken(`${pool.name}/${name}`)
    checkFileName(name)
    if (volumeIn(pool, name) === undefined) return
    throw new RpcError('EEXIST', `pool ${pool.name} has a volume ${name} already: choose another name`)
  }

  #refuseTaken(key: string): void {
    const doing = this.#taken.get(key)
    if (doing !== undefined) throw busy(key, doing)
  }

  #letGo(key: string, doing: string): void {
    const all = this.#held.get(key)!
    const others = all.toSpliced(all.indexOf(doing), 1)
    if (others.length === 0) this.#held.delete(key)
    else this.#held.set(key, others)
  }
}

function busy(key: string, doing: string): RpcError {
  return new RpcError('EBUSY', `volume ${key} ${doing}: wait for its end`)
}
