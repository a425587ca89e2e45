import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type Answer, bytes, hexOf, lunOf, type ScsiGuest, ScsiHost } from './support.ts'

let host: ScsiHost
let guest: ScsiGuest

beforeEach(async () => {
  host = await ScsiHost.start()
  await host.create('held', 'h0', {})
  guest = await host.guest('vhost.0', ['m0', 'h0'])
})
afterEach(() => host.close())

const HELD = { lun: lunOf(1) }
/** What was transferred. */
const dataOf = ({ data, length }: Answer): Uint8Array => data.subarray(0, length - 108)
const textOf = (data: Uint8Array): string => Buffer.from(data).toString('latin1')

describe('INQUIRY', () => {
  it('describes a disk of SPC-4', async () => {
    const answer = await guest.ask('12 00 00 0060 00', { in: 96 })
    expect(answer).toMatchObject({ response: 0, status: 0, residual: 0 })
    const data = dataOf(answer)
    // A disk, not removable, SPC-4, response format 2 with HiSup, 91 bytes follow, command queueing.
    expect([...data.subarray(0, 8)]).toEqual([0, 0, 6, 0x12, 91, 0, 0, 2])
    expect(textOf(data.subarray(8, 36))).toBe('QPAIR   Malloc disk     1   ')
    expect(hexOf(data.subarray(58, 64))).toBe('00a0046004c0')
  })

  it('gives as much as is asked for, and tells how much of the buffer is left', async () => {
    expect(await guest.ask('12 00 00 0024 00', { in: 255 })).toMatchObject({
      status: 0,
      residual: 219,
      length: 144,
    })
    expect(await guest.ask('12 00 00 00ff 00', { in: 255 })).toMatchObject({ status: 0, residual: 159 })
    expect(await guest.ask('12 00 00 00ff 00', { in: 95 })).toMatchObject({ response: 1 })
  })

  it('lists its pages, and has every one of them', async () => {
    const list = dataOf(await guest.ask('12 01 00 00ff 00', { in: 255 }))
    expect(hexOf(list)).toBe('00000007 00 80 83 86 b0 b1 b2'.replaceAll(' ', ''))
    for (const page of list.subarray(4)) {
      const data = dataOf(await guest.ask(`12 01 ${hexOf(Uint8Array.of(page))} 00ff 00`, { in: 255 }))
      expect([data[0], data[1], data[2]! * 256 + data[3]!]).toEqual([0, page, data.length - 4])
    }
    expect(await guest.ask('12 01 87 00ff 00', { in: 255 })).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('12 00 80 00ff 00', { in: 255 })).toMatchObject({ sense: '5/2400' })
  })

  it('names the unit by its UUID, the same at every controller', async () => {
    const { uuid } = host.bdevs.get('m0')
    expect(textOf(dataOf(await guest.ask('12 01 80 00ff 00', { in: 255 })).subarray(4))).toBe(uuid)
    const page = dataOf(await guest.ask('12 01 83 00ff 00', { in: 255 }))
    // Binary, NAA, of the unit, 8 bytes, locally assigned.
    expect(hexOf(page.subarray(4, 8))).toBe('01030008')
    expect(page[8]! >> 4).toBe(3)
    // ASCII, T10 vendor id, of the unit: vendor and UUID.
    expect(hexOf(page.subarray(16, 20))).toBe('0201002c')
    expect(textOf(page.subarray(20, 64))).toBe(`QPAIR   ${uuid}`)
    // Relative target port 1.
    expect(hexOf(page.subarray(64))).toBe('0114000400000001')

    const other = await host.guest('vhost.1', ['m0'])
    expect(hexOf(dataOf(await other.ask('12 01 83 00ff 00', { in: 255 })))).toBe(hexOf(page))
    const sibling = dataOf(await guest.ask('12 01 83 00ff 00', { in: 255, ...HELD }))
    expect(hexOf(sibling.subarray(8, 16))).not.toBe(hexOf(page.subarray(8, 16)))
  })

  it('states limits that hold', async () => {
    const page = dataOf(await guest.ask('12 01 b0 0040 00', { in: 64, ...HELD }))
    // WSNZ, 255 blocks of COMPARE AND WRITE, granularity of 8 blocks: 4096 bytes.
    expect(hexOf(page.subarray(4, 8))).toBe('01ff0008')
    // 8388608 blocks and 256 ranges of UNMAP; 2097152 blocks of WRITE SAME.
    expect(hexOf(page.subarray(20, 28))).toBe('0080000000000100')
    expect(hexOf(page.subarray(36, 44))).toBe('0000000000200000')
  })

  it('says that the disk does not turn and is thinly provisioned where it can unmap', async () => {
    expect(hexOf(dataOf(await guest.ask('12 01 b1 0006 00', { in: 6 })))).toBe('00b1003c0001')
    // LBPU, LBPWS and LBPWS10; thin.
    expect(hexOf(dataOf(await guest.ask('12 01 b2 0008 00', { in: 8, ...HELD })))).toBe('00b2000400e00200')
  })

  it('has nothing at other LUNs but the well-known unit', async () => {
    const absent = { in: 96, lun: lunOf(0, 1) }
    expect(dataOf(await guest.ask('12 00 00 0060 00', absent))[0]).toBe(0x7f)
    expect(await guest.ask('00 0000000000', absent)).toMatchObject({ sense: '5/2500' })
    expect(await guest.ask('28 00 00000000 00 0000 00', absent)).toMatchObject({ sense: '5/2500' })
    expect(hexOf(dataOf(await guest.ask('03 00 0000 12 00', absent)))).toBe(
      `700005000000000a00000000250000000000`,
    )
    const wellKnown = { in: 96, lun: bytes('0100c10100000000') }
    expect(dataOf(await guest.ask('12 00 00 0060 00', wellKnown))[0]).toBe(0x1e)
    expect(await guest.ask('00 0000000000', wellKnown)).toMatchObject({ status: 0, sense: '' })
  })

  it.each([
    '0000400000000000',
    '0102400000000000',
    '01ff400000000000',
    '0100400000000001',
    '0300400000000000',
  ])('answers BAD_TARGET at %s', async lun => {
    expect(await guest.ask('12 00 00 0060 00', { in: 96, lun: bytes(lun) })).toMatchObject({ response: 3 })
  })

  it('takes LUN 0 in plain and in flat numbers', async () => {
    expect(await guest.ask('00 0000000000', { lun: bytes('0100000000000000') })).toMatchObject({
      status: 0,
      response: 0,
    })
    expect(await guest.ask('00 0000000000', { lun: bytes('0100400000000000') })).toMatchObject({
      status: 0,
      response: 0,
    })
  })
})

