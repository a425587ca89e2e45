import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Status } from '../../../src/spec/nvme-status.ts'
import { filled, lunOf, type ScsiGuest, ScsiHost, UNTOUCHED } from './support.ts'

let host: ScsiHost
let guest: ScsiGuest

beforeEach(async () => {
  host = await ScsiHost.start()
  await host.create('held', 'h0', {})
  guest = await host.guest('vhost.0', ['m0', 'h0'])
})
afterEach(() => host.close())

const HELD = { lun: lunOf(1) }
const pattern = (size: number): Uint8Array =>
  Uint8Array.from({ length: size }, (_, i) => (i * 7 + (i >> 9)) & 0xff)

/** The parameter list of UNMAP: lengths, then 16 bytes for each range. */
function unmapOf(...ranges: readonly (readonly [lba: number, blocks: number])[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(8 + 16 * ranges.length))
  view.setUint16(0, 6 + 16 * ranges.length)
  view.setUint16(2, 16 * ranges.length)
  for (const [i, [lba, blocks]] of ranges.entries()) {
    view.setBigUint64(8 + 16 * i, BigInt(lba))
    view.setUint32(16 + 16 * i, blocks)
  }
  return new Uint8Array(view.buffer)
}

describe('READ and WRITE', () => {
  it.each([
    ['6', '0a 000003 02 00', '08 000003 02 00'],
    ['10', '2a 00 00000003 00 0002 00', '28 00 00000003 00 0002 00'],
    ['12', 'aa 00 00000003 00000002 00 00', 'a8 00 00000003 00000002 00 00'],
    ['16', '8a 00 0000000000000003 00000002 00 00', '88 00 0000000000000003 00000002 00 00'],
  ])('of %s bytes read back what was written, however it is cut', async (_, write, read) => {
    for (const cuts of [[], [1, 20, 51, 109, 700], [5], [40, 108, 109, 110, 111, 600]]) {
      const data = pattern(1024).reverse()
      const written = await guest.ask(write, { out: data, cuts })
      expect(written).toMatchObject({ response: 0, status: 0, residual: 0, sense: '', length: 108 })
      const answer = await guest.ask(read, { in: 1024, cuts })
      expect(answer).toMatchObject({ response: 0, status: 0, residual: 0, length: 108 + 1024 })
      expect(Buffer.compare(answer.data, data)).toBe(0)
    }
  })

  it('takes 0 for 256 blocks in six bytes, and for nothing in ten', async () => {
    const short = guest.send('08 000000 00 00', { in: 256 * 512, ...HELD })
    host.reactors.settle()
    host.held.end(Status.SUCCESS)
    host.reactors.settle()
    expect(guest.answerOf(short)).toMatchObject({ status: 0, residual: 0 })
    expect(host.held.seen).toEqual(['read 0+256'])
    expect(await guest.ask('28 00 00000000 00 0000 00', { in: 512 })).toMatchObject({
      status: 0,
      residual: 512,
    })
  })

  it('says how much of a longer buffer was not used', async () => {
    const answer = await guest.ask('28 00 00000000 00 0001 00', { in: 1024 })
    expect(answer).toMatchObject({ status: 0, residual: 512, length: 108 + 512 })
    expect([...answer.data.subarray(512)].every(byte => byte === UNTOUCHED)).toBe(true)
    expect(await guest.ask('2a 00 00000000 00 0001 00', { out: filled(1536, 1) })).toMatchObject({
      status: 0,
      residual: 1024,
    })
  })

  it('answers OVERRUN and does nothing when the buffer is too short', async () => {
    expect(await guest.ask('28 00 00000000 00 0002 00', { in: 1023 })).toMatchObject({
      response: 1,
      residual: 1023,
    })
    expect(await guest.ask('2a 00 00000000 00 0002 00', { out: filled(1023, 1) })).toMatchObject({
      response: 1,
    })
    expect(await guest.ask('28 00 00000000 00 0001 00', { out: filled(512, 1) })).toMatchObject({
      response: 1,
    })
    expect(await guest.ask('2a 00 00000000 00 0001 00', { in: 512 })).toMatchObject({ response: 1 })
  })

  it.each([
    '28 00 0000003f 00 0002 00',
    '28 00 ffffffff 00 0001 00',
    '88 00 ffffffffffffffff 00000001 00 00',
    '88 00 0000000000000000 ffffffff 00 00',
    '2a 00 00000040 00 0001 00',
    '2f 00 00000040 00 0001 00',
    '35 00 00000040 00 0001 00',
  ])('%s is out of range', async cdb => {
    expect(await guest.ask(cdb, { in: 1024 })).toMatchObject({ status: 2, sense: '5/2100', response: 0 })
  })

  it('refuses protection information, naming the byte', async () => {
    const { sense, senseBytes } = await guest.ask('28 20 00000000 00 0001 00', { in: 512 })
    expect(sense).toBe('5/2400')
    // Sense key specific: valid, in the CDB, byte 1.
    expect([...senseBytes.subarray(15, 18)]).toEqual([0xc0, 0, 1])
  })

  it('writes through with FUA, and reads without', async () => {
    for (const cdb of [
      '2a 08 00000000 00 0001 00',
      '8a 18 0000000000000008 00000001 00 00',
      '28 18 00000000 00 0001 00',
    ]) {
      const sent = guest.send(cdb, { out: filled(512, 1), in: 512, ...HELD })
      host.held.end(Status.SUCCESS)
      host.reactors.settle()
      expect(sent.isDone).toBe(true)
    }
    expect(host.held.seen).toEqual(['write 0+1 fua', 'write 8+1 fua', 'read 0+1'])
  })

  it('cuts a large transfer into pieces, and ends with the first that fails', async () => {
    const size = 10 << 20
    const cdb = '88 00 0000000100000000 00005000 00 00'
    const sent = guest.send(cdb, { in: size, ...HELD, cuts: [5000, 6 << 20] })
    for (let i = 0; i < 3; i++) {
      host.held.end(Status.SUCCESS)
      host.reactors.settle()
    }
    expect(host.held.seen).toEqual(['read 4294967296+8192', 'read 4294975488+8192', 'read 4294983680+4096'])
    expect(guest.answerOf(sent)).toMatchObject({ status: 0, residual: 0 })

    const failing = guest.send(cdb, { in: size, ...HELD })
    host.held.end(Status.SUCCESS)
    host.reactors.settle()
    host.held.end(Status.UNRECOVERED_READ_ERROR)
    host.reactors.settle()
    expect(guest.answerOf(failing)).toMatchObject({ status: 2, sense: '3/1100', residual: size })
    expect(host.held.held).toEqual([])
  })

  it.each([
    ['READ', '88 00 0000000000000000 00006000 00 00', { in: 12 << 20 }],
    ['VERIFY', '2f 00 00000000 00 0600 00', {}],
    ['WRITE SAME', '41 08 00000000 00 1800 00', { out: filled(512, 1) }],
    ['UNMAP', '42 00 00000000 00 0038 00', { out: unmapOf([0, 1], [2, 1], [4, 1]) }],
  ])('goes on with one %s in a round, however many there are', (_name, cdb, options) => {
    const sent = [0, 1].map(id => guest.send(cdb, { ...options, ...HELD, id }))
    const endAll = (): void => {
      for (const io of [...host.held.held]) host.held.end(Status.SUCCESS, io)
    }
    const inTurn = (): number[] =>
      Array.from({ length: 3 }, () => {
        host.reactors.poll()
        return host.held.seen.length
      })
    endAll()
    expect(inTurn()).toEqual([3, 4, 4])
    endAll()
    expect(inTurn()).toEqual([5, 6, 6])
    endAll()
    host.reactors.settle()
    expect(sent.map(one => guest.answerOf(one).status)).toEqual([0, 0])
  })

  it.each([
    [Status.WRITE_FAULT, '4/0300'],
    [Status.CAPACITY_EXCEEDED, '7/2707'],
    [Status.NAMESPACE_WRITE_PROTECTED, '7/2700'],
    [Status.NAMESPACE_NOT_READY, '2/0400'],
    [Status.INTERNAL_PATH_ERROR, 'b/0800'],
    [Status.INTERNAL_ERROR, '4/4400'],
    [0x7ff, '4/4400'],
  ])('tells of a write that ended with NVMe status %i as %s', (status, sense) => {
    const sent = guest.send('2a 00 00000000 00 0001 00', { out: filled(512, 1), ...HELD })
    host.held.end(status)
    host.reactors.settle()
    expect(guest.answerOf(sent)).toMatchObject({ response: 0, status: 2, sense, residual: 512 })
  })

  it('has the guest come again when the bdev was interrupted', () => {
    const sent = guest.send('2a 00 00000000 00 0001 00', { out: filled(512, 1), ...HELD })
    host.held.end(Status.COMMAND_INTERRUPTED)
    host.reactors.settle()
    expect(guest.answerOf(sent)).toMatchObject({ response: 0, status: 8, sense: '' })
  })
})

