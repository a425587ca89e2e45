/**
 * PERSISTENT RESERVE IN and OUT, RESERVE (6) and RELEASE (6), as far as a reactor has to do with them: parameters are read
 * here, the control thread decides (`reservation-state.ts`) and sets the gates, and answers are written here.
 */
import { createHash } from 'node:crypto'
import { logger } from '../../core/log.ts'
import {
  Asc,
  FullStatusDescriptor,
  NAA_LOCALLY_ASSIGNED,
  PROTOCOL_SAS,
  ReservationDescriptor,
  ReservationType,
  ReservationTypeBit,
  ReserveCapabilities,
  ReserveInCdb,
  ReserveInHeader,
  ReserveOutAction,
  ReserveOutCdb,
  ReserveOutFlag,
  ReserveOutParameters,
  SasTransportId,
  ScsiStatus,
  SenseKey,
} from '../../spec/scsi.ts'
import { ScsiResponse } from '../../spec/virtio-scsi.ts'
import { HANDLED, type Handled, type ScsiCommand } from './command.ts'
import { type Reservations, type ReserveAnswer, type ReserveOut, ScsiTopic } from './messages.ts'
import { isForAll, isHolder, REGISTRATIONS_MAX } from './reservation-state.ts'

const log = logger('vhost')

const RELATIVE_PORT = 1
const TYPES: ReadonlySet<number> = new Set(Object.values(ReservationType).filter(type => type !== 0))
/** Bit 7 of `masks` in the capabilities: `types` is valid. */
const TYPE_MASK_VALID = 0x80
const NO_KEY = '0'.repeat(16)

export function reserve6(command: ScsiCommand): Handled {
  return simple(command, 'reserve')
}

export function release6(command: ScsiCommand): Handled {
  return simple(command, 'release')
}

function simple(command: ScsiCommand, action: 'reserve' | 'release'): Handled {
  // Extents and third parties are of the past.
  if ((command.cdb.getUint8(1) & 0x1f) !== 0) return command.refuseField(1)
  return submitOut(command, { action, type: 0, key: NO_KEY, serviceActionKey: NO_KEY })
}

