import { describe, expect, it } from 'vitest'
import {
  BlockSizeInformation,
  ExportInformation,
  ExportNameReply,
  Greeting,
  OptionHeader,
  OptionReply,
  Request,
  SimpleReply,
  StructuredReply,
} from '../../src/spec/nbd.ts'
import { hex, read } from './wire.ts'

// proto.md of the NBD project: each dump follows the list of fields in the section that describes the message.
describe('NBD handshake', () => {
  it('reads the greeting of the server', () => {
    const view = hex('4e42444d41474943 49484156454f5054 0003')
    expect(read(Greeting, view)).toEqual({
      magic: '4e42444d41474943',
      ihaveopt: '49484156454f5054',
      flags: 3,
    })
  })

  it('reads an option and an answer to it', () => {
    expect(read(OptionHeader, hex('49484156454f5054 00000007 0000000a'))).toEqual({
      magicHigh: 0x49484156,
      magicLow: 0x454f5054,
      option: 7,
      length: 10,
    })
    expect(read(OptionReply, hex('0003e889045565a9 00000007 80000006 00000004'))).toEqual({
      magicHigh: 0x3e889,
      magicLow: 0x45565a9,
      option: 7,
      type: 0x8000_0006,
      length: 4,
    })
  })

  it('reads what the server says of an export', () => {
    expect(read(ExportNameReply, hex('0000000280000000 0103'))).toEqual({
      sizeBytes: 10 * 2 ** 30,
      flags: 0x103,
    })
    expect(read(ExportInformation, hex('0000 0000000280000000 0103'))).toEqual({
      type: 0,
      sizeBytes: 10 * 2 ** 30,
      flags: 0x103,
    })
    expect(read(BlockSizeInformation, hex('0003 00000200 00001000 02000000'))).toEqual({
      type: 3,
      minimum: 512,
      preferred: 4096,
      maximum: 32 << 20,
    })
  })
})

describe('NBD transmission', () => {
  it('reads a request and keeps all bits of its cookie', () => {
    const view = hex('25609513 0001 0001 fedcba9876543210 0000000100000000 00001000')
    expect(read(Request, view)).toEqual({
      magic: 0x25609513,
      flags: 1,
      type: 1,
      cookieHigh: 0xfedcba98,
      cookieLow: 0x76543210,
      offsetBytes: 2 ** 32,
      lengthBytes: 4096,
    })
  })

  it('reads a simple reply', () => {
    expect(read(SimpleReply, hex('67446698 0000001c fedcba9876543210'))).toEqual({
      magic: 0x67446698,
      error: 28,
      cookieHigh: 0xfedcba98,
      cookieLow: 0x76543210,
    })
  })

  it('reads the last chunk of a structured reply', () => {
    expect(read(StructuredReply, hex('668e33ef 0001 8001 fedcba9876543210 00000006'))).toEqual({
      magic: 0x668e33ef,
      flags: 1,
      type: 0x8001,
      cookieHigh: 0xfedcba98,
      cookieLow: 0x76543210,
      length: 6,
    })
  })
})
