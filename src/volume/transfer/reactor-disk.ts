/** I/O that the control thread asks of a reactor: for copies, which a few allocations a MiB do not slow down. */
import type { Channel } from '../../bdev/channel.ts'
import { ExtentState, Extents } from '../../bdev/extents.ts'
import { BdevIo, type IoOwner, type IoType } from '../../bdev/io.ts'
import type { ReactorBdevs } from '../../bdev/reactor-bdevs.ts'
import type { Reactor } from '../../reactor/reactor.ts'

export const DiskTopic = {
  OPEN: 'disk.open',
  CLOSE: 'disk.close',
  IO: 'disk.io',
  EXTENTS: 'disk.extents',
} as const

export interface DiskOpen {
  readonly id: number
  readonly bdev: string
}

export interface DiskIo {
  readonly id: number
  readonly type: IoType
  readonly firstBlock: number
  readonly blockCount: number
  /** Where the data is: `blockCount` blocks; 0 for I/O without. */
  readonly address: number
}

export interface DiskRange {
  readonly id: number
  readonly firstBlock: number
  readonly blockCount: number
}

/** From the start of the range on, in blocks; the list may end before the range does, but is never empty. */
export type DiskExtents = readonly { readonly blockCount: number; readonly isZero: boolean }[]

const EXTENTS_AT_ONCE = 256

export class ReactorDisks implements IoOwner {
  readonly #channels = new Map<number, Channel>()
  readonly #extents = new Extents(EXTENTS_AT_ONCE)

  constructor(reactor: Reactor, bdevs: ReactorBdevs) {
    const { control } = reactor
    control.on<DiskOpen>(DiskTopic.OPEN, ({ id, bdev }) => void this.#channels.set(id, bdevs.open(bdev)))
    control.on<number>(DiskTopic.CLOSE, id => {
      const channel = this.#channels.get(id)
      this.#channels.delete(id)
      if (channel !== undefined) bdevs.close(channel)
    })
    control.on<DiskIo>(DiskTopic.IO, io => this.#submit(io))
    control.on<DiskRange>(DiskTopic.EXTENTS, range => this.#tellExtents(range))
  }

  ioDone(io: BdevIo): void {
    const resolve = io.context as (status: number) => void
    resolve(io.status)
  }

  #submit({ id, type, firstBlock, blockCount, address }: DiskIo): Promise<number> {
    const channel = this.#channels.get(id)!
    return new Promise(resolve => {
      const io = new BdevIo(this)
      Object.assign(io, { type, firstBlock, blockCount, context: resolve })
      if (address !== 0) io.segments.set(address, blockCount * channel.info.blockSize)
      channel.submit(io)
    })
  }

  #tellExtents({ id, firstBlock, blockCount }: DiskRange): DiskExtents {
    const extents = this.#extents
    this.#channels.get(id)!.extents(firstBlock, blockCount, extents)
    return Array.from({ length: extents.count }, (_, i) => ({
      blockCount: extents.lengths[i]!,
      isZero: (extents.states[i]! & ExtentState.ZERO) !== 0,
    }))
  }
}
