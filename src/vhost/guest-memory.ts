/**
 * The memory of a guest, as its queues on one reactor see it. Every address that a guest names is checked and translated
 * here, and nowhere else:
 *
 *   guest address   in descriptors
 *   user address    of the front end's process, in the addresses of rings   --->   host address: of this process
 */

import type { Segments } from '../bdev/io.ts'
import { assert } from '../core/assert.ts'
import { ProtocolError } from '../core/errors.ts'
import { viewMemory } from '../sys/libc.ts'
import type { DirtyLog } from './dirty-log.ts'
import type { MappedRegion } from './messages.ts'

/** Views of more are slow or abort the process: see `sys/memory.ts`. */
const WINDOW = 2 ** 30
/** Windows overlap by half, so that whatever is not longer than that lies within one. */
const WINDOW_STEP = WINDOW / 2

const NOTHING = new DataView(new ArrayBuffer(0))

export class GuestMemory {
  /** What `locate` made visible last. */
  view: DataView = NOTHING
  /** Set while the guest is migrated: what is written to its memory has to be marked. */
  log: DirtyLog | null = null

  /** In ascending order of `guestAddress`. */
  #regions: readonly MappedRegion[] = []
  /** For each region the views of it that were needed so far. */
  #windows: DataView[][] = []
  // The region in which the last address was found: its guest addresses, and what to add for a host address.
  #start = 0
  #end = 0
  #delta = 0
  // The host addresses that `view` covers.
  #viewStart = 0
  #viewEnd = 0

  constructor(regions: readonly MappedRegion[]) {
    this.replace(regions)
  }

  /**
   * Goes over to another table. Host addresses from the old one stay valid only if their region is in the new one, too.
   * Throws `ProtocolError` when addresses are beyond what can be computed with.
   */
  replace(regions: readonly MappedRegion[]): void {
    for (const { guestAddress, userAddress, sizeBytes } of regions) {
      if (guestAddress + sizeBytes > 2 ** 52 || userAddress + sizeBytes > 2 ** 52) {
        throw new ProtocolError(
          `a region of ${sizeBytes} bytes at guest address ${guestAddress}, user address ${userAddress} ends beyond 2^52`,
          0,
        )
      }
    }
    this.#regions = regions.toSorted((a, b) => a.guestAddress - b.guestAddress)
    this.#windows = regions.map(() => [])
    this.#start = 0
    this.#end = 0
    this.view = NOTHING
    this.#viewStart = 0
    this.#viewEnd = 0
  }

  get regions(): readonly MappedRegion[] {
    return this.#regions
  }

  /**
   * Adds to `target` where the range lies in this process, in pieces where it goes over a region's border. False when
   * part of it is outside of the guest's memory (`target` is then of no use). The length is at least 1.
   */
  translate(guestAddress: number, length: number, target: Segments): boolean {
    if (guestAddress >= this.#start && guestAddress + length <= this.#end) {
      const { count } = target
      if (count === target.addresses.length) target.reserve(2 * count)
      target.addresses[count] = guestAddress + this.#delta
      target.lengths[count] = length
      target.count = count + 1
      return true
    }
    return this.#translatePieces(guestAddress, length, target)
  }

  /** Where the range lies in this process if that is one piece within one region, otherwise 0. */
  hostOf(guestAddress: number, length: number): number {
    const isInside = guestAddress >= this.#start && guestAddress + length <= this.#end
    if (!isInside && !(this.#find(guestAddress) && guestAddress + length <= this.#end)) return 0
    return guestAddress + this.#delta
  }

  /** The same for an address of the front end's process. */
  hostOfUser(userAddress: number, length: number): number {
    for (const region of this.#regions) {
      const offset = userAddress - region.userAddress
      if (offset >= 0 && offset + length <= region.sizeBytes) return region.address + offset
    }
    return 0
  }

  /** What the guest calls an address of its memory in this process; -1 when it is not of its memory. */
  guestOf(hostAddress: number): number {
    for (const region of this.#regions) {
      const offset = hostAddress - region.address
      if (offset >= 0 && offset < region.sizeBytes) return region.guestAddress + offset
    }
    return -1
  }

  /**
   * Makes `view` cover `size` bytes (at most 512 MiB) at a host address that was translated before, and returns their
   * offset in it.
   */
  locate(hostAddress: number, size: number): number {
    if (hostAddress < this.#viewStart || hostAddress + size > this.#viewEnd) this.#look(hostAddress)
    return hostAddress - this.#viewStart
  }

  /** Marks that a range of host addresses was written to. For a guest that is migrated. */
  mark(hostAddress: number, sizeBytes: number): void {
    this.log?.mark(this.guestOf(hostAddress), sizeBytes)
  }

  /** Moves to the region that has the address: the last one that begins at or before it. False when it is in none. */
  #find(guestAddress: number): boolean {
    const regions = this.#regions
    let low = 0
    let high = regions.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (regions[middle]!.guestAddress <= guestAddress) low = middle + 1
      else high = middle
    }
    if (low === 0) return false
    const region = regions[low - 1]!
    if (guestAddress >= region.guestAddress + region.sizeBytes) return false
    this.#start = region.guestAddress
    this.#end = region.guestAddress + region.sizeBytes
    this.#delta = region.address - region.guestAddress
    return true
  }

  #translatePieces(guestAddress: number, length: number, target: Segments): boolean {
    let at = guestAddress
    let left = length
    while (left > 0) {
      if (!this.#find(at)) return false
      const piece = Math.min(left, this.#end - at)
      if (target.count === target.capacity) target.reserve(2 * target.count)
      target.push(at + this.#delta, piece)
      at += piece
      left -= piece
    }
    return true
  }

  #look(hostAddress: number): void {
    const index = this.#regions.findIndex(
      ({ address, sizeBytes }) => hostAddress >= address && hostAddress < address + sizeBytes,
    )
    assert(index >= 0, 'an address that is looked at was translated before')
    const { address, sizeBytes } = this.#regions[index]!
    const number = Math.floor((hostAddress - address) / WINDOW_STEP)
    const start = number * WINDOW_STEP
    const size = Math.min(WINDOW, sizeBytes - start)
    this.view = this.#windows[index]![number] ??= new DataView(viewMemory(address + start, size))
    this.#viewStart = address + start
    this.#viewEnd = this.#viewStart + size
  }
}
