/** Asks a logical unit what it is, over a session of its own, by the commands any SCSI host would use. On a reactor. */
import { RpcError, thereAre } from '../../../core/errors.ts'
import type { Reactor } from '../../../reactor/reactor.ts'
import { Status } from '../../../spec/nvme-status.ts'
import {
  Association,
  BlockLimits,
  CACHING_WCE,
  Cdb6,
  Cdb10,
  Designator,
  DesignatorType,
  DeviceSpecific,
  DeviceType,
  INQUIRY_EVPD,
  InquiryCdb,
  LogicalBlockProvisioning,
  ModeHeader6,
  ModePage,
  ModeSense6Cdb,
  Opcode,
  QUALIFIER_NONE,
  ReadCapacity10,
  ReadCapacity16,
  ReadCapacity16Cdb,
  ReportLunsCdb,
  ReportLunsHeader,
  ServiceAction,
  StandardInquiry,
  VpdHeader,
  VpdPage,
} from '../../../spec/scsi.ts'
import { type Libiscsi, TransferDirection } from '../../../sys/libiscsi.ts'
import { bytesAt, memset } from '../../../sys/memory.ts'
import type { Uring } from '../../../sys/uring.ts'
import { IoType } from '../../io.ts'
import { Command, type CommandOwner } from './command.ts'
import { SCRATCH_BYTES } from './connection.ts'
import { type Failure, portalOf } from './failure.ts'
import type { Login, UnitFacts } from './messages.ts'
import { Session, type SessionOwner } from './session.ts'

const BUFFER_BYTES = 16384
const DATA_AT = 4096
const DATA_BYTES = BUFFER_BYTES - DATA_AT
const INQUIRY_BYTES = 255
const PATIENCE_SEC = 10
/** Bytes of data in one command where the unit has no limit, and a limit to how long one takes. */
const TRANSFER_BYTES_MAX = 4 << 20
const ZEROES_BYTES_MAX = 2 ** 30
const UNMAP_BLOCKS_MAX = 0xffff_ffff
const LUNS_TOLD = 64

/** Throws `RpcError`: the target cannot be reached, does not let us in, or has no such disk. */
export async function probe(
  reactor: Reactor,
  ring: Uring,
  library: Libiscsi,
  login: Login,
): Promise<UnitFacts> {
  const asker = new Asker(reactor, ring, library, login)
  // What an answer leads to runs in Node's loop, between the reactor's turns.
  reactor.awaited++
  try {
    return await describe(asker, login)
  } finally {
    reactor.awaited--
    asker.close()
  }
}

class Asker implements SessionOwner, CommandOwner {
  readonly #session: Session
  readonly #reactor: Reactor
  readonly #buffer: number
  readonly #command: Command
  readonly #lun: number
  #failure: Failure | undefined
  #ended: ((status: number) => void) | undefined
  #failed: ((error: RpcError) => void) | undefined

  constructor(reactor: Reactor, ring: Uring, library: Libiscsi, login: Login) {
    this.#reactor = reactor
    this.#lun = login.address.lun
    this.#buffer = reactor.buffers.acquire(BUFFER_BYTES)
    if (this.#buffer === 0)
      throw new RpcError('ENOMEM', `the reactor has no memory left to look at ${login.name}`)
    this.#command = new Command(this, reactor, this.#buffer + SCRATCH_BYTES)
    this.#session = new Session(
      reactor,
      ring,
      library,
      { ...login, timeoutSec: PATIENCE_SEC },
      this.#buffer,
      this,
    )
    this.#session.open()
  }

  sessionUp(): void {}

  unitChanged(): void {}

  /** One attempt is all there is: who asks tries again. */
  sessionDown(failure: Failure): void {
    this.#failure = failure
    this.#failed?.(new RpcError(failure.code, failure.message))
  }

  commandEnded(_command: Command, status: number): void {
    this.#ended?.(status)
  }

  close(): void {
    this.#session.close(() => this.#reactor.buffers.release(this.#buffer, BUFFER_BYTES))
  }