describe('VERIFY and COMPARE AND WRITE', () => {
  it('compares with the data, or only reads', async () => {
    await guest.ask('2a 00 00000004 00 0002 00', { out: filled(1024, 9) })
    expect(await guest.ask('2f 02 00000004 00 0002 00', { out: filled(1024, 9) })).toMatchObject({
      status: 0,
      residual: 0,
    })
    const wrong = filled(1024, 9)
    wrong[1023] = 8
    expect(await guest.ask('8f 02 0000000000000004 00000002 00 00', { out: wrong })).toMatchObject({
      status: 2,
      sense: 'e/1d00',
    })
    expect(await guest.ask('2f 00 00000004 00 0002 00')).toMatchObject({ status: 0 })
    expect(await guest.ask('2f 06 00000004 00 0002 00', { out: wrong })).toMatchObject({ sense: '5/2400' })
  })

  it('finds a medium that cannot be read', async () => {
    const sent = guest.send('8f 00 0000000000000000 00000800 00 00', HELD)
    for (const status of [Status.SUCCESS, Status.UNRECOVERED_READ_ERROR]) {
      host.held.end(status)
      host.reactors.settle()
    }
    expect(host.held.seen).toEqual(['read 0+512', 'read 512+512'])
    expect(guest.answerOf(sent)).toMatchObject({ sense: '3/1100' })
  })

  it.each(['2e 02 00000000 00 5000 00', '2e 00 00000000 00 5000 00'])(
    'WRITE AND VERIFY %s writes through and looks again',
    cdb => {
      const sent = guest.send(cdb, { out: filled(0x5000 * 512, 1), ...HELD })
      while (host.held.held.length > 0) {
        host.held.end(Status.SUCCESS)
        host.reactors.settle()
      }
      expect(guest.answerOf(sent)).toMatchObject({ status: 0, residual: 0 })
      const written = host.held.seen.filter(io => io.startsWith('write'))
      expect(written).toEqual(['write 0+8192 fua', 'write 8192+8192 fua', 'write 16384+4096 fua'])
      const checks = host.held.seen
        .filter(io => !io.startsWith('write'))
        .map(io => Number(/\+(\d+)/.exec(io)![1]))
      expect(checks.reduce((a, b) => a + b)).toBe(0x5000)
    },
  )

  it('writes the second half only where the first is what is there', async () => {
    const cas = '89 00 0000000000000007 000000 01 00 00'
    const data = Buffer.concat([filled(512, 0), filled(512, 5)])
    expect(await guest.ask(cas, { out: data })).toMatchObject({ status: 0, residual: 0 })
    expect(await guest.ask(cas, { out: data })).toMatchObject({ status: 2, sense: 'e/1d00' })
    const { data: read } = await guest.ask('28 00 00000007 00 0001 00', { in: 512 })
    expect(Buffer.compare(read, filled(512, 5))).toBe(0)
    expect(await guest.ask(cas, { out: filled(1023, 0) })).toMatchObject({ response: 1 })
  })
})

