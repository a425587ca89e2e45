/**
 * The memory that a front end shares: regions of its files, mapped into this process. A region stays mapped for as long as
 * any reactor may use it, so every change goes
 *
 *   map what is new  -->  `adopt`: the reactors go over to the new table  -->  unmap what is in it no more
 */
import { fileIdentity, type SharedMapping } from '../../sys/shared-memory.ts'
import type { MappedRegion } from '../messages.ts'
import { mapOfPeer } from './peer-mapping.ts'
import { fault, hex } from './protocol.ts'
import type { SealPolicy } from './seals.ts'

/** As many as libvhost-user and QEMU agree on: ACPI memory slots, and some for what is always there. */
export const REGIONS_MAX = 509

/** Addresses are numbers here, and sums of them have to stay exact. */
const ADDRESS_MAX = 2 ** 52

/** Of one guest, 16 TiB: several of them fit into what all may share. */
const TABLE_BYTES_MAX = 2 ** 44

/** A region as the front end describes it. All in bytes. */
export interface WantedRegion {
  readonly guestAddress: number
  readonly sizeBytes: number
  readonly userAddress: number
  /** Where in the file of the descriptor it begins. */
  readonly mmapOffset: number
}

interface Region extends MappedRegion {
  readonly mmapOffset: number
  readonly file: string
  readonly mapping: SharedMapping
}

/** Tells everybody who uses the memory. Resolves when nobody uses what is not in the table any more. */
export type Adopt = (regions: readonly MappedRegion[]) => Promise<void>

export class MemoryTable {
  readonly #seals: SealPolicy
  #regions: readonly Region[] = []
  /** All mappings that have not been undone: more than the regions only while a change is under way, or after it failed. */
  readonly #mapped = new Set<SharedMapping>()

  constructor(seals: SealPolicy) {
    this.#seals = seals
  }

  get regions(): readonly MappedRegion[] {
    return this.#regions
  }

  /** The end of the highest region, in guest addresses. */
  get guestEnd(): number {
    return Math.max(0, ...this.#regions.map(({ guestAddress, sizeBytes }) => guestAddress + sizeBytes))
  }

  /** A whole new table; `descriptors` has one for each region, and they stay the caller's. Equal regions stay mapped. */
  async replace(
    wanted: readonly WantedRegion[],
    descriptors: readonly number[],
    adopt: Adopt,
  ): Promise<void> {
    for (const region of wanted) checkRegion(region)
    checkTable(wanted)
    const next: Region[] = []
    const fresh: Region[] = []
    try {
      for (const [i, region] of wanted.entries()) {
        const descriptor = descriptors[i]!
        const kept = this.#find(region, fileIdentity(descriptor))
        next.push(kept ?? this.#map(region, descriptor))
        if (kept === undefined) fresh.push(next.at(-1)!)
      }
    } catch (error) {
      for (const { mapping } of fresh) this.#unmap(mapping)
      throw error
    }
    await this.#adopt(next, adopt)
  }

  async add(wanted: WantedRegion, descriptor: number, adopt: Adopt): Promise<void> {
    if (this.#regions.length >= REGIONS_MAX) fault(`is one region more than ${REGIONS_MAX}`, 0)
    checkRegion(wanted)
    checkTable([...this.#regions, wanted])
    await this.#adopt([...this.#regions, this.#map(wanted, descriptor)], adopt)
  }

  /** The region is known by its addresses and its size. */
  async remove(wanted: Omit<WantedRegion, 'mmapOffset'>, adopt: Adopt): Promise<void> {
    const found = this.#regions.find(
      ({ guestAddress, userAddress, sizeBytes }) =>
        guestAddress === wanted.guestAddress &&
        userAddress === wanted.userAddress &&
        sizeBytes === wanted.sizeBytes,
    )
    if (found === undefined) fault(`names ${describe(wanted)}, which is not shared`, 0)
    await this.#adopt(
      this.#regions.filter(region => region !== found),
      adopt,
    )
  }

  /** Unmaps everything. Nobody may use any of it. */
  close(): void {
    this.#regions = []
    for (const mapping of [...this.#mapped]) this.#unmap(mapping)
  }

  /** When `adopt` fails, it is not known who uses what: everything stays mapped until `close`. */
  async #adopt(next: readonly Region[], adopt: Adopt): Promise<void> {
    await adopt(next.map(toMappedRegion))
    const dropped = this.#regions.filter(region => !next.includes(region))
    this.#regions = next
    for (const { mapping } of dropped) this.#unmap(mapping)
  }

  #find(wanted: WantedRegion, file: string): Region | undefined {
    return this.#regions.find(
      region =>
        region.guestAddress === wanted.guestAddress &&
        region.userAddress === wanted.userAddress &&
        region.sizeBytes === wanted.sizeBytes &&
        region.mmapOffset === wanted.mmapOffset &&
        region.file === file,
    )
  }

  #map(wanted: WantedRegion, descriptor: number): Region {
    this.#seals.check(descriptor, describe(wanted))
    const mapping = mapOfPeer(describe(wanted), descriptor, wanted.mmapOffset, wanted.sizeBytes)
    this.#mapped.add(mapping)
    return { ...wanted, address: mapping.address, file: fileIdentity(descriptor), mapping }
  }

  #unmap(mapping: SharedMapping): void {
    this.#mapped.delete(mapping)
    mapping.unmap()
  }
}

function checkRegion(wanted: WantedRegion): void {
  const { guestAddress, userAddress, mmapOffset, sizeBytes } = wanted
  if (sizeBytes === 0) fault(`has ${describe(wanted)}: it is empty`, 0)
  for (const start of [guestAddress, userAddress, mmapOffset]) {
    if (start + sizeBytes > ADDRESS_MAX) fault(`has ${describe(wanted)} that ends beyond 2^52`, 0)
  }
}

/** User addresses may overlap: a machine may show the same memory at two places. */
function checkTable(regions: readonly Pick<WantedRegion, 'guestAddress' | 'sizeBytes'>[]): void {
  const total = regions.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  if (total > TABLE_BYTES_MAX) fault(`shares ${total} bytes of memory, more than ${TABLE_BYTES_MAX}`, 0)
  const sorted = regions.toSorted((a, b) => a.guestAddress - b.guestAddress)
  for (const [i, region] of sorted.entries()) {
    const next = sorted[i + 1]
    if (next !== undefined && region.guestAddress + region.sizeBytes > next.guestAddress) {
      fault(`has ${describe(region)} that overlaps ${describe(next)}`, 0)
    }
  }
}

const describe = ({ guestAddress, sizeBytes }: Pick<WantedRegion, 'guestAddress' | 'sizeBytes'>): string =>
  `a region of ${sizeBytes} bytes at guest address ${hex(guestAddress)}`

const toMappedRegion = ({ guestAddress, userAddress, sizeBytes, address }: Region): MappedRegion => ({
  guestAddress,
  userAddress,
  sizeBytes,
  address,
})
