/** The device's side of a split virtqueue, by hand from the specification: it looks at memory and nothing else. */
import { bytesAt, viewAt } from '../../src/sys/memory.ts'

export interface Piece {
  readonly address: number
  readonly length: number
  readonly isWritable: boolean
}

export interface Chain {
  readonly head: number
  readonly pieces: readonly Piece[]
}

const WRITE = 2
const NEXT = 1

/** Virtual I/O Device specification 1.2, section 2.7. Descriptors name addresses of this process. */
export class DeviceSide {
  readonly #size: number
  readonly #descriptors: DataView
  readonly #available: DataView
  readonly #used: DataView
  #taken = 0

  /** `address`: where the three parts follow each other, each at a multiple of 64. */
  constructor(address: number, size: number) {
    const aligned = (bytes: number): number => Math.ceil(bytes / 64) * 64
    const available = aligned(size * 16)
    const used = available + aligned(6 + size * 2)
    this.#size = size
    this.#descriptors = viewAt(address, size * 16)
    this.#available = viewAt(address + available, 6 + size * 2)
    this.#used = viewAt(address + used, 6 + size * 8)
  }

  /** Everything that was made available since the last call. */
  take(): Chain[] {
    const chains: Chain[] = []
    for (const index = this.#available.getUint16(2, true); this.#taken !== index; ) {
      const head = this.#available.getUint16(4 + (this.#taken % this.#size) * 2, true)
      chains.push({ head, pieces: this.#pieces(head) })
      this.#taken = (this.#taken + 1) & 0xffff
    }
    return chains
  }

  /** Goes on as a back end does that is told a base. */
  resume(base: number): void {
    this.#taken = base
  }

  use({ head }: { readonly head: number }, length: number): void {
    const index = this.#used.getUint16(2, true)
    const at = 4 + (index % this.#size) * 8
    this.#used.setUint32(at, head, true)
    this.#used.setUint32(at + 4, length, true)
    this.#used.setUint16(2, index + 1, true)
  }

  /** Whether the driver wants an interrupt, where no event index was agreed on. */
  get wantsInterrupt(): boolean {
    return this.#available.getUint16(0, true) === 0
  }

  #pieces(head: number): Piece[] {
    const pieces: Piece[] = []
    for (let i = head; ; i = this.#descriptors.getUint16(i * 16 + 14, true)) {
      const flags = this.#descriptors.getUint16(i * 16 + 12, true)
      pieces.push({
        address: Number(this.#descriptors.getBigUint64(i * 16, true)),
        length: this.#descriptors.getUint32(i * 16 + 8, true),
        isWritable: (flags & WRITE) !== 0,
      })
      if ((flags & NEXT) === 0) return pieces
    }
  }
}

/** The bytes of a piece as hex, four at a time. */
export function dump({ address, length }: Piece): string {
  const hex = Buffer.from(bytesAt(address, length)).toString('hex')
  return hex.replace(/(.{8})(?=.)/g, '$1 ')
}

export const bytesOf = ({ address, length }: Piece): Uint8Array => bytesAt(address, length)
