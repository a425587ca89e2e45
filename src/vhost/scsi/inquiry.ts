/** INQUIRY: standard data (SPC-4, section 6.6) and the vital product data pages of a disk (sections 7.8 and SBC-3, 6.6). */
import { createHash } from 'node:crypto'
import type { BdevInfo } from '../../bdev/bdev.ts'
import { IoType } from '../../bdev/io.ts'
import { isSupported } from '../../bdev/support.ts'
import {
  Association,
  BlockDeviceCharacteristics,
  BlockLimits,
  CodeSet,
  Designator,
  DesignatorType,
  DeviceType,
  ExtendedInquiry,
  INQUIRY_EVPD,
  InquiryCdb,
  LogicalBlockProvisioning,
  NAA_LOCALLY_ASSIGNED,
  NON_ROTATING,
  PROVISIONING_THIN,
  QUALIFIER_NONE,
  REPORT_LUNS_UNIT,
  SPC_4,
  StandardInquiry,
  VersionDescriptor,
  VpdHeader,
  VpdPage,
} from '../../spec/scsi.ts'
import type { Handled, ScsiCommand } from './command.ts'
import {
  blocksIn,
  COMPARE_BLOCKS_MAX,
  UNMAP_DESCRIPTORS_MAX,
  UNMAP_SIZE_MAX,
  WRITE_SAME_SIZE_MAX,
} from './limits.ts'

const VENDOR = 'QPAIR'
const REVISION = '1'
/** Every target has one port. */
const RELATIVE_PORT = 1
/** The longest page. */
const PAGE_SIZE_MAX = 256

/** Writes a page behind its header, returns its size with the header. */
type WritePage = (view: DataView, info: BdevInfo) => number

/** In ascending order, as page 00h lists them. */
const PAGES = new Map<number, WritePage>([
  [VpdPage.SUPPORTED_PAGES, writeSupportedPages],
  [VpdPage.UNIT_SERIAL_NUMBER, (view, info) => writeAscii(view, VpdHeader.size, info.uuid)],
  [VpdPage.DEVICE_IDENTIFICATION, writeIdentification],
  [VpdPage.EXTENDED_INQUIRY, writeExtendedInquiry],
  [VpdPage.BLOCK_LIMITS, writeBlockLimits],
  [VpdPage.BLOCK_DEVICE_CHARACTERISTICS, writeCharacteristics],
  [VpdPage.LOGICAL_BLOCK_PROVISIONING, writeProvisioning],
])

export function inquiry(command: ScsiCommand): Handled {
  const { cdb, info } = command
  const flags = InquiryCdb.flags.get(cdb, 0)
  const page = InquiryCdb.page.get(cdb, 0)
  if ((flags & ~INQUIRY_EVPD) !== 0) return command.refuseField(1)
  if (flags === 0 && page !== 0) return command.refuseField(InquiryCdb.page.offset)
  const view = command.clearScratch(PAGE_SIZE_MAX)
  if (flags === 0) {
    writeStandard(view, DeviceType.DISK, info.product)
    return command.reply(StandardInquiry.size, InquiryCdb.allocationLength.get(cdb, 0))
  }
  const write = PAGES.get(page)
  if (write === undefined) return command.refuseField(InquiryCdb.page.offset)
  const size = write(view, info)
  VpdHeader.page.set(view, 0, page)
  VpdHeader.length.set(view, 0, size - VpdHeader.size)
  return command.reply(size, InquiryCdb.allocationLength.get(cdb, 0))
}

/** Of a LUN that no unit has, and of the well-known unit. */
export function inquiryElsewhere(command: ScsiCommand, lun: number): Handled {
  const { cdb } = command
  if (InquiryCdb.flags.get(cdb, 0) !== 0) return command.refuseField(1)
  const view = command.clearScratch(PAGE_SIZE_MAX)
  if (lun === REPORT_LUNS_UNIT) {
    writeStandard(view, DeviceType.WELL_KNOWN, 'REPORT LUNS')
  } else {
    writeStandard(view, DeviceType.UNKNOWN, '')
    StandardInquiry.qualifier.set(view, 0, QUALIFIER_NONE)
  }
  return command.reply(StandardInquiry.size, InquiryCdb.allocationLength.get(cdb, 0))
}

function writeStandard(view: DataView, deviceType: number, product: string): void {
  StandardInquiry.deviceType.set(view, 0, deviceType)
  StandardInquiry.version.set(view, 0, SPC_4)
  StandardInquiry.responseFormat.set(view, 0, 2)
  StandardInquiry.hiSup.set(view, 0, 1)
  StandardInquiry.additionalLength.set(view, 0, StandardInquiry.size - 5)
  StandardInquiry.cmdQue.set(view, 0, 1)
  StandardInquiry.vendor.set(view, 0, VENDOR)
  StandardInquiry.product.set(view, 0, product.slice(0, 16))
  StandardInquiry.revision.set(view, 0, REVISION)
  StandardInquiry.versionDescriptor1.set(view, 0, VersionDescriptor.SAM_5)
  StandardInquiry.versionDescriptor2.set(view, 0, VersionDescriptor.SPC_4)
  StandardInquiry.versionDescriptor3.set(view, 0, VersionDescriptor.SBC_3)
}

