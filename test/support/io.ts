/** I/O to a channel as promises over plain bytes, for tests. */
import type { Channel } from '../../src/bdev/channel.ts'
import { BdevIo, type IoOwner, IoType } from '../../src/bdev/io.ts'
import { bytesAt, mapAnonymous, unmap } from '../../src/sys/memory.ts'
import type { LocalReactorGroup } from './reactor.ts'

export interface IoRequest {
  readonly type: IoType
  readonly firstBlock?: number
  readonly blockCount?: number
  readonly fua?: boolean
  /** What is written or compared. */
  readonly data?: Uint8Array
  /** Into how many segments the data is cut, at odd places. */
  readonly segments?: number
}

/** One I/O on its way. */
export class PendingIo implements IoOwner {
  readonly io: BdevIo
  /** One for each time that it completed: must become exactly one. */
  readonly statuses: number[] = []
  readonly #address: number
  readonly #size: number

  constructor(channel: Channel, request: IoRequest) {
    const { type, firstBlock = 0, blockCount = 0, fua = false, data, segments = 1 } = request
    const halves = type === IoType.COMPARE_AND_WRITE ? 2 : 1
    this.#size = blockCount * channel.info.blockSize * halves
    // One byte of slack makes the segments misaligned, as buffers of a network are.
    const slack = segments > 1 ? 1 : 0
    this.#address = mapAnonymous(Math.max(this.#size, 1) + segments * slack)
    this.io = new BdevIo(this, segments)
    this.io.type = type
    this.io.fua = fua
    this.io.firstBlock = firstBlock
    this.io.blockCount = blockCount
    if (this.#carriesData) {
      this.#cut(segments, slack)
      if (data !== undefined) this.#put(data)
    }
    channel.submit(this.io)
  }

  get isDone(): boolean {
    return this.statuses.length > 0
  }

  get status(): number | undefined {
    return this.statuses[0]
  }

  ioDone(io: BdevIo): void {
    this.statuses.push(io.status)
  }

  /** The data, after a read. */
  get data(): Uint8Array {
    const { segments } = this.io
    const parts = Array.from({ length: segments.count }, (_, i) =>
      bytesAt(segments.addresses[i]!, segments.lengths[i]!),
    )
    return Buffer.concat(parts)
  }

  free(): void {
    const { count } = this.io.segments
    unmap(this.#address, Math.max(this.#size, 1) + (count > 1 ? count : 0))
  }

  get #carriesData(): boolean {
    return (
      this.io.type !== IoType.FLUSH && this.io.type !== IoType.UNMAP && this.io.type !== IoType.WRITE_ZEROES
    )
  }

  #cut(count: number, slack: number): void {
    let left = this.#size
    let at = this.#address
    for (let i = 0; i < count && left > 0; i++) {
      const length = i === count - 1 ? left : Math.min(left, Math.max(1, Math.floor(this.#size / count)))
      at += slack
      this.io.segments.push(at, length)
      at += length
      left -= length
    }
  }

  #put(data: Uint8Array): void {
    let offset = 0
    const { segments } = this.io
    for (let i = 0; i < segments.count; i++) {
      bytesAt(segments.addresses[i]!, segments.lengths[i]!).set(
        data.subarray(offset, offset + segments.lengths[i]!),
      )
      offset += segments.lengths[i]!
    }
  }
}

/** Submits, waits for the end, and returns the status and the data. */
export async function doIo(
  reactors: LocalReactorGroup,
  channel: Channel,
  request: IoRequest,
): Promise<{ status: number; data: Uint8Array }> {
  const pending = new PendingIo(channel, request)
  await reactors.until(() => pending.isDone)
  reactors.poll()
  if (pending.statuses.length !== 1) throw new Error(`completed ${pending.statuses.length} times`)
  const answer = { status: pending.statuses[0]!, data: Uint8Array.from(pending.data) }
  pending.free()
  return answer
}