export function reserveOut(command: ScsiCommand): Handled {
  const { cdb } = command
  const action = ReserveOutCdb.serviceAction.get(cdb, 0) & 0x1f
  const type = ReserveOutCdb.type.get(cdb, 0)
  const length = ReserveOutCdb.parameterListLength.get(cdb, 0)
  const isTyped =
    action === ReserveOutAction.RESERVE ||
    action === ReserveOutAction.RELEASE ||
    action === ReserveOutAction.PREEMPT ||
    action === ReserveOutAction.PREEMPT_AND_ABORT
  if (isTyped && (!TYPES.has(type) || ReserveOutCdb.scope.get(cdb, 0) !== 0)) return command.refuseField(2)
  if (length !== ReserveOutParameters.size) {
    return command.check(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
  }
  if (length > command.dataOutBytes) return command.respond(ScsiResponse.OVERRUN)
  const { scratch, scratchAddress } = command.host
  command.copyDataOut(scratchAddress, 0, length)
  const key = hexOf(ReserveOutParameters.key.get(scratch, 0))
  const serviceActionKey = hexOf(ReserveOutParameters.serviceActionKey.get(scratch, 0))
  const flags = ReserveOutParameters.flags.get(scratch, 0)
  const isRegister = action === ReserveOutAction.REGISTER || action === ReserveOutAction.REGISTER_AND_IGNORE
  // None of what they ask for is among the capabilities.
  const refused = ReserveOutFlag.APTPL | ReserveOutFlag.ALL_TG_PT | ReserveOutFlag.SPEC_I_PT
  if (isRegister && (flags & refused) !== 0) return command.refuseParameter(ReserveOutParameters.flags.offset)
  command.transferBytes = length
  return submitOut(command, { action, type, key, serviceActionKey })
}

function submitOut(command: ScsiCommand, request: Omit<ReserveOut, 'bdev' | 'initiator'>): Handled {
  const { host, unit } = command
  const body: ReserveOut = { ...request, bdev: unit.bdev, initiator: host.initiator }
  return ask<ReserveAnswer>(command, ScsiTopic.RESERVE_OUT, body, ({ status, asc }) => {
    if (status === ScsiStatus.GOOD) return command.good(command.transferBytes)
    if (status === ScsiStatus.CHECK_CONDITION) return command.check(SenseKey.ILLEGAL_REQUEST, asc)
    return command.end(status)
  })
}

export function readKeys(command: ScsiCommand): Handled {
  return askIn(command, ({ generation, registrations }) => {
    const view = command.clearScratch(ReserveInHeader.size + REGISTRATIONS_MAX * 8)
    let at: number = ReserveInHeader.size
    for (const { key } of registrations) {
      ReservationDescriptor.key.set(view, at, Buffer.from(key, 'hex'))
      at += ReservationDescriptor.key.size
    }
    return finishHeader(view, generation, at)
  })
}

export function readReservation(command: ScsiCommand): Handled {
  return askIn(command, ({ generation, type, holder, registrations }) => {
    const view = command.clearScratch(ReserveInHeader.size + ReservationDescriptor.size)
    if (type === ReservationType.NONE) return finishHeader(view, generation, ReserveInHeader.size)
    const key = registrations.find(({ initiator }) => initiator === holder)?.key ?? NO_KEY
    ReservationDescriptor.key.set(view, ReserveInHeader.size, Buffer.from(key, 'hex'))
    ReservationDescriptor.type.set(view, ReserveInHeader.size, type)
    return finishHeader(view, generation, ReserveInHeader.size + ReservationDescriptor.size)
  })
}

export function readFullStatus(command: ScsiCommand): Handled {
  return askIn(command, state => {
    const entrySize = FullStatusDescriptor.size + SasTransportId.size
    const view = command.clearScratch(ReserveInHeader.size + REGISTRATIONS_MAX * entrySize)
    let at: number = ReserveInHeader.size
    for (const { initiator, key } of state.registrations) {
      const holds = isHolder(state, initiator)
      FullStatusDescriptor.key.set(view, at, Buffer.from(key, 'hex'))
      FullStatusDescriptor.holder.set(view, at, holds ? 1 : 0)
      FullStatusDescriptor.type.set(view, at, holds || isForAll(state.type) ? state.type : 0)
      FullStatusDescriptor.relativePort.set(view, at, RELATIVE_PORT)
      FullStatusDescriptor.additionalLength.set(view, at, SasTransportId.size)
      SasTransportId.protocol.set(view, at + FullStatusDescriptor.size, PROTOCOL_SAS)
      SasTransportId.address.set(view, at + FullStatusDescriptor.size, addressOf(initiator))
      at += entrySize
    }
    return finishHeader(view, state.generation, at)
  })
}

export function reportCapabilities(command: ScsiCommand): Handled {
  const { size } = ReserveCapabilities
  const view = command.clearScratch(size)
  ReserveCapabilities.length.set(view, 0, size)
  ReserveCapabilities.masks.set(view, 0, TYPE_MASK_VALID)
  const types = Object.values(ReservationTypeBit).reduce<number>((mask, bit) => mask | bit, 0)
  ReserveCapabilities.types.set(view, 0, types)
  return command.reply(size, ReserveInCdb.allocationLength.get(command.cdb, 0))
}

/** Replies what `write` puts into the scratch area; it returns how much that is. */
function askIn(command: ScsiCommand, write: (state: Reservations) => number): Handled {
  const allocationLength = ReserveInCdb.allocationLength.get(command.cdb, 0)
  return ask<Reservations>(command, ScsiTopic.RESERVE_IN, command.unit.bdev, state => {
    return command.reply(write(state), allocationLength)
  })
}

/** The command waits for the control thread; it may have been stopped meanwhile. */
function ask<T>(
  command: ScsiCommand,
  topic: string,
  body: unknown,
  answered: (answer: T) => Handled,
): Handled {
  const { serial, host } = command
  host.reactor.control.call<T>(topic, body).then(
    answer => {
      if (command.serial === serial) answered(answer)
    },
    error => {
      log.error(`${host.initiator}: reservations of ${command.unit.bdev}: ${error}`)
      if (command.serial === serial) {
        command.check(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
      }
    },
  )
  return HANDLED
}

function finishHeader(view: DataView, generation: number, end: number): number {
  ReserveInHeader.generation.set(view, 0, generation)
  ReserveInHeader.additionalLength.set(view, 0, end - ReserveInHeader.size)
  return end
}

/** Initiators have no address, but a TransportID needs one: always the same for a controller's name. */
function addressOf(initiator: string): Uint8Array {
  const address = createHash('sha256').update(`initiator ${initiator}`).digest().subarray(0, 8)
  address[0] = (NAA_LOCALLY_ASSIGNED << 4) | (address[0]! & 0x0f)
  return address
}

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')
