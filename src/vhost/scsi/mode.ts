/** MODE SENSE and MODE SELECT (SPC-4, sections 6.9 to 6.12) with the pages of a disk. WCE is all that can be changed. */
import type { BdevInfo } from '../../bdev/bdev.ts'
import { IoType } from '../../bdev/io.ts'
import {
  ALL_SUBPAGES,
  Asc,
  CACHING_WCE,
  DeviceSpecific,
  LongBlockDescriptor,
  ModeHeader6,
  ModeHeader10,
  ModePage,
  ModeSelect6Cdb,
  ModeSelect10Cdb,
  ModeSelectFlag,
  ModeSense6Cdb,
  ModeSense10Cdb,
  ModeSenseFlag,
  PageControl,
  SenseKey,
  ShortBlockDescriptor,
} from '../../spec/scsi.ts'
import { ScsiResponse } from '../../spec/virtio-scsi.ts'
import { good, HANDLED, type Handled, type ScsiCommand } from './command.ts'
import { Mode, setUnitWord, UnitWord } from './shared-units.ts'

/** Nobody sends more: the pages, the header and a block descriptor are less than half of it. */
const LIST_SIZE_MAX = 256
const SUBPAGE_FORMAT = 0x40
const PAGE_CODE = 0x3f
/** TST: a task set for each front end. */
const CONTROL_TST_PER_NEXUS = 0x20
/** QUEUE ALGORITHM MODIFIER: any order. */
const CONTROL_UNRESTRICTED = 0x10
const WCE_OFFSET = 2

interface Page {
  readonly code: number
  /** With the two bytes of its header. */
  readonly size: number
  /** Bytes that are not zero, by offset. */
  current(command: ScsiCommand): Readonly<Record<number, number>>
}

/** In ascending order. */
const PAGES: readonly Page[] = [
  { code: ModePage.READ_WRITE_ERROR_RECOVERY, size: 12, current: () => ({}) },
  {
    code: ModePage.CACHING,
    size: 20,
    current: command => ({ [WCE_OFFSET]: hasWriteCache(command) ? CACHING_WCE : 0 }),
  },
  {
    code: ModePage.CONTROL,
    size: 12,
    // The longest BUSY is not told.
    current: () => ({ 2: CONTROL_TST_PER_NEXUS, 3: CONTROL_UNRESTRICTED, 8: 0xff, 9: 0xff }),
  },
  { code: ModePage.INFORMATIONAL_EXCEPTIONS, size: 12, current: () => ({}) },
]

const hasWriteCache = (command: ScsiCommand): boolean => command.info.writeCache && !command.isWriteThrough

export function modeSense6(command: ScsiCommand): Handled {
  const { cdb } = command
  const flags = ModeSense6Cdb.flags.get(cdb, 0)
  const pagesAt = writeDescriptor(command, ModeHeader6.size, flags & ~ModeSenseFlag.LLBAA)
  const end = writePages(command, pagesAt)
  if (end < 0) return HANDLED
  const { scratch } = command.host
  ModeHeader6.dataLength.set(scratch, 0, end - 1)
  ModeHeader6.deviceSpecific.set(scratch, 0, deviceSpecific(command.info))
  ModeHeader6.blockDescriptorLength.set(scratch, 0, pagesAt - ModeHeader6.size)
  return command.reply(end, ModeSense6Cdb.allocationLength.get(cdb, 0))
}

export function modeSense10(command: ScsiCommand): Handled {
  const { cdb } = command
  const flags = ModeSense10Cdb.flags.get(cdb, 0)
  const pagesAt = writeDescriptor(command, ModeHeader10.size, flags)
  const end = writePages(command, pagesAt)
  if (end < 0) return HANDLED
  const { scratch } = command.host
  const length = pagesAt - ModeHeader10.size
  ModeHeader10.dataLength.set(scratch, 0, end - 2)
  ModeHeader10.deviceSpecific.set(scratch, 0, deviceSpecific(command.info))
  ModeHeader10.longLba.set(scratch, 0, length === LongBlockDescriptor.size ? 1 : 0)
  ModeHeader10.blockDescriptorLength.set(scratch, 0, length)
  return command.reply(end, ModeSense10Cdb.allocationLength.get(cdb, 0))
}

export function modeSelect6(command: ScsiCommand): Handled {
  const list = readList(command, ModeSelect6Cdb.parameterListLength.get(command.cdb, 0), ModeHeader6.size)
  if (list === null) return HANDLED
  return select(command, list, ModeHeader6.size, ModeHeader6.blockDescriptorLength.get(list, 0), false)
}

export function modeSelect10(command: ScsiCommand): Handled {
  const list = readList(command, ModeSelect10Cdb.parameterListLength.get(command.cdb, 0), ModeHeader10.size)
  if (list === null) return HANDLED
  const isLong = ModeHeader10.longLba.get(list, 0) === 1
  return select(command, list, ModeHeader10.size, ModeHeader10.blockDescriptorLength.get(list, 0), isLong)
}

const deviceSpecific = (info: BdevInfo): number =>
  DeviceSpecific.DPOFUA | (info.readOnly ? DeviceSpecific.WP : 0)

/** Clears the scratch area and writes the block descriptor, if it is wanted. Returns where the pages begin. */
function writeDescriptor(command: ScsiCommand, at: number, flags: number): number {
  const view = command.clearScratch(LIST_SIZE_MAX)
  const { blockCount, blockSize } = command.info
  if ((flags & ModeSenseFlag.DBD) !== 0) return at
  if ((flags & ModeSenseFlag.LLBAA) !== 0) {
    LongBlockDescriptor.blockCount.set(view, at, blockCount)
    LongBlockDescriptor.blockSize.set(view, at, blockSize)
    return at + LongBlockDescriptor.size
  }
  ShortBlockDescriptor.blockCount.set(view, at, Math.min(blockCount, 0xffff_ffff))
  ShortBlockDescriptor.blockSize.set(view, at, blockSize)
  return at + ShortBlockDescriptor.size
}

