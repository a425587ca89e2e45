/** What the configuration space of a virtio block device says (virtio specification 1.2, section 5.2.4). */
import type { Field } from '../core/struct.ts'
import { BlkConfig, BlkFeature, SECTOR_SIZE } from '../spec/virtio-blk.ts'
import { BufferPool } from '../sys/memory.ts'
import type { UnitDescription } from './unit-description.ts'

/** `segmentsMax`: of data, in one request. */
export function readBlkConfig(
  controller: number,
  features: bigint,
  config: DataView,
  segmentsMax: number,
): UnitDescription {
  const has = (feature: bigint): boolean => (features & feature) !== 0n
  const blockSize = has(BlkFeature.BLK_SIZE) ? BlkConfig.blkSize.get(config, 0) : SECTOR_SIZE
  const sectorsPerBlock = blockSize / SECTOR_SIZE
  const blocks = (sectors: number): number => Math.floor(sectors / sectorsPerBlock)
  /** QEMU's storage daemon has the feature and leaves the limit 0, meaning none. */
  const limited = (feature: bigint, limit: Field, most: number): number =>
    Math.min((has(feature) && limit.get(config, 0)) || most, most)
  const segmentBytes = limited(BlkFeature.SIZE_MAX, BlkConfig.sizeMax, BufferPool.MAX_SIZE)
  const segments = limited(BlkFeature.SEG_MAX, BlkConfig.segMax, segmentsMax)
  const transferBytes = Math.min(segmentBytes * segments, BufferPool.MAX_SIZE)
  // A device that can switch says what it does at the moment.
  const isWriteBack = !has(BlkFeature.CONFIG_WCE) || BlkConfig.writeback.get(config, 0) !== 0
  const exponent = has(BlkFeature.TOPOLOGY) ? BlkConfig.physicalBlockExp.get(config, 0) : 0
  return {
    unit: {
      controller,
      kind: 'blk',
      target: 0,
      segmentBytes,
      transferBlocks: Math.floor(transferBytes / blockSize),
      unmapBlocks: has(BlkFeature.DISCARD) ? blocks(BlkConfig.maxDiscardSectors.get(config, 0)) : 0,
      zeroesBlocks: has(BlkFeature.WRITE_ZEROES) ? blocks(BlkConfig.maxWriteZeroesSectors.get(config, 0)) : 0,
      hasCache: has(BlkFeature.FLUSH) && isWriteBack,
    },
    blockSize,
    blockCount: blocks(BlkConfig.capacity.get(config, 0)),
    physicalBlockSize: exponent < 8 ? Math.min(blockSize * 2 ** exponent, 65536) : blockSize,
    readOnly: has(BlkFeature.RO),
    writeSize: has(BlkFeature.TOPOLOGY) ? BlkConfig.optIoSize.get(config, 0) : 0,
    unmapGranularity: has(BlkFeature.DISCARD) ? blocks(BlkConfig.discardSectorAlignment.get(config, 0)) : 0,
  }
}