describe('READ CAPACITY', () => {
  it('tells the last block, the block size, and what lies beneath', async () => {
    expect(hexOf(dataOf(await guest.ask('25 00 00000000 0000 00 00', { in: 8 })))).toBe('0000003f00000200')
    expect(hexOf(dataOf(await guest.ask('25 00 00000000 0000 00 00', { in: 8, ...HELD })))).toBe(
      'ffffffff00000200',
    )
    const long = dataOf(await guest.ask('9e 10 0000000000000000 00000020 00 00', { in: 32, ...HELD }))
    // 8 blocks in a physical one; LBPME.
    expect(hexOf(long)).toBe(`00000001ffffffff 00000200 00 03 8000 ${'00'.repeat(16)}`.replaceAll(' ', ''))
  })
})

describe('REPORT LUNS and REPORT SUPPORTED …', () => {
  it.each([
    ['00', '0000000800000000 0000000000000000'],
    ['01', '0000000800000000 c101000000000000'],
    ['02', '0000001000000000 0000000000000000 c101000000000000'],
  ])('reports the units of SELECT REPORT %s', async (select, expected) => {
    const answer = await guest.ask(`a0 00 ${select} 000000 00001000 00 00`, { in: 4096 })
    expect(hexOf(dataOf(answer))).toBe(expected.replaceAll(' ', ''))
  })

  it('refuses what the specification wants refused', async () => {
    expect(await guest.ask('a0 00 03 000000 00001000 00 00', { in: 4096 })).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('a0 00 00 000000 0000000f 00 00', { in: 4096 })).toMatchObject({ sense: '5/2400' })
  })

  it('lists the commands, each of which is known', async () => {
    const answer = await guest.ask('a3 0c 00 00 0000 00002000 00 00', { in: 8192, ...HELD })
    const list = dataOf(answer)
    expect(new DataView(Uint8Array.from(list).buffer).getUint32(0)).toBe(list.length - 4)
    const opcodes = new Set<number>()
    for (let at = 4; at < list.length; at += 8) opcodes.add(list[at]!)
    for (const opcode of [0x00, 0x12, 0x28, 0x2a, 0x35, 0x42, 0x5f, 0x88, 0x93, 0x9e, 0xa0, 0xa3]) {
      expect(opcodes).toContain(opcode)
    }
    // LOG SENSE.
    expect(opcodes).not.toContain(0x4d)
    // m0 and h0 can unmap; with timeouts, each entry is 12 bytes longer.
    const timed = dataOf(await guest.ask('a3 0c 80 00 0000 00002000 00 00', { in: 8192, ...HELD }))
    expect((timed.length - 4) / 20).toBe((list.length - 4) / 8)
  })

  it('tells of one command which bits of its CDB count', async () => {
    const one = dataOf(await guest.ask('a3 0c 01 28 0000 00000040 00 00', { in: 64 }))
    expect(hexOf(one)).toBe('0003000a 28 18 ffffffff 00 ffff 00'.replaceAll(' ', ''))
    const action = dataOf(await guest.ask('a3 0c 02 9e 0010 00000040 00 00', { in: 64 }))
    expect(hexOf(action).slice(0, 12)).toBe('000300109e1f')
    const unknown = dataOf(await guest.ask('a3 0c 03 4d 0000 00000040 00 00', { in: 64 }))
    expect(hexOf(unknown)).toBe('00010000')
    expect(await guest.ask('a3 0c 01 9e 0000 00000040 00 00', { in: 64 })).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('a3 0c 02 28 0000 00000040 00 00', { in: 64 })).toMatchObject({ sense: '5/2400' })
  })

  it('tells which task management functions there are', async () => {
    expect(hexOf(dataOf(await guest.ask('a3 0d 00 00 0000 00000004 00 00', { in: 4 })))).toBe('dc030000')
  })
})

