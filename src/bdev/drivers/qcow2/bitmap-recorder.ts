/** Dirty bitmaps as the data path knows them: memory in which each write sets bits. */
import { bytesAt } from '../../../sys/memory.ts'

/** Plain data: cloned to the reactor. The memory is the control thread's. */
export interface RecordingBitmap {
  readonly address: number
  readonly sizeBytes: number
  readonly granularityBits: number
}

export class BitmapRecorder {
  readonly #bitmaps: readonly { readonly bits: Uint8Array; readonly granularity: number }[]

  constructor(bitmaps: readonly RecordingBitmap[]) {
    this.#bitmaps = bitmaps.map(({ address, sizeBytes, granularityBits }) => ({
      bits: bytesAt(address, sizeBytes),
      granularity: 2 ** granularityBits,
    }))
  }

  /** In bytes of the disk. */
  record(offset: number, length: number): void {
    const bitmaps = this.#bitmaps
    for (let i = 0; i < bitmaps.length; i++) {
      const { bits, granularity } = bitmaps[i]!
      setBits(bits, Math.floor(offset / granularity), Math.floor((offset + length - 1) / granularity))
    }
  }
}

/** Sets the bits from `first` to `last`, both included, the least significant one of a byte first. */
export function setBits(bits: Uint8Array, first: number, last: number): void {
  const firstByte = Math.floor(first / 8)
  const lastByte = Math.floor(last / 8)
  const head = 0xff << (first % 8)
  const tail = 0xff >>> (7 - (last % 8))
  if (firstByte === lastByte) {
    bits[firstByte]! |= head & tail
    return
  }
  bits[firstByte]! |= head
  bits.fill(0xff, firstByte + 1, lastByte)
  bits[lastByte]! |= tail
}
