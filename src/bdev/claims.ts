/**
 * Who uses a device. The rules are SPDK's, so that what its users type works here as it does there:
 *
 *                       while another has it as
 *   claim as            exclusive_write   write     read
 *   exclusive_write     refused           warned    allowed      filters, NVMe-oF namespaces
 *   write               refused           noted     allowed      an NBD export, a vhost controller
 *   read                allowed           allowed   allowed      those that are read only
 *
 * SPDK does not refuse an exclusive claim because somebody has the device open for writing; two clients that know
 * nothing of each other can then destroy a file system, so the log says who they are.
 *
 * A configuration is not replayed in the order in which it was made, so until all of it is back, what is warned of in one
 * order is only warned of in the other, too.
 */
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'

const log = logger('bdev')

export type ClaimType = 'exclusive_write' | 'write' | 'read'

export interface Claim {
  readonly owner: string
  readonly type: ClaimType
  /** Idempotent. */
  release(): void
}

export class Claims {
  readonly #bdevName: string
  readonly #claims = new Set<Claim>()

  constructor(bdevName: string) {
    this.#bdevName = bdevName
  }

  get isEmpty(): boolean {
    return this.#claims.size === 0
  }

  /** The owners, for a message. */
  get owners(): string {
    return [...this.#claims].map(claim => claim.owner).join(', ')
  }

  get exclusive(): Claim | undefined {
    return [...this.#claims].find(claim => claim.type === 'exclusive_write')
  }

  /** `isReplayed`: the claim is of a configuration, where it may have come before those that are there now. */
  add(owner: string, type: ClaimType, isReplayed: boolean): Claim {
    const { exclusive } = this
    if (exclusive !== undefined && type !== 'read' && !(isReplayed && type === 'write')) {
      throw new RpcError(
        'EPERM',
        `${owner} cannot have ${this.#bdevName} for writing: ${exclusive.owner} has it for itself. ` +
          'Take it away from there first, or use another bdev',
      )
    }
    this.#tellOfWriters(owner, type)
    const claim: Claim = { owner, type, release: () => void this.#claims.delete(claim) }
    this.#claims.add(claim)
    return claim
  }

  #tellOfWriters(owner: string, type: ClaimType): void {
    const writers = [...this.#claims].filter(claim => claim.type !== 'read').map(claim => claim.owner)
    if (type === 'read' || writers.length === 0) return
    const who = `${this.#bdevName} is written to by ${writers.join(', ')} and now by ${owner} too`
    if (type === 'exclusive_write' || this.exclusive !== undefined) {
      log.warning(
        `${who}: file systems do not survive two writers that know nothing of each other. Take it away from one of them, ` +
          'or have one read only; it is right where they know of each other, as with a file system for clusters',
      )
    } else log.notice(`${who}: right where they know of each other, as while a guest migrates`)
  }
}
