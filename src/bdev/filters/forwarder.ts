/** What every filter does: hand its requests on to the device underneath, and hear of their end. */
import type { BdevInfo } from '../bdev.ts'
import type { Channel } from '../channel.ts'
import { BdevIo, type IoOwner } from '../io.ts'
import { deriveUuid } from '../uuid.ts'

/** A filter's request to its base on behalf of one of its own. */
export class ChildIo extends BdevIo {
  parent: BdevIo | null = null
  /** For the filter: a moment in the reactor's microseconds. */
  dueUs = 0
  /** For the filter: whatever it has to remember until the end. */
  note = 0
  /** Its early end was asked for: a filter that would hold it lets it go. */
  isAborted = false
}

export interface ChildOwner {
  /** The base has ended the child: the filter calls `Forwarder.finish` now or later. */
  childDone(child: ChildIo): void
}

/**
 * Children in a pool that grows to the number of I/Os outstanding at once, which the front ends bound. A child points to
 * its parent's data, so nothing is copied.
 */
export class Forwarder implements IoOwner {
  readonly base: Channel
  readonly #owner: ChildOwner
  readonly #all: ChildIo[] = []
  readonly #free: ChildIo[] = []

  constructor(base: Channel, owner: ChildOwner) {
    this.base = base
    this.#owner = owner
  }

  /** A child for `parent` that is not yet submitted. */
  prepare(parent: BdevIo): ChildIo {
    const child = this.#free.pop() ?? this.#grow()
    child.parent = parent
    child.type = parent.type
    child.fua = parent.fua
    child.firstBlock = parent.firstBlock
    child.blockCount = parent.blockCount
    child.segments = parent.segments
    child.note = 0
    child.isAborted = false
    return child
  }

  submit(child: ChildIo): void {
    this.base.submit(child)
  }

  /** Ends the parent. */
  finish(child: ChildIo, status: number): void {
    const parent = child.parent!
    child.parent = null
    this.#free.push(child)
    parent.complete(status)
  }

  /** Asks the base for the early end of the parent's child, or of all children. */
  abort(parent: BdevIo | null): void {
    for (const child of this.#all) {
      if (child.parent === null || (parent !== null && child.parent !== parent)) continue
      child.isAborted = true
      this.base.abort(child)
    }
  }

  ioDone(io: BdevIo): void {
    this.#owner.childDone(io as ChildIo)
  }

  #grow(): ChildIo {
    const child = new ChildIo(this, 0)
    this.#all.push(child)
    return child
  }
}

/** The description of a filter that is like its base in every respect that the filter does not name. */
export function describeFilter(
  base: BdevInfo,
  own: Pick<BdevInfo, 'name' | 'driver' | 'product' | 'device' | 'driverSpecific'> & {
    readonly uuid: string | undefined
  },
): BdevInfo {
  return {
    ...base,
    ...own,
    aliases: [],
    uuid: own.uuid ?? deriveUuid(own.driver, base.uuid),
    bases: [base.name],
  }
}