describe('what is not there', () => {
  it.each(['4d 00 00 00 00 00 00 00ff 00', '46 00 0000 0000000000ff00', 'ff 0000000000', '7f 00'])(
    '%s is no command',
    async cdb => {
      expect(await guest.ask(cdb, { in: 255 })).toMatchObject({ status: 2, sense: '5/2000' })
    },
  )

  it.each([
    'a3 0a 00 00 0000 000000ff 00 00',
    '9e 1f 0000000000000000 00000020 00 00',
    '5e 1f 0000000000 00ff 00',
  ])('%s is no service action', async cdb => {
    expect(await guest.ask(cdb, { in: 255 })).toMatchObject({ status: 2, sense: '5/2400' })
  })

  it('has no auto contingent allegiance', async () => {
    expect(await guest.ask('00 00000000 04')).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('28 00 00000000 00 0001 04', { in: 512 })).toMatchObject({ sense: '5/2400' })
  })

  it('does not UNMAP where the bdev does not', async () => {
    await host.create('null', 'n0', { block_size: 512, num_blocks: 8 })
    // 4 is UNMAP. Reactors have a description of their own.
    ;(host.local[0]!.find('n0')!.supports as Set<number>).delete(4)
    const other = await host.guest('vhost.1', ['n0'])
    expect(await other.ask('42 00 00000000 00 0000 00')).toMatchObject({ sense: '5/2000' })
    expect(hexOf(dataOf(await other.ask('12 01 b2 0008 00', { in: 8 })))).toBe('00b2000400000000')
    expect(hexOf(dataOf(await other.ask('a3 0c 01 42 0000 00000040 00 00', { in: 64 })))).toBe('00010000')
  })
})
