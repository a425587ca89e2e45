/** A session with a front end at the wire, and what tests of sessions say to it. */
import { afterEach, beforeEach, expect } from 'vitest'
import type { MappedRegion, StartQueue } from '../../../src/vhost/messages.ts'
import { Topic } from '../../../src/vhost/messages.ts'
import { mappingsOf, openDescriptors } from '../../support/descriptors.ts'
import { type FrontEnd, joined, u32s, u64s, VhostLab } from '../front-end.ts'

// Numbers as QEMU's docs/interop/vhost-user.rst has them, written out so that they share nothing with the code.
export const GET_FEATURES = 1
export const SET_FEATURES = 2
export const SET_OWNER = 3
export const SET_MEM_TABLE = 5
export const SET_LOG_BASE = 6
export const SET_VRING_NUM = 8
export const SET_VRING_ADDR = 9
export const SET_VRING_BASE = 10
export const GET_VRING_BASE = 11
export const SET_VRING_KICK = 12
export const SET_VRING_CALL = 13
export const SET_VRING_ERR = 14
export const GET_PROTOCOL_FEATURES = 15
export const SET_PROTOCOL_FEATURES = 16
export const GET_QUEUE_NUM = 17
export const SET_VRING_ENABLE = 18
export const SET_BACKEND_REQ_FD = 21
export const GET_CONFIG = 24
export const SET_CONFIG = 25
export const GET_INFLIGHT_FD = 31
export const SET_INFLIGHT_FD = 32
export const RESET_DEVICE = 34
export const GET_MAX_MEM_SLOTS = 36
export const ADD_MEM_REG = 37
export const REM_MEM_REG = 38
export const SET_STATUS = 39
export const GET_STATUS = 40

export const LOG_ALL = 1n << 26n
export const PROTOCOL = 1n << 30n
export const VERSION_1 = 1n << 32n
export const PACKED = 1n << 34n
export const OFFERED = 0x200n | LOG_ALL | (1n << 28n) | (1n << 29n) | PROTOCOL | VERSION_1 | PACKED
/** MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS. */
export const PROTOCOL_FEATURES = 0b1_1011_0010_0010_1011n

export const MIB = 2 ** 20
export const USER = 0x7f00_0000_0000

/** Of the test that runs: see `useSession`. */
export let lab: VhostLab
export let frontEnd: FrontEnd
let before: number

/** Before each test of the file a front end connects; after it nothing may be left of the session. */
export function useSession(): void {
  beforeEach(async () => {
    before = openDescriptors()
    lab = new VhostLab()
    await lab.open()
    frontEnd = await lab.connect()
  })

  afterEach(async () => {
    await lab.close()
    expect(mappingsOf('guest-memory') + mappingsOf('qpair-inflight') + mappingsOf('vhost-log')).toBe(0)
    expect(openDescriptors()).toBe(before)
  })
}

/** Another front end connects and is the one that speaks from now on. Resolves with the one before. */
export async function connectAnother(): Promise<FrontEnd> {
  const first = frontEnd
  frontEnd = await lab.connect()
  return first
}

/** A region of the payload of SET_MEM_TABLE: guest address, size, user address, offset in the file. */
export const region = (guest: number, size: number, user = USER + guest, offset = 0): Uint8Array =>
  u64s(guest, size, user, offset)
export const table = (...regions: Uint8Array[]): Uint8Array => joined(u32s(regions.length, 0), ...regions)
/** Index, flags, then descriptors, used ring, available ring, log. */
export const addresses = (index: number, flags = 0, log = 0): Uint8Array =>
  joined(u32s(index, flags), u64s(USER + 0x1000, USER + 0x3000, USER + 0x2000, log))

export async function negotiate(features = PROTOCOL | VERSION_1): Promise<void> {
  frontEnd.send(SET_PROTOCOL_FEATURES, u64s(PROTOCOL_FEATURES))
  frontEnd.send(SET_OWNER)
  expect(await frontEnd.acknowledged(SET_FEATURES, u64s(features))).toBe(0n)
}

export async function shareMemory(): Promise<void> {
  const payload = table(region(0, MIB))
  expect(await frontEnd.acknowledged(SET_MEM_TABLE, payload, [frontEnd.memory(MIB)])).toBe(0n)
}

/** As QEMU does it, in its order; answered once the ring runs. */
export async function startRing(index = 0, base = 0): Promise<void> {
  frontEnd.send(SET_VRING_CALL, u64s(index), [frontEnd.eventfd()])
  frontEnd.send(SET_VRING_NUM, u32s(index, 128))
  frontEnd.send(SET_VRING_BASE, u32s(index, base))
  frontEnd.send(SET_VRING_ADDR, addresses(index))
  frontEnd.send(SET_VRING_KICK, u64s(index), [frontEnd.eventfd()])
  expect(await frontEnd.acknowledged(SET_VRING_ENABLE, u32s(index, 1))).toBe(0n)
}

/** The front end is thrown out, with one line that says why. */
export async function expectFault(why: string | RegExp): Promise<void> {
  await frontEnd.untilHungUp()
  await lab.untilEnded()
  expect(lab.lines).toHaveLength(1)
  expect(lab.lines[0]).toMatch(/^WARNING vhost: disk0: the front end is disconnected: /)
  expect(lab.lines[0]).toMatch(why)
}

export const reactor = (index = 0) => lab.vhost[index]!
export const lastStart = (index = 0) => reactor(index).last(Topic.START) as unknown as StartQueue
export const lastRegions = () => reactor().last(Topic.MEMORY)!['regions'] as MappedRegion[]
