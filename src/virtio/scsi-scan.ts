/** Finds the disks behind a virtio SCSI controller: LUN 0 of each target, by the commands any SCSI host would use. */
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError } from '../core/errors.ts'
import {
  BlockLimits,
  CACHING_WCE,
  Cdb6,
  DeviceSpecific,
  DeviceType,
  INQUIRY_EVPD,
  InquiryCdb,
  ModeHeader6,
  ModePage,
  ModeSense6Cdb,
  Opcode,
  QUALIFIER_NONE,
  ReadCapacity16,
  ReadCapacity16Cdb,
  ScsiStatus,
  SenseKey,
  ServiceAction,
  StandardInquiry,
  VpdHeader,
  VpdPage,
} from '../spec/scsi.ts'
import { ScsiConfig, ScsiResponse } from '../spec/virtio-scsi.ts'
import { BufferPool } from '../sys/memory.ts'
import { DATA_SEGMENTS_MAX } from './memory-layout.ts'
import type { ExecuteScsi, ScsiAnswer } from './messages.ts'
import { readSense } from './scsi-status.ts'
import type { UnitDescription } from './unit-description.ts'

/** How many targets are looked for: as SPDK's target has. */
const TARGETS = 8
const ATTEMPTS = 20
const BUSY_DELAY_MS = 50
const INQUIRY_BYTES = 255
const UNMAP_BLOCKS_MAX = 0xffff_ffff

export interface ScsiHost {
  readonly controller: number
  readonly config: DataView | undefined
  execute(command: Omit<ExecuteScsi, 'controller'>): Promise<ScsiAnswer>
}

/** Every disk there is, in the order of the targets. Rejects when the connection is lost meanwhile. */
export async function scan(host: ScsiHost): Promise<UnitDescription[]> {
  const found: UnitDescription[] = []
  const highest = host.config === undefined ? TARGETS - 1 : ScsiConfig.maxTarget.get(host.config, 0)
  for (let target = 0; target <= Math.min(highest, TARGETS - 1); target++) {
    const disk = await describe(host, target)
    if (disk !== undefined) found.push(disk)
  }
  return found
}

async function describe(host: ScsiHost, target: number): Promise<UnitDescription | undefined> {
  const inquiry = await inquire(host, target, undefined)
  if (inquiry === undefined || inquiry.byteLength < StandardInquiry.revision.offset) return undefined
  const isDisk =
    StandardInquiry.deviceType.get(inquiry, 0) === DeviceType.DISK &&
    StandardInquiry.qualifier.get(inquiry, 0) !== QUALIFIER_NONE
  if (!isDisk) return undefined
  const capacity = await ask(host, target, capacityCdb(), ReadCapacity16.size)
  if (capacity === undefined || capacity.byteLength < ReadCapacity16.size) return undefined
  const blockSize = ReadCapacity16.blockSize.get(capacity, 0)
  const limits = await inquire(host, target, VpdPage.BLOCK_LIMITS)
  const limit = (read: (view: DataView) => number): number => (limits === undefined ? 0 : read(limits))
  const transferMax = limit(view => BlockLimits.transferMax.get(view, 0))
  const unmapMax = limit(view => BlockLimits.unmapBlocksMax.get(view, 0))
  const isThin = ReadCapacity16.lbpme.get(capacity, 0) === 1
  const mode = await ask(host, target, modeCdb(), INQUIRY_BYTES)
  const bytes = Math.min(BufferPool.MAX_SIZE, segmentsOf(host) * BufferPool.MAX_SIZE)
  const transferBlocks = Math.floor(bytes / blockSize)
  return {
    unit: {
      controller: host.controller,
      kind: 'scsi',
      target,
      segmentBytes: BufferPool.MAX_SIZE,
      transferBlocks: transferMax === 0 ? transferBlocks : Math.min(transferMax, transferBlocks),
      unmapBlocks: isThin ? Math.min(unmapMax, UNMAP_BLOCKS_MAX) : 0,
      zeroesBlocks: 0,
      hasCache: hasCache(mode),
    },
    blockSize,
    blockCount: ReadCapacity16.lastLba.get(capacity, 0) + 1,
    physicalBlockSize: Math.min(blockSize * 2 ** ReadCapacity16.physicalExponent.get(capacity, 0), 65536),
    readOnly: mode !== undefined && (ModeHeader6.deviceSpecific.get(mode, 0) & DeviceSpecific.WP) !== 0,
    writeSize: limit(view => BlockLimits.transferOptimal.get(view, 0)),
    unmapGranularity: limit(view => BlockLimits.unmapGranularity.get(view, 0)),
  }
}

