/**
 * The memory in which requests in flight are noted ("Inflight I/O tracking"). This process makes it, the front end keeps
 * it and gives it back to the next process:
 *
 *   | queue 0 | queue 1 | … | note |
 *
 * The note is ours: what the front end has told a session and will not tell the next one. Whoever does not know it finds
 * memory that is longer than needed.
 */
import { struct, u8, u32 } from '../../core/struct.ts'
import {
  INFLIGHT_ALIGNMENT,
  inflightPackedBytes,
  inflightSplitBytes,
  QUEUE_SIZE_MAX,
} from '../../spec/virtqueue.ts'
import { viewAt } from '../../sys/memory.ts'
import { createSharedMemory, mapShared, type SharedMapping } from '../../sys/shared-memory.ts'
import type { SharedPart } from '../messages.ts'
import { mapOfPeer } from './peer-mapping.ts'
import { fault, QUEUES_MAX } from './protocol.ts'

const Note = struct(INFLIGHT_ALIGNMENT, { magic: u32(0), writeback: u8(4) })
/** `qpir`, and a version. */
const NOTE_MAGIC = 0x7169_7201

/** Far more than any number of queues needs, and as much as one view can show. */
const REGION_SIZE_MAX = 2 ** 30

/** What the protocol says of the memory. */
export interface InflightShape {
  readonly mmapSize: number
  readonly mmapOffset: number
  readonly queueCount: number
  /** Entries, at most, of each queue. */
  readonly queueSize: number
}

const queueBytes = (queueSize: number, isPacked: boolean): number =>
  isPacked ? inflightPackedBytes(queueSize) : inflightSplitBytes(queueSize)

function checkShape({ queueCount, queueSize }: Pick<InflightShape, 'queueCount' | 'queueSize'>): void {
  if (queueCount < 1 || queueCount > QUEUES_MAX)
    fault(`is for ${queueCount} queues, not 1 to ${QUEUES_MAX}`, 16)
  if (queueSize < 1 || queueSize > QUEUE_SIZE_MAX) {
    fault(`is for queues of ${queueSize} entries, not 1 to ${QUEUE_SIZE_MAX}`, 18)
  }
}

/**
 * New memory for so many queues, noted as `writeback`. The caller closes the descriptor. It is enough for either layout:
 * QEMU 7.2 asks for that of a SCSI controller before it sends the features that say which.
 */
export function allocateInflight(
  wanted: Pick<InflightShape, 'queueCount' | 'queueSize'>,
  writeback: boolean,
): { readonly descriptor: number; readonly mmapSize: number } {
  checkShape(wanted)
  const { queueCount, queueSize } = wanted
  const sizeBytes = Math.max(queueBytes(queueSize, false), queueBytes(queueSize, true))
  const mmapSize = queueCount * sizeBytes + Note.size
  const descriptor = createSharedMemory('qpair-inflight', mmapSize)
  const mapping = mapShared(descriptor, mmapSize - Note.size, Note.size)
  const view = viewAt(mapping.address, Note.size)
  Note.magic.set(view, 0, NOTE_MAGIC)
  Note.writeback.set(view, 0, writeback ? 1 : 0)
  mapping.unmap()
  return { descriptor, mmapSize }
}

/** Such memory as the front end has given it back. */
export class InflightRegion {
  readonly #shape: InflightShape
  readonly #mapping: SharedMapping
  /** Null in memory that another program made. */
  readonly #note: DataView | null

  /** Maps it; the descriptor stays the caller's. Throws `ProtocolError`. */
  constructor(descriptor: number, shape: InflightShape) {
    checkShape(shape)
    const { mmapSize, mmapOffset } = shape
    if (mmapSize === 0 || mmapSize > REGION_SIZE_MAX || mmapOffset + mmapSize > Number.MAX_SAFE_INTEGER) {
      fault(`has inflight memory of ${mmapSize} bytes at ${mmapOffset}`, 0)
    }
    this.#shape = shape
    this.#mapping = mapOfPeer('inflight memory', descriptor, mmapOffset, mmapSize)
    this.#note = this.#findNote()
  }

  /** What the front end has set, if this is known. */
  get writeback(): boolean | null {
    return this.#note === null ? null : Note.writeback.get(this.#note, 0) === 1
  }

  noteWriteback(value: boolean): void {
    if (this.#note !== null) Note.writeback.set(this.#note, 0, value ? 1 : 0)
  }

  /** Where queue `index`, of `size` entries, notes its requests. Throws `ProtocolError` when it has no place. */
  partOf(index: number, size: number, isPacked: boolean): SharedPart {
    const { queueCount, queueSize, mmapSize } = this.#shape
    if (index >= queueCount) fault(`starts queue ${index}, and the inflight memory is for ${queueCount}`, 0)
    if (size > queueSize) {
      fault(`starts queue ${index} of ${size} entries, and the inflight memory has ${queueSize} for each`, 0)
    }
    const sizeBytes = queueBytes(queueSize, isPacked)
    if ((index + 1) * sizeBytes > mmapSize) {
      fault(
        `starts queue ${index}, which needs ${(index + 1) * sizeBytes} bytes of inflight memory, not ${mmapSize}`,
        0,
      )
    }
    return { address: this.#mapping.address + index * sizeBytes, sizeBytes }
  }

  unmap(): void {
    this.#mapping.unmap()
  }

  #findNote(): DataView | null {
    const { address, sizeBytes } = this.#mapping
    if (sizeBytes < Note.size) return null
    const view = viewAt(address + sizeBytes - Note.size, Note.size)
    return Note.magic.get(view, 0) === NOTE_MAGIC ? view : null
  }
}
