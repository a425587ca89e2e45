import { describe, expect, it } from 'vitest'
import {
  AvailableRing,
  availableBytes,
  availEventAt,
  DescriptorFlag,
  descriptorBytes,
  EventSuppression,
  InflightPacked,
  InflightPackedEntry,
  InflightSplit,
  InflightSplitEntry,
  inflightPackedBytes,
  inflightSplitBytes,
  PackedDescriptor,
  SplitDescriptor,
  UsedEntry,
  UsedRing,
  usedBytes,
  usedEventAt,
} from '../../src/spec/virtqueue.ts'
import { hex, page, read } from './wire.ts'

describe('split virtqueues (section 2.7)', () => {
  it('reads a descriptor', () => {
    expect(read(SplitDescriptor, hex('0050341201000000 00100000 0300 0700'))).toEqual({
      address: 0x1_1234_5000,
      length: 4096,
      flags: DescriptorFlag.NEXT | DescriptorFlag.WRITE,
      next: 7,
    })
  })

  it('reads the heads of the rings and a used entry', () => {
    expect(read(AvailableRing, hex('0100 feff'))).toEqual({ flags: 1, index: 0xfffe })
    expect(read(UsedRing, hex('0100 0200'))).toEqual({ flags: 1, index: 2 })
    expect(read(UsedEntry, hex('05000000 01100000'))).toEqual({ id: 5, length: 4097 })
  })

  // Section 2.7: 16 * size, 6 + 2 * size, 6 + 8 * size bytes.
  it('has the sizes of the table, the event indexes last', () => {
    expect([descriptorBytes(256), availableBytes(256), usedBytes(256)]).toEqual([4096, 518, 2054])
    expect([usedEventAt(256), availEventAt(256)]).toEqual([516, 2052])
  })
})

describe('packed virtqueues (section 2.8)', () => {
  it('reads a descriptor', () => {
    expect(read(PackedDescriptor, hex('0050341201000000 00100000 0900 8280'))).toEqual({
      address: 0x1_1234_5000,
      length: 4096,
      id: 9,
      flags: DescriptorFlag.WRITE | DescriptorFlag.AVAIL | DescriptorFlag.USED,
    })
  })

  it('reads an event suppression structure', () => {
    expect(read(EventSuppression, hex('0580 0200'))).toEqual({ offsetAndWrap: 0x8005, flags: 2 })
  })
})

describe('inflight regions (vhost-user specification)', () => {
  it('reads the region of a split queue', () => {
    expect(read(InflightSplit, hex('0000000000000000 0100 8000 0300 ffff'))).toEqual({
      features: 0,
      version: 1,
      entryCount: 128,
      lastBatchHead: 3,
      usedIndex: 0xffff,
    })
    expect(read(InflightSplitEntry, hex('01 0000000000 0400 0700000001000000'))).toEqual({
      inflight: 1,
      next: 4,
      counter: 0x1_0000_0007,
    })
  })

  it('reads the region of a packed queue', () => {
    const region = page(32, { 8: '0100 8000 0300 0400 0500 0600 01 00' })
    expect(read(InflightPacked, region)).toEqual({
      features: 0,
      version: 1,
      entryCount: 128,
      freeHead: 3,
      oldFreeHead: 4,
      usedIndex: 5,
      oldUsedIndex: 6,
      usedWrapCounter: 1,
      oldUsedWrapCounter: 0,
    })
    const entry = hex('01 00 0200 0300 0400 0500000000000000 0600 0700 08000000 0900000001000000')
    expect(read(InflightPackedEntry, entry)).toEqual({
      inflight: 1,
      next: 2,
      last: 3,
      count: 4,
      counter: 5,
      id: 6,
      flags: 7,
      length: 8,
      address: 0x1_0000_0009,
    })
  })

  // The structures' sizes in C, with eight bytes of alignment, rounded up to a cache line for each queue.
  it('takes whole cache lines for each queue', () => {
    expect([inflightSplitBytes(128), inflightSplitBytes(3)]).toEqual([2112, 64])
    expect([inflightPackedBytes(128), inflightPackedBytes(1)]).toEqual([4160, 64])
  })
})
