/** A disk of a back end, on the control thread: its geometry, and the bdev that it becomes. */
import type { BdevInfo } from '../bdev/bdev.ts'
import { BLOCK_SIZE_MAX } from '../bdev/geometry.ts'
import { IoType } from '../bdev/io.ts'
import { deriveUuid } from '../bdev/uuid.ts'
import { RpcError } from '../core/errors.ts'
import type { DeviceKind, Unit } from './messages.ts'

/** What is known of a disk, in bytes and blocks. */
export interface UnitDescription {
  readonly unit: Unit
  readonly blockSize: number
  readonly blockCount: number
  readonly physicalBlockSize: number
  readonly readOnly: boolean
  /** The optimal size of a write, in blocks; 0 for no advice. */
  readonly writeSize: number
  /** In blocks; 0 for no advice. */
  readonly unmapGranularity: number
}

export interface ControllerIdentity {
  readonly name: string
  readonly path: string
  readonly kind: DeviceKind
}

export function describeUnit(
  { name, path, kind }: ControllerIdentity,
  description: UnitDescription,
  virtio: Readonly<Record<string, unknown>>,
): BdevInfo {
  const { unit, blockSize, physicalBlockSize, writeSize, unmapGranularity } = description
  const supports = new Set<IoType>([IoType.READ, IoType.WRITE])
  if (unit.hasCache) supports.add(IoType.FLUSH)
  if (unit.unmapBlocks > 0) supports.add(IoType.UNMAP)
  if (unit.zeroesBlocks > 0) supports.add(IoType.WRITE_ZEROES)
  const perPhysical = physicalBlockSize / blockSize
  return {
    name: bdevName(name, kind, unit.target),
    aliases: [],
    driver: 'virtio',
    product: kind === 'blk' ? 'VirtioBlk Disk' : 'Virtio SCSI Disk',
    // Nothing about the medium itself is told, so this is what it is reached by.
    uuid: deriveUuid('virtio', name, path, String(unit.target)),
    blockSize,
    physicalBlockSize,
    blockCount: description.blockCount,
    supports,
    preferred: {
      writeAlignment: perPhysical > 1 ? perPhysical : 0,
      writeGranularity: perPhysical > 1 ? perPhysical : 0,
      writeSize,
      unmapAlignment: 0,
      unmapGranularity,
    },
    writeCache: unit.hasCache,
    readOnly: description.readOnly,
    bases: [],
    device: unit,
    driverSpecific: { virtio, ...(kind === 'scsi' && { scsi: { target: unit.target, lun: 0 } }) },
  }
}

export function bdevName(controller: string, kind: DeviceKind, target: number): string {
  return kind === 'blk' ? controller : `${controller}t${target}`
}

/** Throws `RpcError` EINVAL for what no bdev can be. */
export function checkDescription(name: string, { blockSize, blockCount, unit }: UnitDescription): void {
  const isPower = blockSize >= 512 && blockSize <= BLOCK_SIZE_MAX && (blockSize & (blockSize - 1)) === 0
  if (!isPower || blockCount < 1 || blockCount > Number.MAX_SAFE_INTEGER / blockSize) {
    throw new RpcError(
      'EINVAL',
      `${name} says that it has ${blockCount} blocks of ${blockSize} bytes: look at the back end`,
    )
  }
  if (unit.transferBlocks < 1) {
    throw new RpcError(
      'EINVAL',
      `${name} takes only ${unit.segmentBytes} bytes in a segment of a request, too few for its blocks of ${blockSize} bytes: look at the back end`,
    )
  }
}

/** Why a disk is not the one that was there before the connection was lost; its size may differ. */
export function whyAnother(before: BdevInfo, now: UnitDescription): string | undefined {
  const unit = before.device as Unit
  if (now.blockSize !== before.blockSize)
    return `has blocks of ${now.blockSize} bytes, ${before.blockSize} before`
  if (now.readOnly && !before.readOnly) return 'is read only now'
  if (now.unit.hasCache && !unit.hasCache) return 'has a write cache now'
  const limits = ['segmentBytes', 'transferBlocks', 'unmapBlocks', 'zeroesBlocks'] as const
  for (const limit of limits) {
    if (now.unit[limit] < unit[limit]) return `has ${limit} ${now.unit[limit]}, ${unit[limit]} before`
  }
  return undefined
}
