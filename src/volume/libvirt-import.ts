/** Takes over the pools and secrets of a libvirt that runs. It changes nothing there, and what is there twice is left. */
import { RpcError } from '../core/errors.ts'
import { parsePool } from '../libvirt/pool-xml.ts'
import { parseSecret } from '../libvirt/secret-xml.ts'
import type { LibvirtPool, LibvirtSecret, Virsh } from '../libvirt/virsh.ts'
import type { Call } from './nvme-export.ts'
import type { StoragePools } from './pools.ts'

export interface Imported {
  readonly kind: 'pool' | 'secret'
  /** Of a secret, its UUID. */
  readonly name: string
  /** The pool's, or what the secret is for. */
  readonly type: string
  readonly outcome: 'imported' | 'present' | 'failed'
  /** Why it failed; or what is still to be done. */
  readonly note: string
}

export class LibvirtImport {
  readonly #pools: StoragePools
  readonly #call: Call

  /** `call` takes its turn among the daemon's methods, and saves. */
  constructor(pools: StoragePools, call: Call) {
    this.#pools = pools
    this.#call = call
  }

  /** Secrets first, which pools need to start. One that fails does not keep the others. */
  async import(virsh: Virsh): Promise<Imported[]> {
    const [secrets, pools] = await Promise.all([virsh.secrets(), virsh.pools()])
    const done: Imported[] = []
    for (const secret of secrets) done.push(await this.#secret(secret))
    for (const pool of pools) done.push(await this.#pool(pool))
    return done
  }

  async #secret({ uuid, xml, value }: LibvirtSecret): Promise<Imported> {
    const type = parseSecret(xml).usage?.type ?? 'none'
    const told = (outcome: Imported['outcome'], note: string): Imported => ({
      ...{ kind: 'secret', name: uuid, type, outcome, note },
    })
    try {
      await this.#call('secret_define', { xml })
      if (value === undefined)
        return told('imported', 'libvirt does not tell its value: qpair secret set-value')
      await this.#call('secret_set_value', { secret: uuid, base64: value.trim() })
      return told('imported', '')
    } catch (error) {
      return told('failed', reasonOf(error))
    }
  }

  async #pool({ name, xml, isActive, isAutostart }: LibvirtPool): Promise<Imported> {
    let type = ''
    const told = (outcome: Imported['outcome'], note: string): Imported => ({
      ...{ kind: 'pool', name, type, outcome, note },
    })
    try {
      type = parsePool(xml).type
      if (this.#pools.list().some(pool => pool.name === name)) return told('present', 'it is left as it is')
      await this.#call('pool_define', { xml })
    } catch (error) {
      return told('failed', reasonOf(error))
    }
    try {
      if (isAutostart) await this.#call('pool_autostart', { pool: name })
      if (isActive && !this.#pools.get(name).isActive) await this.#call('pool_start', { pool: name })
      return told('imported', '')
    } catch (error) {
      return told('imported', `it is not started: ${reasonOf(error)}`)
    }
  }
}

/** Errors that nobody foresaw are not for a table. */
function reasonOf(error: unknown): string {
  if (error instanceof RpcError) return error.message
  throw error
}
