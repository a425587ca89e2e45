import { describe, expect, it } from 'vitest'
import type { BdevInfo } from '../../../src/bdev/bdev.ts'
import { IoType } from '../../../src/bdev/io.ts'
import { ProtocolError } from '../../../src/core/errors.ts'
import { BlkModel } from '../../../src/vhost/blk/model.ts'
import { page } from '../../spec/wire.ts'

// Feature bits by their numbers in the Virtual I/O Device specification 1.2, section 5.2.3.
const SEG_MAX = 2
const RO = 5
const BLK_SIZE = 6
const FLUSH = 9
const TOPOLOGY = 10
const CONFIG_WCE = 11
const MQ = 12
const DISCARD = 13
const WRITE_ZEROES = 14
const ALWAYS = [SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ]

const mask = (bits: readonly number[]): bigint => bits.reduce((all, bit) => all | (1n << BigInt(bit)), 0n)

const info = (changes: Partial<BdevInfo> = {}): BdevInfo => ({
  name: 'disk0',
  aliases: [],
  driver: 'malloc',
  product: 'Malloc disk',
  uuid: '01234567-89ab-4def-8123-456789abcdef',
  blockSize: 512,
  physicalBlockSize: 512,
  blockCount: 2 ** 33,
  supports: new Set([IoType.READ, IoType.WRITE, IoType.FLUSH, IoType.UNMAP, IoType.WRITE_ZEROES]),
  writeCache: true,
  readOnly: false,
  bases: [],
  device: null,
  driverSpecific: {},
  ...changes,
})

const model = (changes: Partial<BdevInfo> = {}, isReadOnly = false): BlkModel =>
  new BlkModel(info(changes), { isReadOnly, queueCount: 4 })

const cached = { writeback: true }

describe('features of a virtio-blk disk', () => {
  it.each([
    { name: 'all that its bdev can do', changes: {}, more: [DISCARD, WRITE_ZEROES] },
    {
      name: 'no discard without unmap',
      changes: { supports: new Set([IoType.WRITE, IoType.WRITE_ZEROES]) },
      more: [WRITE_ZEROES],
    },
    {
      name: 'no emulated zeroes',
      changes: { supports: new Set([IoType.WRITE, IoType.UNMAP]) },
      more: [DISCARD],
    },
    { name: 'flushes without a cache, too', changes: { writeCache: false }, more: [DISCARD, WRITE_ZEROES] },
    { name: 'no changes on a bdev that is read only', changes: { readOnly: true }, more: [RO] },
    {
      name: 'no changes on a bdev that cannot write',
      changes: { supports: new Set([IoType.READ]) },
      more: [RO],
    },
  ])('are $name', ({ changes, more }) => {
    expect(model(changes).features).toBe(mask([...ALWAYS, ...more]))
  })

  it('are those of a read-only disk when the operator wants that', () => {
    expect(model({}, true).features).toBe(mask([...ALWAYS, RO]))
    expect(model({}, true).describe(0n, cached).readOnly).toBe(true)
  })
})

describe('configuration space of a virtio-blk disk', () => {
  it('has every field where the specification puts it', () => {
    const preferred = {
      writeAlignment: 0,
      writeGranularity: 16,
      writeSize: 256,
      unmapAlignment: 0,
      unmapGranularity: 2,
    }
    const disk = model({ blockSize: 4096, physicalBlockSize: 16384, blockCount: 2 ** 29 + 1, preferred })
    const expected = page(60, {
      0: '0800000001000000', // capacity
      12: '7e000000', // seg_max
      20: '00100000', // blk_size
      24: '02', // physical_block_exp
      26: '1000', // min_io_size
      28: '00010000', // opt_io_size
      32: '01', // writeback
      34: '0400', // num_queues
      36: '00000200', // max_discard_sectors
      40: '10000000', // max_discard_seg
      44: '10000000', // discard_sector_alignment
      48: '00000200', // max_write_zeroes_sectors
      52: '10000000', // max_write_zeroes_seg
      56: '01', // write_zeroes_may_unmap
    })
    expect(Buffer.from(disk.config(0n, cached)).toString('hex')).toBe(
      Buffer.from(expected.buffer).toString('hex'),
    )
  })

  it('has the size that the bdev has now', () => {
    const own = info({ blockCount: 8 })
    const disk = new BlkModel(own, { isReadOnly: false, queueCount: 1 })
    own.blockCount = 0x1234
    expect([...disk.config(0n, cached).subarray(0, 8)]).toEqual([0x34, 0x12, 0, 0, 0, 0, 0, 0])
  })

  it('advises one physical block, and what fits into 16 bits', () => {
    expect([...model({ physicalBlockSize: 4096 }).config(0n, cached).subarray(24, 28)]).toEqual([3, 0, 8, 0])
    const preferred = {
      writeAlignment: 0,
      writeGranularity: 1 << 20,
      writeSize: 0,
      unmapAlignment: 0,
      unmapGranularity: 0,
    }
    expect([...model({ preferred }).config(0n, cached).subarray(24, 28)]).toEqual([0, 0, 255, 255])
  })

  it('lets the driver write to writeback alone', () => {
    const disk = model()
    const state = { writeback: true }
    expect(disk.writeConfig(32, Uint8Array.of(0), state)).toBe(true)
    expect(state.writeback).toBe(false)
    expect(disk.config(0n, state)[32]).toBe(0)
    expect(disk.writeConfig(32, Uint8Array.of(0), state)).toBe(false)
    expect(disk.writeConfig(32, Uint8Array.of(1), state)).toBe(true)
    expect(state.writeback).toBe(true)
  })

  it.each([
    [0, [1, 0, 0, 0, 0, 0, 0, 0]],
    [31, [1]],
    [33, [1]],
    [32, [1, 0]],
    [32, []],
    [32, [2]],
  ])('refuses a write at %i of %j', (offset, bytes) => {
    const state = { writeback: false }
    expect(() => model().writeConfig(offset, Uint8Array.from(bytes), state)).toThrow(ProtocolError)
    expect(state.writeback).toBe(false)
  })
})

describe('description of a virtio-blk disk', () => {
  it.each([
    { flush: true, writeback: true, writeCache: true, writeThrough: false },
    { flush: true, writeback: false, writeCache: true, writeThrough: true },
    { flush: false, writeback: true, writeCache: true, writeThrough: true },
    { flush: false, writeback: false, writeCache: false, writeThrough: false },
  ])('knows when every write must be stable: %j', ({ flush, writeback, writeCache, writeThrough }) => {
    const features = flush ? mask(ALWAYS) : 0n
    expect(model({ writeCache }).describe(features, { writeback }).writeThrough).toBe(writeThrough)
    expect(model({ writeCache }).config(features, { writeback })[32]).toBe(writeCache && writeback ? 1 : 0)
  })

  it('has the name of the bdev as its serial number, or its UUID when that is too long', () => {
    expect(model({ name: 'x'.repeat(20) }).describe(0n, cached).serial).toBe('x'.repeat(20))
    expect(model({ name: 'x'.repeat(21) }).describe(0n, cached).serial).toBe('0123456789ab4def8123')
    expect(model({ name: 'é'.repeat(11) }).describe(0n, cached).serial).toBe('0123456789ab4def8123')
  })

  it('keeps the disk when its bdev is gone', () => {
    const disk = model()
    const before = disk.config(0n, cached)
    expect(disk.describe(0n, cached).bdev).toBe('disk0')
    disk.remove()
    expect(disk.describe(0n, cached)).toMatchObject({ bdev: null, serial: 'disk0' })
    expect(disk.config(0n, cached)).toEqual(before)
  })
})