function writeSupportedPages(view: DataView): number {
  let at: number = VpdHeader.size
  for (const page of PAGES.keys()) view.setUint8(at++, page)
  return at
}

/** Names of the unit that follow from its UUID, so that every controller and every daemon gives the same ones. */
function writeIdentification(view: DataView, { uuid }: BdevInfo): number {
  let at: number = VpdHeader.size
  const digest = createHash('sha256').update(`naa of ${uuid}`).digest().subarray(0, 8)
  digest[0] = (NAA_LOCALLY_ASSIGNED << 4) | (digest[0]! & 0x0f)
  at = writeDesignator(view, at, CodeSet.BINARY, DesignatorType.NAA, Association.UNIT, digest)
  const vendor = Buffer.from(`${VENDOR.padEnd(8)}${uuid}`, 'latin1')
  at = writeDesignator(view, at, CodeSet.ASCII, DesignatorType.T10_VENDOR, Association.UNIT, vendor)
  const port = Uint8Array.of(0, 0, 0, RELATIVE_PORT)
  return writeDesignator(view, at, CodeSet.BINARY, DesignatorType.RELATIVE_PORT, Association.PORT, port)
}

function writeDesignator(
  view: DataView,
  at: number,
  codeSet: number,
  type: number,
  association: number,
  value: Uint8Array,
): number {
  Designator.codeSet.set(view, at, codeSet)
  Designator.type.set(view, at, type)
  Designator.association.set(view, at, association)
  Designator.length.set(view, at, value.length)
  new Uint8Array(view.buffer, view.byteOffset + at + Designator.size).set(value)
  return at + Designator.size + value.length
}

function writeExtendedInquiry(view: DataView, { writeCache }: BdevInfo): number {
  ExtendedInquiry.simpSup.set(view, 0, 1)
  ExtendedInquiry.vSup.set(view, 0, writeCache ? 1 : 0)
  return ExtendedInquiry.size
}

function writeBlockLimits(view: DataView, info: BdevInfo): number {
  const { preferred } = info
  const granularity = preferred?.writeGranularity || info.physicalBlockSize / info.blockSize
  BlockLimits.wsnz.set(view, 0, 1)
  BlockLimits.compareAndWriteMax.set(view, 0, COMPARE_BLOCKS_MAX)
  BlockLimits.transferGranularity.set(view, 0, Math.min(granularity, 0xffff))
  BlockLimits.transferOptimal.set(view, 0, preferred?.writeSize ?? 0)
  BlockLimits.writeSameMax.set(view, 0, blocksIn(info, WRITE_SAME_SIZE_MAX))
  if (isSupported(info, IoType.UNMAP)) {
    BlockLimits.unmapBlocksMax.set(view, 0, blocksIn(info, UNMAP_SIZE_MAX))
    BlockLimits.unmapDescriptorsMax.set(view, 0, UNMAP_DESCRIPTORS_MAX)
    // Where a bdev wants ranges to start at multiples of more than that, multiples of it are what it wants.
    const { unmapGranularity = 0, unmapAlignment = 0 } = preferred ?? {}
    BlockLimits.unmapGranularity.set(view, 0, Math.max(unmapGranularity, unmapAlignment))
  }
  return BlockLimits.size
}

function writeCharacteristics(view: DataView): number {
  BlockDeviceCharacteristics.rotationRate.set(view, 0, NON_ROTATING)
  return BlockDeviceCharacteristics.size
}

function writeProvisioning(view: DataView, info: BdevInfo): number {
  const canUnmap = isSupported(info, IoType.UNMAP)
  // WRITE SAME with UNMAP gives space back only where the bdev itself writes zeroes.
  const canUnmapZeroes = canUnmap && info.supports.has(IoType.WRITE_ZEROES)
  LogicalBlockProvisioning.lbpu.set(view, 0, canUnmap ? 1 : 0)
  LogicalBlockProvisioning.lbpws.set(view, 0, canUnmapZeroes ? 1 : 0)
  LogicalBlockProvisioning.lbpws10.set(view, 0, canUnmapZeroes ? 1 : 0)
  LogicalBlockProvisioning.provisioningType.set(view, 0, canUnmap ? PROVISIONING_THIN : 0)
  return LogicalBlockProvisioning.size
}

function writeAscii(view: DataView, at: number, value: string): number {
  const written = Buffer.from(view.buffer, view.byteOffset + at).write(value, 'latin1')
  return at + written
}
