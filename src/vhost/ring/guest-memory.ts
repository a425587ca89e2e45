/**
 * The memory of a guest, as its queues on one reactor see it. Every address that a guest names is checked and translated
 * here, and nowhere else:
 *
 *   guest address   in descriptors
 *   user address    of the front end's process, in the addresses of rings   --->   host address: of this process
 */

import type { Segments } from '../../bdev/io.ts'
import { assert } from '../../core/assert.ts'
import { ProtocolError } from '../../core/errors.ts'
import { viewMemory } from '../../sys/libc.ts'
import type { MappedRegion } from '../messages.ts'
import type { DirtyLog } from './dirty-log.ts'

/** Views of more are slow or abort the process: see `sys/memory.ts`. */
const WINDOW = 2 ** 30
/** Windows overlap by half, so that whatever is not longer than that lies within one. */
const WINDOW_STEP = WINDOW / 2

const TWO_32 = 0x1_0000_0000
const NOTHING = new DataView(new ArrayBuffer(0))

// Places in `#found`: the region in which the last address was found.
const START = 0
const END = 1
/** What is added to one of its guest addresses for the host address. */
const DELTA = 2

/**
 * Addresses that change while requests are served are kept in typed arrays, and handed to what is not inlined in one:
 * a number beyond 31 bits is an object elsewhere, and garbage.
 */
export class GuestMemory {
  /** What `locate` made visible last. */
  view: DataView = NOTHING
  /** Set while the guest is migrated: what is written to its memory has to be marked. */
  log: DirtyLog | null = null

  /** In ascending order of `guestAddress`. */
  #regions: readonly MappedRegion[] = []
  // The same regions as numbers.
  #starts = new Float64Array()
  #sizes = new Float64Array()
  #hosts = new Float64Array()
  /** For each region the views of it that were needed so far. */
  #windows: (DataView | undefined)[][] = []
  readonly #found = new Float64Array(3)
  /** The host addresses that `view` covers: first, and behind the last. */
  readonly #shown = new Float64Array(2)
  readonly #wanted = new Float64Array(1)

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
    const sorted = regions.toSorted((a, b) => a.guestAddress - b.guestAddress)
    this.#regions = sorted
    this.#starts = Float64Array.from(sorted, ({ guestAddress }) => guestAddress)
    this.#sizes = Float64Array.from(sorted, ({ sizeBytes }) => sizeBytes)
    this.#hosts = Float64Array.from(sorted, ({ address }) => address)
    this.#windows = sorted.map(({ sizeBytes }) => new Array(Math.ceil(sizeBytes / WINDOW_STEP)))
    this.#found.fill(0)
    this.view = NOTHING
    this.#shown.fill(0)
  }

  get regions(): readonly MappedRegion[] {
    return this.#regions
  }

  /**
   * Adds to `target` where the range lies in this process, in pieces where it goes over a region's border. False when
   * part of it is outside of the guest's memory (`target` is then of no use). The length is at least 1.
   */
  translate(guestAddress: number, length: number, target: Segments): boolean {
    const found = this.#found
    if (guestAddress >= found[START]! && guestAddress + length <= found[END]!) {
      const { count } = target
      if (count === target.addresses.length) target.reserve(2 * count)
      target.addresses[count] = guestAddress + found[DELTA]!
      target.lengths[count] = length
      target.count = count + 1
      return true
    }
    this.#wanted[0] = guestAddress
    return this.#translatePieces(length, target)
  }

  /**
   * Makes `view` cover a range of guest addresses that lies in one piece within one region, and returns its offset in it;
   * otherwise -1. The address comes as its two halves of 32 bits, signed or not. At most 512 MiB.
   */
  locateGuest(addressLow: number, addressHigh: number, size: number): number {
    const found = this.#found
    const wanted = this.#wanted
    wanted[0] = (addressHigh >>> 0) * TWO_32 + (addressLow >>> 0)
    if ((wanted[0]! < found[START]! || wanted[0]! >= found[END]!) && !this.#find()) return -1
    if (wanted[0]! + size > found[END]!) return -1
    wanted[0] = wanted[0]! + found[DELTA]!
    const shown = this.#shown
    if (wanted[0]! < shown[0]! || wanted[0]! + size > shown[1]!) this.#show()
    return wanted[0]! - shown[0]!
  }

  /** Where a range of addresses of the front end's process lies in this one, if that is one piece; otherwise 0. */
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
    const shown = this.#shown
    if (hostAddress < shown[0]! || hostAddress + size > shown[1]!) {
      this.#wanted[0] = hostAddress
      this.#show()
    }
    return hostAddress - shown[0]!
  }

  /** The same for what lies `offset` bytes into a segment of a request. */
  locateIn(segments: Segments, index: number, offset: number, size: number): number {
    const address = segments.addresses[index]! + offset
    const shown = this.#shown
    if (address < shown[0]! || address + size > shown[1]!) {
      this.#wanted[0] = address
      this.#show()
    }
    return address - shown[0]!
  }

  /** Marks that a range of host addresses was written to. For a guest that is migrated. */
  mark(hostAddress: number, sizeBytes: number): void {
    this.log?.mark(this.guestOf(hostAddress), sizeBytes)
  }

  /** Moves to the region that has the wanted guest address: the last that begins at or before it. False when none has. */
  #find(): boolean {
    const starts = this.#starts
    const address = this.#wanted[0]!
    let low = 0
    let high = starts.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (starts[middle]! <= address) low = middle + 1
      else high = middle
    }
    const index = low - 1
    if (index < 0 || address >= starts[index]! + this.#sizes[index]!) return false
    this.#found[START] = starts[index]!
    this.#found[END] = starts[index]! + this.#sizes[index]!
    this.#found[DELTA] = this.#hosts[index]! - starts[index]!
    return true
  }

  #translatePieces(length: number, target: Segments): boolean {
    const wanted = this.#wanted
    const found = this.#found
    let left = length
    while (left > 0) {
      if (!this.#find()) return false
      const { count } = target
      if (count === target.addresses.length) target.reserve(2 * count)
      const piece = Math.min(left, found[END]! - wanted[0]!)
      target.addresses[count] = wanted[0]! + found[DELTA]!
      target.lengths[count] = piece
      target.count = count + 1
      wanted[0]! += piece
      left -= piece
    }
    return true
  }

  /** Makes `view` the window that has the wanted host address and all of what may follow it. */
  #show(): void {
    const hosts = this.#hosts
    const sizes = this.#sizes
    const address = this.#wanted[0]!
    let index = 0
    while (index < hosts.length && !(address >= hosts[index]! && address < hosts[index]! + sizes[index]!))
      index++
    assert(index < hosts.length, 'what is looked at was translated before')
    const number = Math.floor((address - hosts[index]!) / WINDOW_STEP)
    const windows = this.#windows[index]!
    const window = windows[number] ?? this.#open(index, number)
    this.view = window
    this.#shown[0] = hosts[index]! + number * WINDOW_STEP
    this.#shown[1] = this.#shown[0]! + window.byteLength
  }

  #open(index: number, number: number): DataView {
    const offset = number * WINDOW_STEP
    const size = Math.min(WINDOW, this.#sizes[index]! - offset)
    const window = new DataView(viewMemory(this.#hosts[index]! + offset, size))
    this.#windows[index]![number] = window
    return window
  }
}