  /** The data of a command; undefined when there is no such unit, or it does not know the command. */
  async ask(cdb: DataView, dataBytes: number, lun = this.#lun): Promise<DataView | undefined> {
    const status = await this.#execute(cdb, dataBytes, lun)
    if (status === Status.SUCCESS) {
      const data = bytesAt(this.#buffer + DATA_AT, dataBytes).slice()
      return new DataView(data.buffer)
    }
    const isRefused =
      status === Status.INVALID_FIELD ||
      status === Status.INVALID_OPCODE ||
      status === Status.INVALID_NAMESPACE_OR_FORMAT
    if (isRefused) return undefined
    const command = `0x${cdb.getUint8(0).toString(16)}`
    const told = `LUN ${lun} answers command ${command} with NVMe status 0x${status.toString(16)}`
    throw new RpcError(status === Status.NAMESPACE_NOT_READY ? 'EAGAIN' : 'EIO', told)
  }

  #execute(cdb: DataView, dataBytes: number, lun: number): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#ended = resolve
      this.#failed = reject
      if (this.#failure !== undefined) {
        this.sessionDown(this.#failure)
        return
      }
      const command = this.#command
      command.begin(lun, cdb.byteLength, IoType.READ)
      const { u8 } = this.#reactor.arena
      for (let i = 0; i < cdb.byteLength; i++) u8[command.cdb + i] = cdb.getUint8(i)
      memset(this.#buffer + DATA_AT, 0, dataBytes)
      command.setData(TransferDirection.READ, this.#buffer + DATA_AT, dataBytes)
      this.#session.start(command)
    })
  }
}

async function describe(asker: Asker, login: Login): Promise<UnitFacts> {
  const inquiry = await asker.ask(inquiryCdb(undefined), INQUIRY_BYTES)
  const isThere = inquiry !== undefined && StandardInquiry.qualifier.get(inquiry, 0) !== QUALIFIER_NONE
  if (!isThere) throw await noSuchUnit(asker, login)
  const type = StandardInquiry.deviceType.get(inquiry, 0)
  if (type !== DeviceType.DISK) {
    throw new RpcError(
      'EINVAL',
      `LUN ${login.address.lun} of ${login.address.target} is no disk: its device type is 0x${type.toString(16)}`,
    )
  }
  const capacity = await readCapacity(asker, login)
  const limits = await readPage(asker, VpdPage.BLOCK_LIMITS)
  const provisioning = await readPage(asker, VpdPage.LOGICAL_BLOCK_PROVISIONING)
  const identification = await readPage(asker, VpdPage.DEVICE_IDENTIFICATION)
  const mode = await asker.ask(modeCdb(), INQUIRY_BYTES)
  const specific = mode === undefined ? 0 : ModeHeader6.deviceSpecific.get(mode, 0)
  return {
    ...capacity,
    unit: {
      transferBlocks: transferBlocks(limits, capacity.blockSize),
      unmapBlocks: unmapBlocks(limits, provisioning),
      zeroesBlocks: zeroesBlocks(limits, provisioning, capacity.blockSize),
      hasCache: hasCache(mode),
      hasFua: (specific & DeviceSpecific.DPOFUA) !== 0,
    },
    readOnly: (specific & DeviceSpecific.WP) !== 0,
    writeSize: limits === undefined ? 0 : BlockLimits.transferOptimal.get(limits, 0),
    unmapGranularity: limits === undefined ? 0 : BlockLimits.unmapGranularity.get(limits, 0),
    identity: identification === undefined ? '' : identityOf(identification),
    vendor: StandardInquiry.vendor.get(inquiry, 0),
    model: StandardInquiry.product.get(inquiry, 0),
  }
}

async function noSuchUnit(asker: Asker, { address }: Login): Promise<RpcError> {
  const { lun, target } = address
  const cdb = cdbOf(ReportLunsCdb.size, Opcode.REPORT_LUNS)
  ReportLunsCdb.allocationLength.set(cdb, 0, DATA_BYTES)
  const list = await asker.ask(cdb, DATA_BYTES, 0).catch(() => undefined)
  const bytes = list === undefined ? 0 : Math.min(ReportLunsHeader.listLength.get(list, 0), LUNS_TOLD * 8)
  // Single-level addresses: the number is in the low 14 bits of the first two bytes.
  const luns = Array.from({ length: bytes / 8 }, (_, i) =>
    String(list!.getUint16(ReportLunsHeader.size + i * 8) & 0x3fff),
  )
  return new RpcError('ENODEV', `${target} at ${portalOf(address)} has no LUN ${lun}: ${thereAre(luns)}`)
}

async function readCapacity(
  asker: Asker,
  { address }: Login,
): Promise<Pick<UnitFacts, 'blockSize' | 'blockCount' | 'physicalBlockSize'>> {
  const cdb = cdbOf(ReadCapacity16Cdb.size, Opcode.SERVICE_ACTION_IN_16)
  cdb.setUint8(1, ServiceAction.READ_CAPACITY_16)
  ReadCapacity16Cdb.allocationLength.set(cdb, 0, ReadCapacity16.size)
  const long = await asker.ask(cdb, ReadCapacity16.size)
  if (long !== undefined) {
    const blockSize = ReadCapacity16.blockSize.get(long, 0)
    return {
      blockSize,
      blockCount: ReadCapacity16.lastLba.get(long, 0) + 1,
      physicalBlockSize: Math.min(blockSize * 2 ** ReadCapacity16.physicalExponent.get(long, 0), 65536),
    }
  }
  const short = await asker.ask(cdbOf(Cdb10.size, Opcode.READ_CAPACITY_10), ReadCapacity10.size)
  if (short === undefined) {
    throw new RpcError('EIO', `LUN ${address.lun} of ${address.target} does not tell its size`)
  }
  const blockSize = ReadCapacity10.blockSize.get(short, 0)
  return { blockSize, blockCount: ReadCapacity10.lastLba.get(short, 0) + 1, physicalBlockSize: blockSize }
}

async function readPage(asker: Asker, page: number): Promise<DataView | undefined> {
  const data = await asker.ask(inquiryCdb(page), INQUIRY_BYTES)
  return data !== undefined && VpdHeader.page.get(data, 0) === page ? data : undefined
}

function transferBlocks(limits: DataView | undefined, blockSize: number): number {
  const own = Math.max(1, Math.floor(TRANSFER_BYTES_MAX / blockSize))
  const max = limits === undefined ? 0 : BlockLimits.transferMax.get(limits, 0)
  return max === 0 ? own : Math.min(own, max)
}

function unmapBlocks(limits: DataView | undefined, provisioning: DataView | undefined): number {
  if (limits === undefined || provisioning === undefined) return 0
  const isOffered =
    LogicalBlockProvisioning.lbpu.get(provisioning, 0) === 1 &&
    BlockLimits.unmapDescriptorsMax.get(limits, 0) > 0
  return isOffered ? Math.min(BlockLimits.unmapBlocksMax.get(limits, 0), UNMAP_BLOCKS_MAX) : 0
}

/** WRITE SAME (16) is there where the unit unmaps by it, or says how much of it it takes. */
function zeroesBlocks(
  limits: DataView | undefined,
  provisioning: DataView | undefined,
  blockSize: number,
): number {
  const max = limits === undefined ? 0 : BlockLimits.writeSameMax.get(limits, 0)
  const isOffered = provisioning !== undefined && LogicalBlockProvisioning.lbpws.get(provisioning, 0) === 1
  if (max === 0 && !isOffered) return 0
  const own = Math.floor(ZEROES_BYTES_MAX / blockSize)
  return max === 0 ? own : Math.min(own, max)
}

/** A unit that does not tell is taken to have a cache: a flush too many harms nobody. */
function hasCache(mode: DataView | undefined): boolean {
  if (mode === undefined) return true
  const page = ModeHeader6.size + ModeHeader6.blockDescriptorLength.get(mode, 0)
  if (page + 3 > mode.byteLength || (mode.getUint8(page) & 0x3f) !== ModePage.CACHING) return true
  return (mode.getUint8(page + 2) & CACHING_WCE) !== 0
}

/** The first designator of the unit itself, those that are unique in the world before others. */
function identityOf(page: DataView): string {
  const found = new Map<number, string>()
  const end = Math.min(VpdHeader.size + VpdHeader.length.get(page, 0), page.byteLength)
  for (let at = VpdHeader.size; at + Designator.size <= end; ) {
    const length = Designator.length.get(page, at)
    const last = at + Designator.size + length
    const type = Designator.type.get(page, at)
    if (last <= end && Designator.association.get(page, at) === Association.UNIT && !found.has(type)) {
      found.set(type, Buffer.from(page.buffer, at + Designator.size, length).toString('hex'))
    }
    at = last
  }
  const types = [DesignatorType.NAA, DesignatorType.EUI_64, DesignatorType.T10_VENDOR]
  return types.map(type => found.get(type)).find(text => text !== undefined) ?? ''
}

function cdbOf(size: number, opcode: number): DataView {
  const cdb = new DataView(new ArrayBuffer(size))
  Cdb6.opcode.set(cdb, 0, opcode)
  return cdb
}

/** Standard INQUIRY data, or a page of vital product data. */
function inquiryCdb(page: number | undefined): DataView {
  const cdb = cdbOf(InquiryCdb.size, Opcode.INQUIRY)
  if (page !== undefined) {
    InquiryCdb.flags.set(cdb, 0, INQUIRY_EVPD)
    InquiryCdb.page.set(cdb, 0, page)
  }
  InquiryCdb.allocationLength.set(cdb, 0, INQUIRY_BYTES)
  return cdb
}

/** MODE SENSE of the caching page; its header says whether the medium is write protected. */
function modeCdb(): DataView {
  const cdb = cdbOf(ModeSense6Cdb.size, Opcode.MODE_SENSE_6)
  ModeSense6Cdb.pageCode.set(cdb, 0, ModePage.CACHING)
  ModeSense6Cdb.allocationLength.set(cdb, 0, INQUIRY_BYTES)
  return cdb
}