const segmentsOf = ({ config }: ScsiHost): number =>
  config === undefined ? DATA_SEGMENTS_MAX : Math.max(1, ScsiConfig.segMax.get(config, 0))

/** Standard INQUIRY data, or a page of vital product data; undefined when there is no such unit or page. */
async function inquire(
  host: ScsiHost,
  target: number,
  page: number | undefined,
): Promise<DataView | undefined> {
  const cdb = new DataView(new ArrayBuffer(InquiryCdb.size))
  InquiryCdb.opcode.set(cdb, 0, Opcode.INQUIRY)
  if (page !== undefined) {
    InquiryCdb.flags.set(cdb, 0, INQUIRY_EVPD)
    InquiryCdb.page.set(cdb, 0, page)
  }
  InquiryCdb.allocationLength.set(cdb, 0, INQUIRY_BYTES)
  const data = await ask(host, target, cdb, INQUIRY_BYTES)
  if (data === undefined || page === undefined) return data
  const isPage = data.byteLength >= BlockLimits.size && VpdHeader.page.get(data, 0) === page
  return isPage ? data : undefined
}

function capacityCdb(): DataView {
  const cdb = new DataView(new ArrayBuffer(ReadCapacity16Cdb.size))
  Cdb6.opcode.set(cdb, 0, Opcode.SERVICE_ACTION_IN_16)
  cdb.setUint8(1, ServiceAction.READ_CAPACITY_16)
  ReadCapacity16Cdb.allocationLength.set(cdb, 0, ReadCapacity16.size)
  return cdb
}

/** MODE SENSE of the caching page; its header says whether the medium is write protected. */
function modeCdb(): DataView {
  const cdb = new DataView(new ArrayBuffer(ModeSense6Cdb.size))
  ModeSense6Cdb.opcode.set(cdb, 0, Opcode.MODE_SENSE_6)
  ModeSense6Cdb.pageCode.set(cdb, 0, ModePage.CACHING)
  ModeSense6Cdb.allocationLength.set(cdb, 0, INQUIRY_BYTES)
  return cdb
}

/** A unit that does not tell is taken to have a cache: a flush too many harms nobody. */
function hasCache(mode: DataView | undefined): boolean {
  if (mode === undefined || mode.byteLength < ModeHeader6.size) return true
  const page = ModeHeader6.size + ModeHeader6.blockDescriptorLength.get(mode, 0)
  if (page + 3 > mode.byteLength || (mode.getUint8(page) & 0x3f) !== ModePage.CACHING) return true
  return (mode.getUint8(page + 2) & CACHING_WCE) !== 0
}

/**
 * The data of a command; undefined when there is no such unit, or it does not know the command. Throws when the unit goes
 * on answering something else.
 */
async function ask(
  host: ScsiHost,
  target: number,
  cdb: DataView,
  dataBytes: number,
): Promise<DataView | undefined> {
  const command = { target, lun: 0, cdb: [...new Uint8Array(cdb.buffer)], dataBytes }
  for (let attempt = 1; ; attempt++) {
    const { response, status, sense, data } = await host.execute(command)
    if (response === ScsiResponse.BAD_TARGET || response === ScsiResponse.INCORRECT_LUN) return undefined
    const isDone = response === ScsiResponse.OK
    if (isDone && status === ScsiStatus.GOOD) return new DataView(data.buffer, data.byteOffset, data.length)
    const { key, asc } = readSense(new DataView(sense.buffer, sense.byteOffset), 0, sense.length)
    if (isDone && status === ScsiStatus.CHECK_CONDITION && key === SenseKey.ILLEGAL_REQUEST) return undefined
    if (attempt === ATTEMPTS) {
      const told = `response ${response}, status ${status}, sense key ${key}, code 0x${asc.toString(16)}`
      const remedy = 'if this is the socket of a blk device, attach it as blk'
      throw new RpcError(
        'EIO',
        `target ${target} does not answer command 0x${cdb.getUint8(0).toString(16)}: ${told}; ${remedy}`,
      )
    }
    // A unit reports each condition that has arisen before it does what it is asked; one that is busy needs time.
    if (status !== ScsiStatus.CHECK_CONDITION || key !== SenseKey.UNIT_ATTENTION) await delay(BUSY_DELAY_MS)
  }
}
