/**
 * The vhost-user protocol's messages, as the back end gets and answers them: each is checked here, once, for what the
 * document says of its size, its descriptors and the feature that it needs. What its values mean is the handler's to check.
 */
import { ProtocolError } from '../../core/errors.ts'
import type { Framing, SocketMessage } from '../../reactor/message-sockets.ts'
import {
  CONFIG_SIZE_MAX,
  ConfigHeader,
  InflightDescription,
  LogDescription,
  MemoryRegion,
  MemoryTable,
  MessageFlag,
  MessageHeader,
  ProtocolFeature,
  Request,
  SINGLE_REGION_SIZE,
  TABLE_REGIONS_MAX,
  U64,
  VHOST_USER_VERSION,
  VringAddress,
  VringState,
} from '../../spec/vhost-user.ts'

/** Queues of one session: the index in SET_VRING_KICK has eight bits. */
export const QUEUES_MAX = 256

/** What this back end can do. */
export const PROTOCOL_FEATURES =
  ProtocolFeature.MQ |
  ProtocolFeature.LOG_SHMFD |
  ProtocolFeature.REPLY_ACK |
  ProtocolFeature.BACKEND_REQ |
  ProtocolFeature.CONFIG |
  ProtocolFeature.INFLIGHT_SHMFD |
  ProtocolFeature.RESET_DEVICE |
  ProtocolFeature.CONFIGURE_MEM_SLOTS |
  ProtocolFeature.STATUS

const CONFIG_PAYLOAD_MAX = ConfigHeader.size + CONFIG_SIZE_MAX

export const FRAMING: Framing = {
  headerBytes: MessageHeader.size,
  sizeAt: MessageHeader.payloadBytes.offset,
  payloadBytesMax: CONFIG_PAYLOAD_MAX,
  descriptorsMax: TABLE_REGIONS_MAX,
}

type Range = readonly [min: number, max: number]

interface Rule {
  readonly name: string
  readonly payloadBytes: Range
  readonly descriptors: Range
  /** One of these protocol features must have been negotiated. */
  readonly needs: bigint
}

const NONE: Range = [0, 0]
const ONE: Range = [1, 1]
const exactly = (size: number): Range => [size, size]

function rule(
  request: keyof typeof Request,
  payloadBytes: Range = NONE,
  descriptors: Range = NONE,
  needs = 0n,
): [number, Rule] {
  return [Request[request], { name: request, payloadBytes, descriptors, needs }]
}

/** In the document's order. What is not here was not offered. */
const RULES = new Map<number, Rule>([
  rule('GET_FEATURES'),
  rule('SET_FEATURES', exactly(U64.size)),
  rule('GET_PROTOCOL_FEATURES'),
  rule('SET_PROTOCOL_FEATURES', exactly(U64.size)),
  rule('SET_OWNER'),
  rule('RESET_OWNER'),
  rule(
    'SET_MEM_TABLE',
    [MemoryTable.size, MemoryTable.size + MemoryRegion.size * TABLE_REGIONS_MAX],
    [0, TABLE_REGIONS_MAX],
  ),
  rule('SET_LOG_BASE', exactly(LogDescription.size), ONE, ProtocolFeature.LOG_SHMFD),
  rule('SET_LOG_FD', [0, U64.size], ONE),
  rule('SET_VRING_NUM', exactly(VringState.size)),
  rule('SET_VRING_ADDR', exactly(VringAddress.size)),
  rule('SET_VRING_BASE', exactly(VringState.size)),
  rule('GET_VRING_BASE', exactly(VringState.size)),
  rule('SET_VRING_KICK', exactly(U64.size), [0, 1]),
  rule('SET_VRING_CALL', exactly(U64.size), [0, 1]),
  rule('SET_VRING_ERR', exactly(U64.size), [0, 1]),
  rule('GET_QUEUE_NUM', NONE, NONE, ProtocolFeature.MQ),
  rule('SET_VRING_ENABLE', exactly(VringState.size)),
  rule('SET_BACKEND_REQ_FD', NONE, ONE, ProtocolFeature.BACKEND_REQ),
  rule('GET_CONFIG', [ConfigHeader.size, CONFIG_PAYLOAD_MAX], NONE, ProtocolFeature.CONFIG),
  rule('SET_CONFIG', [ConfigHeader.size, CONFIG_PAYLOAD_MAX], NONE, ProtocolFeature.CONFIG),
  rule('GET_INFLIGHT_FD', [20, InflightDescription.size], NONE, ProtocolFeature.INFLIGHT_SHMFD),
  rule('SET_INFLIGHT_FD', [20, InflightDescription.size], ONE, ProtocolFeature.INFLIGHT_SHMFD),
  rule('RESET_DEVICE', NONE, NONE, ProtocolFeature.RESET_DEVICE),
  rule('GET_MAX_MEM_SLOTS', NONE, NONE, ProtocolFeature.CONFIGURE_MEM_SLOTS),
  rule('ADD_MEM_REG', exactly(SINGLE_REGION_SIZE), ONE, ProtocolFeature.CONFIGURE_MEM_SLOTS),
  // The document lets a front end send a descriptor of what it takes away.
  rule('REM_MEM_REG', exactly(SINGLE_REGION_SIZE), [0, 1], ProtocolFeature.CONFIGURE_MEM_SLOTS),
  rule('SET_STATUS', exactly(U64.size), NONE, ProtocolFeature.STATUS),
  rule('GET_STATUS', NONE, NONE, ProtocolFeature.STATUS),
])