describe('WRITE SAME and UNMAP', () => {
  it('repeats a block, whatever it holds', async () => {
    await guest.ask('93 00 0000000000000002 00000003 00 00', { out: filled(512, 0x77) })
    const { data } = await guest.ask('28 00 00000001 00 0005 00', { in: 5 * 512 })
    expect([0, 512, 1024, 1536, 2048].map(at => data[at])).toEqual([0, 0x77, 0x77, 0x77, 0])
    expect(data[2047]).toBe(0x77)
  })

  it.each([
    ['41 08 00000000 00 0008 00', { out: filled(512, 0) }],
    ['93 09 0000000000000000 00000008 00 00', {}],
    ['93 00 0000000000000000 00000008 00 00', { out: filled(512, 0) }],
  ])('%s zeroes', async (cdb, options) => {
    await guest.ask('2a 00 00000000 00 0008 00', { out: filled(4096, 1) })
    expect(await guest.ask(cdb, options)).toMatchObject({ status: 0, residual: 0 })
    const { data } = await guest.ask('28 00 00000000 00 0008 00', { in: 4096 })
    expect(data.every(byte => byte === 0)).toBe(true)
    const sent = guest.send(cdb, { ...options, ...HELD })
    host.held.end(Status.SUCCESS)
    host.reactors.settle()
    expect(sent.isDone).toBe(true)
    expect(host.held.seen).toEqual(['write_zeroes 0+8'])
  })

  it('refuses what it could not do in bounded time, and what it does not know', async () => {
    // 0 blocks; more than 1 GiB; ANCHOR; NDOB where there is none; less than a block of data.
    expect(await guest.ask('93 00 0000000000000000 00000000 00 00')).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('93 01 0000000000000000 00200001 00 00', HELD)).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('93 10 0000000000000000 00000001 00 00')).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('41 01 00000000 00 0001 00')).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('41 00 00000000 00 0001 00', { out: filled(511, 0) })).toMatchObject({
      response: 1,
    })
  })

  it('unmaps one range after the other, in pieces', async () => {
    // Lengths 0x26 and 0x20, then 2 blocks at 5, none at 9, 0x20001 at 0x100000000.
    const list = Buffer.from(
      '003600300000000000000000000000050000000200000000' +
        '00000000000000090000000000000000' +
        '00000001000000000002000100000000',
      'hex',
    )
    const sent = guest.send('42 00 00000000 00 0038 00', { out: list, ...HELD })
    while (host.held.held.length > 0) {
      host.held.end(Status.SUCCESS)
      host.reactors.settle()
    }
    expect(host.held.seen).toEqual(['unmap 5+2', 'unmap 4294967296+131072', 'unmap 4295098368+1'])
    expect(guest.answerOf(sent)).toMatchObject({ status: 0, residual: 0 })
  })

  it('unmaps nothing when a range is not within, or the list is not one', async () => {
    const list = (lba: string, blocks: string): Uint8Array =>
      Buffer.from(`00160010 00000000 ${lba} ${blocks} 00000000`.replaceAll(' ', ''), 'hex')
    const unmap = '42 00 00000000 00 0018 00'
    expect(await guest.ask(unmap, { out: list('000000000000003f', '00000002') })).toMatchObject({
      sense: '5/2100',
    })
    expect(await guest.ask(unmap, { out: list('ffffffffffffffff', '00000001') })).toMatchObject({
      sense: '5/2100',
    })
    expect(await guest.ask(unmap, { out: list('0000000000000000', '00800001'), ...HELD })).toMatchObject({
      sense: '5/2600',
    })
    expect(await guest.ask('42 00 00000000 00 0007 00', { out: filled(7, 0) })).toMatchObject({
      sense: '5/1a00',
    })
    expect(await guest.ask('42 01 00000000 00 0008 00', { out: filled(8, 0) })).toMatchObject({
      sense: '5/2400',
    })
    expect(await guest.ask('42 00 00000000 00 0018 00', { out: filled(8, 0) })).toMatchObject({ response: 1 })
    expect(await guest.ask('42 00 00000000 00 0000 00')).toMatchObject({ status: 0 })
    expect(host.held.seen).toEqual([])
  })
})
