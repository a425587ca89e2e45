/** What a virtio-blk disk over a bdev is to a front end: features and configuration space. */
import type { BdevInfo } from '../../bdev/bdev.ts'
import { IoType } from '../../bdev/io.ts'
import { isSupported } from '../../bdev/support.ts'
import { ProtocolError } from '../../core/errors.ts'
import { VirtioDeviceId } from '../../spec/virtio.ts'
import { BlkConfig, BlkFeature, ID_SIZE, SECTOR_SIZE } from '../../spec/virtio-blk.ts'
import type { BlkDescription } from '../messages.ts'
import type { DeviceModel, ModelState } from '../model.ts'
import { RANGE_SECTORS_MAX, RANGES_MAX } from './limits.ts'

/** What Linux asks for, less the header and the status, fits into a ring of 128 without indirect descriptors. */
const SEG_MAX = 126

/**
 * FLUSH and CONFIG_WCE are offered even by a device without a cache, where they cost nothing: a guest keeps the features
 * it has negotiated when it is migrated, and when the daemon comes back with another device under the same name.
 */
const ALWAYS =
  BlkFeature.SEG_MAX |
  BlkFeature.BLK_SIZE |
  BlkFeature.FLUSH |
  BlkFeature.TOPOLOGY |
  BlkFeature.CONFIG_WCE |
  BlkFeature.MQ

export interface BlkModelOptions {
  readonly isReadOnly: boolean
  /** Request queues, at most. */
  readonly queueCount: number
}

export class BlkModel implements DeviceModel {
  readonly deviceId = VirtioDeviceId.BLOCK
  readonly fixedQueues = 0
  readonly features: bigint
  readonly info: BdevInfo
  readonly #options: BlkModelOptions
  #isRemoved = false

  /** The registry's own `info`, so that a resize is seen here. */
  constructor(info: BdevInfo, options: BlkModelOptions) {
    this.info = info
    this.#options = options
    this.features = ALWAYS
    if (this.#isReadOnly) this.features |= BlkFeature.RO
    // What the channel would emulate by writes, the guest does as well by itself.
    else {
      if (info.supports.has(IoType.UNMAP)) this.features |= BlkFeature.DISCARD
      if (info.supports.has(IoType.WRITE_ZEROES)) this.features |= BlkFeature.WRITE_ZEROES
    }
  }

  /** The bdev is gone: the guest keeps its disk, and every request fails. */
  remove(): void {
    this.#isRemoved = true
  }

  /**
   * Fields of features that were not negotiated are filled as well: some front ends read the space before they negotiate,
   * and no driver looks at them.
   */
  config(_features: bigint, state: ModelState): Uint8Array {
    const { info } = this
    const bytes = new Uint8Array(BlkConfig.size)
    const view = new DataView(bytes.buffer)
    const physicalBlocks = info.physicalBlockSize / info.blockSize
    const minIoBlocks = info.preferred?.writeGranularity || physicalBlocks
    const discardBlocks = info.preferred?.unmapGranularity || 1
    const values = [
      [BlkConfig.capacity, (info.blockCount * info.blockSize) / SECTOR_SIZE],
      [BlkConfig.segMax, SEG_MAX],
      [BlkConfig.blkSize, info.blockSize],
      [BlkConfig.physicalBlockExp, Math.floor(Math.log2(physicalBlocks))],
      [BlkConfig.minIoSize, Math.min(minIoBlocks, 0xffff)],
      [BlkConfig.optIoSize, info.preferred?.writeSize ?? 0],
      [BlkConfig.writeback, this.#isCached(state) ? 1 : 0],
      [BlkConfig.numQueues, this.#options.queueCount],
      [BlkConfig.maxDiscardSectors, RANGE_SECTORS_MAX],
      [BlkConfig.maxDiscardSeg, RANGES_MAX],
      [BlkConfig.discardSectorAlignment, (discardBlocks * info.blockSize) / SECTOR_SIZE],
      [BlkConfig.maxWriteZeroesSectors, RANGE_SECTORS_MAX],
      [BlkConfig.maxWriteZeroesSeg, RANGES_MAX],
      [BlkConfig.writeZeroesMayUnmap, 1],
    ] as const
    for (const [field, value] of values) field.set(view, 0, value)
    return bytes
  }

  writeConfig(offset: number, bytes: Uint8Array, state: ModelState): boolean {
    const { writeback } = BlkConfig
    if (offset !== writeback.offset || bytes.length !== writeback.size) {
      throw new ProtocolError(
        `the driver writes ${bytes.length} bytes at ${offset} of the configuration space: only byte ${writeback.offset}, writeback, can be written`,
        offset,
      )
    }
    if (bytes[0]! > 1) throw new ProtocolError(`writeback is 0 or 1, not ${bytes[0]}`, offset)
    const wanted = bytes[0] === 1
    const isChanged = state.writeback !== wanted
    state.writeback = wanted
    return isChanged
  }

  describe(features: bigint, state: ModelState): BlkDescription {
    const { info } = this
    const canFlush = (features & BlkFeature.FLUSH) !== 0n
    return {
      kind: 'blk',
      bdev: this.#isRemoved ? null : info.name,
      readOnly: this.#isReadOnly,
      writeThrough: info.writeCache && !(canFlush && state.writeback),
      serial: serialOf(info),
    }
  }

  get #isReadOnly(): boolean {
    return this.#options.isReadOnly || !isSupported(this.info, IoType.WRITE)
  }

  /** A device without a cache says so, and the guest need not flush. */
  #isCached(state: ModelState): boolean {
    return this.info.writeCache && state.writeback
  }
}

/** The bdev's name, as SPDK has it; a name that does not fit would not tell disks apart, so then it is from the UUID. */
function serialOf({ name, uuid }: BdevInfo): string {
  if (Buffer.byteLength(name) <= ID_SIZE) return name
  return uuid.replaceAll('-', '').slice(0, ID_SIZE)
}
