/** One I/O on its way: one command after the other, each as large as the unit takes it. Pooled. */
import { Status } from '../../../spec/nvme-status.ts'
import { Cdb10, Cdb16, CdbFlag, Opcode, UnmapCdb, UnmapDescriptor, UnmapHeader } from '../../../spec/scsi.ts'
import { TransferDirection } from '../../../sys/libiscsi.ts'
import { statusFromErrno } from '../../errno-status.ts'
import { type BdevIo, IoType } from '../../io.ts'
import type { IscsiChannel } from './channel.ts'
import { Command, type CommandOwner } from './command.ts'

const ENOMEM = 12
const LBA_10_MAX = 0xffff_ffff
const BLOCKS_10_MAX = 0xffff
const UNMAP_BYTES = UnmapHeader.size + UnmapDescriptor.size

export class Transfer implements CommandOwner {
  /** Null while the transfer lies in its pool. */
  io: BdevIo | null = null
  readonly #channel: IscsiChannel
  readonly #command: Command
  #doneBlocks = 0
  /** In the command that is under way. */
  #partBlocks = 0
  /** What was written is to be flushed, or is being flushed. */
  #mustFlush = false

  constructor(channel: IscsiChannel, address: number) {
    this.#channel = channel
    this.#command = new Command(this, channel.reactor, address)
  }

  start(io: BdevIo): void {
    const { hasCache, hasFua } = this.#channel.unit
    this.io = io
    this.#doneBlocks = 0
    // Only READ and WRITE have a FUA bit.
    const isForced = io.fua && hasCache && io.type !== IoType.READ && io.type !== IoType.FLUSH
    this.#mustFlush = isForced && !(hasFua && io.type === IoType.WRITE)
    if (io.type === IoType.FLUSH) this.#flush()
    else this.#next(io)
  }

  abort(): void {
    this.#channel.session.abort(this.#command)
  }

  get isAborted(): boolean {
    return this.io !== null && this.#command.isAborted
  }

  commandEnded(_command: Command, status: number): void {
    const io = this.io!
    this.#doneBlocks += this.#partBlocks
    const isDone = io.type === IoType.FLUSH || this.#doneBlocks >= io.blockCount
    if (status === Status.SUCCESS && !isDone) this.#next(io)
    else if (status === Status.SUCCESS && this.#mustFlush) {
      this.#mustFlush = false
      this.#flush()
    } else this.#end(status)
  }

  close(): void {
    this.#command.close()
  }

  #end(status: number): void {
    const io = this.io!
    this.io = null
    if (status !== Status.SUCCESS) this.#channel.complain(io, status, this.#command.told)
    io.complete(status)
    this.#channel.recycle(this)
  }

  #flush(): void {
    const { session, login, reactor } = this.#channel
    const command = this.#command
    this.#partBlocks = 0
    // Of everything: no blocks from block 0 on.
    command.begin(login.address.lun, Cdb10.size, IoType.FLUSH)
    Cdb10.opcode.set(reactor.arena.view, command.cdb, Opcode.SYNCHRONIZE_CACHE_10)
    session.start(command)
  }

  #next(io: BdevIo): void {
    const { unit, session } = this.#channel
    const left = io.blockCount - this.#doneBlocks
    let isPrepared = true
    if (io.type === IoType.UNMAP) {
      this.#partBlocks = Math.min(left, unit.unmapBlocks)
      this.#unmap(io.firstBlock + this.#doneBlocks)
    } else if (io.type === IoType.WRITE_ZEROES) {
      this.#partBlocks = Math.min(left, unit.zeroesBlocks)
      isPrepared = this.#writeSame(io.firstBlock + this.#doneBlocks)
    } else {
      this.#partBlocks = Math.min(left, unit.transferBlocks)
      isPrepared = this.#readOrWrite(io)
    }
    if (isPrepared) session.start(this.#command)
    else this.#end(statusFromErrno(ENOMEM, io.type !== IoType.READ))
  }

  #readOrWrite(io: BdevIo): boolean {
    const { info, login, reactor, unit } = this.#channel
    const { blockSize } = info
    const { view } = reactor.arena
    const command = this.#command
    const blocks = this.#partBlocks
    const first = io.firstBlock + this.#doneBlocks
    const isRead = io.type === IoType.READ
    const flags = io.fua && unit.hasFua && !isRead ? CdbFlag.FUA : 0
    if (first + blocks <= LBA_10_MAX && blocks <= BLOCKS_10_MAX) {
      command.begin(login.address.lun, Cdb10.size, io.type)
      Cdb10.opcode.set(view, command.cdb, isRead ? Opcode.READ_10 : Opcode.WRITE_10)
      Cdb10.flags.set(view, command.cdb, flags)
      Cdb10.lba.set(view, command.cdb, first)
      Cdb10.length.set(view, command.cdb, blocks)
    } else {
      this.#begin16(isRead ? Opcode.READ_16 : Opcode.WRITE_16, flags, first)
    }
    const direction = isRead ? TransferDirection.READ : TransferDirection.WRITE
    return command.setSegments(direction, io.segments, this.#doneBlocks * blockSize, blocks * blockSize)
  }

  #writeSame(first: number): boolean {
    const { info, zeroes } = this.#channel
    if (zeroes === 0) return false
    this.#begin16(Opcode.WRITE_SAME_16, 0, first)
    this.#command.setData(TransferDirection.WRITE, zeroes, info.blockSize)
    return true
  }

  #begin16(opcode: number, flags: number, first: number): void {
    const { login, reactor } = this.#channel
    const { view } = reactor.arena
    const command = this.#command
    command.begin(login.address.lun, Cdb16.size, this.io!.type)
    Cdb16.opcode.set(view, command.cdb, opcode)
    Cdb16.flags.set(view, command.cdb, flags)
    Cdb16.lba.set(view, command.cdb, first)
    Cdb16.length.set(view, command.cdb, this.#partBlocks)
  }

  #unmap(first: number): void {
    const { login, reactor } = this.#channel
    const { view } = reactor.arena
    const command = this.#command
    command.begin(login.address.lun, UnmapCdb.size, IoType.UNMAP)
    UnmapCdb.opcode.set(view, command.cdb, Opcode.UNMAP)
    UnmapCdb.parameterListLength.set(view, command.cdb, UNMAP_BYTES)
    const at = command.addParameters(UNMAP_BYTES)
    UnmapHeader.dataLength.set(view, at, UNMAP_BYTES - 2)
    UnmapHeader.descriptorsLength.set(view, at, UnmapDescriptor.size)
    UnmapDescriptor.lba.set(view, at + UnmapHeader.size, first)
    UnmapDescriptor.blocks.set(view, at + UnmapHeader.size, this.#partBlocks)
  }
}
