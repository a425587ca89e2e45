import { describe, expect, it } from 'vitest'
import {
  ConfigHeader,
  InflightDescription,
  LogDescription,
  MemoryRegion,
  MemoryTable,
  MessageHeader,
  ProtocolFeature,
  Request,
  SINGLE_REGION_AT,
  SINGLE_REGION_SIZE,
  U64,
  VhostFeature,
  VringAddress,
  VringState,
} from '../../src/spec/vhost-user.ts'
import { hex, read, zeroes } from './wire.ts'

// QEMU's docs/interop/vhost-user.rst: each dump follows the table of the section that describes the payload.
describe('vhost-user messages', () => {
  it('reads the header', () => {
    // SET_VRING_ADDR, version 1 with NEED_REPLY, 40 bytes to follow.
    expect(read(MessageHeader, hex('09000000 09000000 28000000'))).toEqual({
      request: 9,
      flags: 9,
      payloadBytes: 40,
    })
  })

  it('reads a 64-bit integer', () => {
    expect(read(U64, hex('0301000001000000'))).toEqual({ value: 0x1_0000_0103 })
  })

  it('reads the state of a ring', () => {
    expect(read(VringState, hex('03000000 00010000'))).toEqual({ index: 3, num: 256 })
  })

  it('reads the addresses of a ring: the used ring comes before the available one', () => {
    const view = hex(`
      02000000 01000000
      0010004a ff7f0000  // descriptors
      0030004a ff7f0000  // used ring
      0020004a ff7f0000  // available ring
      00300001 01000000  // log`)
    expect(read(VringAddress, view)).toEqual({
      index: 2,
      flags: 1,
      descriptor: 0x7fff_4a00_1000,
      used: 0x7fff_4a00_3000,
      available: 0x7fff_4a00_2000,
      log: 0x1_0100_3000,
    })
  })

  it('reads a memory table with one region', () => {
    const view = hex(`
      01000000 00000000
      00000000 01000000 00000040 00000000 00004000 ff7f0000 00000080 00000000`)
    expect(read(MemoryTable, view)).toEqual({ regionCount: 1, padding: 0 })
    expect(read(MemoryRegion, view, MemoryTable.size)).toEqual({
      guestAddress: 2 ** 32,
      sizeBytes: 2 ** 30,
      userAddress: 0x7fff_0040_0000,
      mmapOffset: 2 ** 31,
    })
  })

  it('finds the region of ADD_MEM_REG after its padding', () => {
    const view = hex(`${zeroes(8)} 0000100000000000 0000200000000000 0000300000000000 0000400000000000`)
    expect(view.byteLength).toBe(SINGLE_REGION_SIZE)
    expect(read(MemoryRegion, view, SINGLE_REGION_AT)).toEqual({
      guestAddress: 0x10_0000,
      sizeBytes: 0x20_0000,
      userAddress: 0x30_0000,
      mmapOffset: 0x40_0000,
    })
  })

  it('reads a log, the configuration space and an inflight description', () => {
    expect(read(LogDescription, hex('0080000000000000 0010000000000000'))).toEqual({
      sizeBytes: 0x8000,
      mmapOffset: 0x1000,
    })
    expect(read(ConfigHeader, hex('20000000 01000000 01000000'))).toEqual({
      offset: 32,
      sizeBytes: 1,
      flags: 1,
    })
    expect(read(InflightDescription, hex('8010000000000000 0010000000000000 0400 8000'))).toEqual({
      mmapSize: 0x1080,
      mmapOffset: 0x1000,
      queueCount: 4,
      queueSize: 128,
    })
  })

  it('numbers the requests and the features as the document does', () => {
    expect(Request.SET_MEM_TABLE).toBe(5)
    expect(Request.SET_VRING_KICK).toBe(12)
    expect(Request.SET_BACKEND_REQ_FD).toBe(21)
    expect(Request.SET_INFLIGHT_FD).toBe(32)
    expect(Request.GET_STATUS).toBe(40)
    expect(ProtocolFeature.INFLIGHT_SHMFD).toBe(0x1000n)
    expect(ProtocolFeature.STATUS).toBe(0x1_0000n)
    expect(VhostFeature.PROTOCOL_FEATURES).toBe(0x4000_0000n)
  })
})