const NAMES = new Map(Object.entries(Request).map(([name, number]) => [number as number, name]))

/** For people: `SET_MEM_TABLE`, or the number of what has no name. */
export const requestName = (request: number): string => NAMES.get(request) ?? `request ${request}`

/** A message that has the size and the descriptors that its request should have. */
export interface FrontEndMessage {
  readonly request: number
  readonly payload: DataView
  /** What a handler keeps, it takes out of here; the rest is closed when the message is answered. */
  readonly descriptors: number[]
  /** The front end waits for an answer, whether the request has one of its own or not. */
  readonly needsReply: boolean
}

/** The header alone: what a fault is reported with, whatever else is wrong. */
export function peek(bytes: Uint8Array): { readonly request: number; readonly needsReply: boolean } {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  const needsReply = (MessageHeader.flags.get(view, 0) & MessageFlag.NEED_REPLY) !== 0
  return { request: MessageHeader.request.get(view, 0), needsReply }
}

/** Throws `ProtocolError` with the first thing that is wrong. `negotiated`: the protocol features. */
export function checkMessage({ bytes, descriptors }: SocketMessage, negotiated: bigint): FrontEndMessage {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  const { request, needsReply } = peek(bytes)
  const flags = MessageHeader.flags.get(view, 0)
  const version = flags & MessageFlag.VERSION_MASK
  if (version !== VHOST_USER_VERSION) fault(`has version ${version}, not ${VHOST_USER_VERSION}`, 4)
  if ((flags & MessageFlag.REPLY) !== 0) fault('has the flag of an answer', 4)
  const rule = RULES.get(request)
  if (rule === undefined) fault('belongs to a feature that was not offered', 0)
  if (rule.needs !== 0n && (negotiated & rule.needs) === 0n) {
    fault(`needs a protocol feature (${hex(rule.needs)}) that was not negotiated (${hex(negotiated)})`, 0)
  }
  const payloadBytes = bytes.length - MessageHeader.size
  if (!isWithin(payloadBytes, rule.payloadBytes)) {
    fault(`has ${payloadBytes} bytes, not ${words(rule.payloadBytes)}`, MessageHeader.payloadBytes.offset)
  }
  if (!isWithin(descriptors.length, rule.descriptors)) {
    fault(`has ${descriptors.length} descriptors, not ${words(rule.descriptors)}`, 0)
  }
  const payload = new DataView(bytes.buffer, bytes.byteOffset + MessageHeader.size, payloadBytes)
  return { request, payload, descriptors: descriptors as number[], needsReply }
}

/** Ends the session. */
export function fault(what: string, offsetBytes: number): never {
  throw new ProtocolError(what, offsetBytes)
}

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`

const isWithin = (value: number, [min, max]: Range): boolean => value >= min && value <= max
const words = ([min, max]: Range): string => (min === max ? `${min}` : `${min} to ${max}`)

/** An answer to a request. */
export function replyTo(request: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(MessageHeader.size + payload.length)
  const view = new DataView(bytes.buffer)
  MessageHeader.request.set(view, 0, request)
  MessageHeader.flags.set(view, 0, VHOST_USER_VERSION | MessageFlag.REPLY)
  MessageHeader.payloadBytes.set(view, 0, payload.length)
  bytes.set(payload, MessageHeader.size)
  return bytes
}

/** The payload of many answers: a number, or a mask of features. */
export function u64(value: number | bigint): Uint8Array {
  const bytes = new Uint8Array(U64.size)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true)
  return bytes
}

/** What the back end asks of the front end, without payload and without waiting for an answer. */
export function backendRequest(request: number): Uint8Array {
  const bytes = new Uint8Array(MessageHeader.size)
  const view = new DataView(bytes.buffer)
  MessageHeader.request.set(view, 0, request)
  MessageHeader.flags.set(view, 0, VHOST_USER_VERSION)
  return bytes
}