/** Returns where they end, or -1 when the command has been answered. Code, control and subpage are at the same place in both CDBs. */
function writePages(command: ScsiCommand, pagesAt: number): number {
  const { cdb } = command
  const control = ModeSense6Cdb.pageControl.get(cdb, 0)
  const code = ModeSense6Cdb.pageCode.get(cdb, 0)
  const subpage = ModeSense6Cdb.subpage.get(cdb, 0)
  if (control === PageControl.SAVED) {
    command.check(SenseKey.ILLEGAL_REQUEST, Asc.SAVING_NOT_SUPPORTED)
    return -1
  }
  const pages = PAGES.filter(page => code === ModePage.ALL || page.code === code)
  if (pages.length === 0 || (subpage !== 0 && subpage !== ALL_SUBPAGES)) {
    command.refuseField(pages.length === 0 ? 2 : ModeSense6Cdb.subpage.offset)
    return -1
  }
  let at = pagesAt
  for (const page of pages) at = writePage(command, at, page, control)
  return at
}

function writePage(command: ScsiCommand, at: number, page: Page, control: number): number {
  const { scratch } = command.host
  scratch.setUint8(at, page.code)
  scratch.setUint8(at + 1, page.size - 2)
  if (control === PageControl.CHANGEABLE) {
    if (page.code === ModePage.CACHING && command.info.writeCache) {
      scratch.setUint8(at + WCE_OFFSET, CACHING_WCE)
    }
    return at + page.size
  }
  for (const [offset, value] of Object.entries(page.current(command))) {
    scratch.setUint8(at + Number(offset), value)
  }
  if (control === PageControl.DEFAULT && page.code === ModePage.CACHING) {
    scratch.setUint8(at + WCE_OFFSET, command.info.writeCache ? CACHING_WCE : 0)
  }
  return at + page.size
}

/** The guest's list as it is now; null when the command has been answered. Flags are at the same place in both CDBs. */
function readList(command: ScsiCommand, length: number, headerSize: number): DataView | null {
  const flags = ModeSelect6Cdb.flags.get(command.cdb, 0)
  if ((flags & ModeSelectFlag.SP) !== 0 || (flags & ModeSelectFlag.PF) === 0) command.refuseField(1)
  else if (length > command.dataOutBytes) command.respond(ScsiResponse.OVERRUN)
  else if (length === 0) command.good(0)
  else if (length < headerSize || length > LIST_SIZE_MAX) {
    command.check(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
  } else {
    const { scratch, scratchAddress } = command.host
    command.copyDataOut(scratchAddress, 0, length)
    return new DataView(Uint8Array.from(new Uint8Array(scratch.buffer, scratch.byteOffset, length)).buffer)
  }
  return null
}

function select(
  command: ScsiCommand,
  list: DataView,
  headerSize: number,
  descriptorSize: number,
  isLong: boolean,
): Handled {
  const pagesAt = headerSize + descriptorSize
  if (pagesAt > list.byteLength) {
    return command.check(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
  }
  if (!isOwnGeometry(command.info, list, headerSize, descriptorSize, isLong)) {
    return command.refuseParameter(headerSize)
  }
  let wce: boolean | null = null
  let at = pagesAt
  while (at < list.byteLength) {
    const page = PAGES.find(({ code }) => code === (list.getUint8(at) & PAGE_CODE))
    if (page === undefined || (list.getUint8(at) & SUBPAGE_FORMAT) !== 0) return command.refuseParameter(at)
    if (at + page.size > list.byteLength) {
      return command.check(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    }
    const wrong = firstChange(command, list, at, page)
    if (wrong >= 0) return command.refuseParameter(wrong)
    if (page.code === ModePage.CACHING) wce = (list.getUint8(at + WCE_OFFSET) & CACHING_WCE) !== 0
    at += page.size
  }
  command.transferBytes = list.byteLength
  if (wce === null || wce === hasWriteCache(command)) return command.good(command.transferBytes)
  setUnitWord(command.host.units, command.unit.number, UnitWord.MODE, wce ? 0 : Mode.WRITE_THROUGH)
  if (wce) return command.good(command.transferBytes)
  // What completed before is to be as safe as what comes after.
  command.aim(IoType.FLUSH, 0, 0, false).segments.count = 0
  return command.submit(good)
}

/** A block descriptor may repeat what is. */
function isOwnGeometry(info: BdevInfo, list: DataView, at: number, size: number, isLong: boolean): boolean {
  if (size === 0) return true
  const descriptor = isLong ? LongBlockDescriptor : ShortBlockDescriptor
  if (size !== descriptor.size) return false
  const blockCount = descriptor.blockCount.get(list, at)
  const isCount = blockCount === 0 || blockCount === 0xffff_ffff || blockCount === info.blockCount
  return isCount && descriptor.blockSize.get(list, at) === info.blockSize
}

/** Where the first byte is that differs from the page as it is, WCE apart; -1 when there is none. */
function firstChange(command: ScsiCommand, list: DataView, at: number, page: Page): number {
  const current = page.current(command)
  if (list.getUint8(at + 1) !== page.size - 2) return at + 1
  for (let offset = 2; offset < page.size; offset++) {
    const mayChange = page.code === ModePage.CACHING && offset === WCE_OFFSET && command.info.writeCache
    const difference = list.getUint8(at + offset) ^ (current[offset] ?? 0)
    if ((mayChange ? difference & ~CACHING_WCE : difference) !== 0) return at + offset
  }
  return -1
}
