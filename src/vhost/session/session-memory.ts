/** What a front end shares beside its rings' descriptors: guest memory, the log of a migration, the inflight memory. */

import {
  InflightDescription,
  LOG_PAGE_SIZE,
  LogDescription,
  MemoryRegion,
  MemoryTable as MemoryTableHeader,
  SINGLE_REGION_AT,
} from '../../spec/vhost-user.ts'
import type { SharedMapping } from '../../sys/shared-memory.ts'
import type { SharedPart } from '../messages.ts'
import { LOG_SIZE_MAX } from '../ring/dirty-log.ts'
import { allocateInflight, InflightRegion } from './inflight-region.ts'
import { MemoryTable, type WantedRegion } from './memory-table.ts'
import { mapOfPeer } from './peer-mapping.ts'
import type { FrontEndMessage } from './protocol.ts'
import { fault } from './protocol.ts'
import type { SealPolicy } from './seals.ts'
import type { SessionReactors } from './session-reactors.ts'

export class SessionMemory {
  readonly #seals: SealPolicy
  readonly #reactors: SessionReactors
  readonly #table: MemoryTable
  #log: SharedMapping | null = null
  /** In use until the reactors know of its successor. */
  #formerLog: SharedMapping | null = null
  /** VHOST_F_LOG_ALL was negotiated. */
  #isLogging = false
  #inflight: InflightRegion | null = null

  constructor(seals: SealPolicy, reactors: SessionReactors) {
    this.#seals = seals
    this.#reactors = reactors
    this.#table = new MemoryTable(seals)
  }

  get isEmpty(): boolean {
    return this.#table.regions.length === 0
  }

  async setTable({ payload, descriptors }: FrontEndMessage): Promise<void> {
    const count = MemoryTableHeader.regionCount.get(payload, 0)
    const expected = MemoryTableHeader.size + count * MemoryRegion.size
    if (payload.byteLength !== expected) {
      fault(`has ${payload.byteLength} bytes for ${count} regions, not ${expected}`, 0)
    }
    if (descriptors.length !== count) fault(`has ${descriptors.length} descriptors for ${count} regions`, 0)
    const wanted = Array.from({ length: count }, (_, i) =>
      readRegion(payload, MemoryTableHeader.size + i * MemoryRegion.size),
    )
    await this.#table.replace(wanted, descriptors, regions => this.#reactors.setMemory(regions))
    this.#checkLog()
  }

  async addRegion({ payload, descriptors }: FrontEndMessage): Promise<void> {
    const wanted = readRegion(payload, SINGLE_REGION_AT)
    await this.#table.add(wanted, descriptors[0]!, regions => this.#reactors.setMemory(regions))
    this.#checkLog()
  }

  async removeRegion({ payload }: FrontEndMessage): Promise<void> {
    const wanted = readRegion(payload, SINGLE_REGION_AT)
    await this.#table.remove(wanted, regions => this.#reactors.setMemory(regions))
  }

  async setLog({ payload, descriptors }: FrontEndMessage): Promise<void> {
    const sizeBytes = LogDescription.sizeBytes.get(payload, 0)
    const mmapOffset = LogDescription.mmapOffset.get(payload, 0)
    if (sizeBytes === 0 || sizeBytes + mmapOffset > Number.MAX_SAFE_INTEGER) {
      fault(`has a log of ${sizeBytes} bytes at ${mmapOffset}`, 0)
    }
    this.#seals.check(descriptors[0]!, 'the log')
    const before = this.#log
    this.#log = mapOfPeer('a log', descriptors[0]!, mmapOffset, Math.min(sizeBytes, LOG_SIZE_MAX))
    this.#formerLog = before
    this.#checkLog()
    await this.#tellLog()
    this.#formerLog = null
    before?.unmap()
  }

  async setLogging(isLogging: boolean): Promise<void> {
    if (isLogging === this.#isLogging) return
    this.#isLogging = isLogging
    this.#checkLog()
    await this.#tellLog()
  }

  /** New inflight memory, and the payload of the answer. The caller closes the descriptor. */
  allocateInflight(
    { payload }: FrontEndMessage,
    writeback: boolean,
  ): { readonly descriptor: number; readonly answer: Uint8Array } {
    const wanted = readInflight(payload)
    const { descriptor, mmapSize } = allocateInflight(wanted, writeback)
    // As long as the question: front ends take no other size.
    const answer = new Uint8Array(InflightDescription.size)
    const view = new DataView(answer.buffer)
    InflightDescription.mmapSize.set(view, 0, mmapSize)
    InflightDescription.mmapOffset.set(view, 0, 0)
    InflightDescription.queueCount.set(view, 0, wanted.queueCount)
    InflightDescription.queueSize.set(view, 0, wanted.queueSize)
    return { descriptor, answer: answer.subarray(0, payload.byteLength) }
  }

  /** No ring may run: what it notes would be lost. Returns what is known of the cache mode, null if nothing is. */
  setInflight({ payload, descriptors }: FrontEndMessage): boolean | null {
    this.#seals.check(descriptors[0]!, 'the inflight memory')
    const region = new InflightRegion(descriptors[0]!, readInflight(payload))
    this.#inflight?.unmap()
    this.#inflight = region
    return region.writeback
  }

  noteWriteback(value: boolean): void {
    this.#inflight?.noteWriteback(value)
  }

  inflightOf(index: number, size: number, isPacked: boolean): SharedPart | null {
    return this.#inflight?.partOf(index, size, isPacked) ?? null
  }

  /** Nobody may use any of it any more. */
  close(): void {
    this.#table.close()
    this.#log?.unmap()
    this.#formerLog?.unmap()
    this.#inflight?.unmap()
    this.#log = null
    this.#formerLog = null
    this.#inflight = null
  }

  /** A page without a bit would be lost on the way to the other machine. */
  #checkLog(): void {
    if (!this.#isLogging || this.#log === null) return
    const covered = this.#log.sizeBytes * 8 * LOG_PAGE_SIZE
    const { guestEnd } = this.#table
    if (covered < guestEnd) {
      fault(`leaves a log for ${covered} bytes of guest memory, which ends at ${guestEnd}`, 0)
    }
  }

  #tellLog(): Promise<void> {
    const log = this.#isLogging ? this.#log : null
    return this.#reactors.setLog(log === null ? null : { address: log.address, sizeBytes: log.sizeBytes })
  }
}

const readRegion = (payload: DataView, at: number): WantedRegion => ({
  guestAddress: MemoryRegion.guestAddress.get(payload, at),
  sizeBytes: MemoryRegion.sizeBytes.get(payload, at),
  userAddress: MemoryRegion.userAddress.get(payload, at),
  mmapOffset: MemoryRegion.mmapOffset.get(payload, at),
})

const readInflight = (payload: DataView) => ({
  mmapSize: InflightDescription.mmapSize.get(payload, 0),
  mmapOffset: InflightDescription.mmapOffset.get(payload, 0),
  queueCount: InflightDescription.queueCount.get(payload, 0),
  queueSize: InflightDescription.queueSize.get(payload, 0),
})
