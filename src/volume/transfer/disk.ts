/** A bdev as an end of a copy. */
import type { BdevInfo } from '../../bdev/bdev.ts'
import { IoType } from '../../bdev/io.ts'
import type { BdevRegistry } from '../../bdev/registry.ts'
import { RpcError } from '../../core/errors.ts'
import type { ReactorGroup } from '../../reactor/group.ts'
import { Status, statusName } from '../../spec/nvme-status.ts'
import type { Piece, Sink, Source } from './copy.ts'
import { type DiskExtents, type DiskIo, DiskTopic } from './reactor-disk.ts'

/** A copy is not in a hurry: the reactors after the first are left to those who are. */
const REACTOR = 0
/** What a driver may be asked to zero at once. */
const ZERO_BYTES = 64 << 20

let lastId = 0

export class BdevDisk implements Source, Sink {
  readonly sizeBytes: number
  readonly isZeroed: boolean
  readonly #id = ++lastId
  readonly #info: BdevInfo
  readonly #reactors: ReactorGroup
  readonly #release: () => void

  private constructor(info: BdevInfo, reactors: ReactorGroup, isZeroed: boolean, release: () => void) {
    this.#info = info
    this.#reactors = reactors
    this.#release = release
    this.isZeroed = isZeroed
    this.sizeBytes = info.blockCount * info.blockSize
  }

  /** `use`: `zeroed` for writing to a disk that reads as zeroes. */
  static async open(
    bdevs: BdevRegistry,
    reactors: ReactorGroup,
    name: string,
    owner: string,
    use: 'read' | 'write' | 'zeroed',
  ): Promise<BdevDisk> {
    const claim = bdevs.claim(name, owner, use === 'read' ? 'read' : 'exclusive_write')
    const disk = new BdevDisk(bdevs.get(name), reactors, use === 'zeroed', () => claim.release())
    try {
      await reactors.port(REACTOR).call(DiskTopic.OPEN, { id: disk.#id, bdev: name })
      return disk
    } catch (error) {
      claim.release()
      throw error
    }
  }

  async *ranges(fromBytes: number): AsyncGenerator<readonly [number, number]> {
    const { blockSize, blockCount } = this.#info
    let block = Math.floor(fromBytes / blockSize)
    while (block < blockCount) {
      const range = { id: this.#id, firstBlock: block, blockCount: blockCount - block }
      const extents = await this.#reactors.port(REACTOR).call<DiskExtents>(DiskTopic.EXTENTS, range)
      for (const extent of extents) {
        if (!extent.isZero) yield [block * blockSize, (block + extent.blockCount) * blockSize]
        block += extent.blockCount
      }
    }
  }

  read({ address }: Piece, offset: number, length: number): Promise<void> {
    return this.#io(IoType.READ, offset, length, address)
  }

  write({ address, bytes }: Piece, offset: number, length: number): Promise<void> {
    // What is copied may end within a block; the disk has all of it.
    const whole = Math.ceil(length / this.#info.blockSize) * this.#info.blockSize
    bytes.fill(0, length, whole)
    return this.#io(IoType.WRITE, offset, whole, address)
  }

  async zero(offset: number, length: number): Promise<void> {
    for (let done = 0; done < length; done += ZERO_BYTES) {
      await this.#io(IoType.WRITE_ZEROES, offset + done, Math.min(ZERO_BYTES, length - done), 0)
    }
  }

  async flush(): Promise<void> {
    if (this.#info.supports.has(IoType.FLUSH)) await this.#io(IoType.FLUSH, 0, this.sizeBytes, 0)
  }

  async close(): Promise<void> {
    try {
      await this.#reactors.port(REACTOR).call(DiskTopic.CLOSE, this.#id)
    } finally {
      this.#release()
    }
  }

  async #io(type: IoType, offset: number, length: number, address: number): Promise<void> {
    const { blockSize, name } = this.#info
    const io: DiskIo = {
      ...{ id: this.#id, type, address },
      firstBlock: offset / blockSize,
      blockCount: Math.ceil(length / blockSize),
    }
    const status = await this.#reactors.port(REACTOR).call<number>(DiskTopic.IO, io)
    if (status === Status.SUCCESS) return
    const what = type === IoType.READ ? 'read' : 'written'
    throw new RpcError(
      status === Status.CAPACITY_EXCEEDED ? 'ENOSPC' : 'EIO',
      `${name} cannot be ${what} at ${offset}: ${statusName(status)}`,
    )
  }
}
