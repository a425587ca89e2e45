import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Status } from '../../../src/spec/nvme-status.ts'
import { type Answer, bytes, filled, hexOf, lunOf, type ScsiGuest, ScsiHost } from './support.ts'

let host: ScsiHost
let guest: ScsiGuest

beforeEach(async () => {
  host = await ScsiHost.start()
  await host.create('held', 'h0', {})
  guest = await host.guest('vhost.0', ['m0', 'h0'])
})
afterEach(() => host.close())

const HELD = { lun: lunOf(1) }
const dataOf = ({ data, length }: Answer): Uint8Array => data.subarray(0, length - 108)

// Pages as SPC-4 and SBC-3 draw them.
const RECOVERY = `010a${'00'.repeat(10)}`
const caching = (wce: boolean): string => `0812${wce ? '04' : '00'}${'00'.repeat(17)}`
const CONTROL = '0a0a 20 10 00 00 00 00 ffff 0000'.replaceAll(' ', '')
const EXCEPTIONS = `1c0a${'00'.repeat(10)}`

describe('MODE SENSE', () => {
  it('gives all pages with a block descriptor', async () => {
    const six = dataOf(await guest.ask('1a 00 3f 00 ff 00', { in: 255, ...HELD }))
    // 67 bytes follow; DPOFUA; a descriptor of 8 bytes: 2^32 - 1 blocks or more, of 512 bytes.
    expect(hexOf(six)).toBe(
      `43001008 ffffffff00000200 ${RECOVERY}${caching(true)}${CONTROL}${EXCEPTIONS}`.replaceAll(' ', ''),
    )
    const ten = dataOf(await guest.ask('5a 10 3f ff 000000 00ff 00', { in: 255, ...HELD }))
    const head = '004e001001000010 0000000200000000 00000000 00000200'
    expect(hexOf(ten)).toBe(`${head}${RECOVERY}${caching(true)}${CONTROL}${EXCEPTIONS}`.replaceAll(' ', ''))
  })

  it('gives one page without descriptor, as it is, as it may be, as it was made', async () => {
    const ask = async (control: string): Promise<string> =>
      hexOf(dataOf(await guest.ask(`1a 08 ${control} 00 ff 00`, { in: 255, ...HELD })))
    expect(await ask('08')).toBe(`17001000${caching(true)}`)
    expect(await ask('48')).toBe(`17001000${caching(true)}`)
    expect(await ask('88')).toBe(`17001000${caching(true)}`)
    expect(await ask('4a')).toBe(`0f0010000a0a${'00'.repeat(10)}`)
    expect(await guest.ask('1a 08 c8 00 ff 00', { in: 255 })).toMatchObject({ sense: '5/3900' })
    expect(await guest.ask('1a 08 02 00 ff 00', { in: 255 })).toMatchObject({ sense: '5/2400' })
    expect(await guest.ask('1a 08 08 01 ff 00', { in: 255 })).toMatchObject({ sense: '5/2400' })
  })

  it('says that a disk without a cache has none, and one that is read only is', async () => {
    expect(hexOf(dataOf(await guest.ask('1a 08 08 00 ff 00', { in: 255 })))).toBe(`17001000${caching(false)}`)
    ;(host.local[0]!.find('m0') as { readOnly: boolean }).readOnly = true
    expect(dataOf(await guest.ask('1a 08 08 00 ff 00', { in: 255 }))[2]).toBe(0x90)
  })
})

describe('MODE SELECT', () => {
  const select = async (parameters: string, cdb = '15 10 0000'): Promise<Answer> => {
    const out = bytes(parameters)
    const length = hexOf(Uint8Array.of(out.length))
    const sent = guest.send(`${cdb} ${length} 00`, { out, ...HELD })
    host.reactors.settle()
    if (host.held.held.length > 0) host.held.end(Status.SUCCESS)
    host.reactors.settle()
    return guest.answerOf(sent)
  }

  it('switches the cache off, after what it holds was written out, and on again', async () => {
    expect(await select(`00000000${caching(false)}`)).toMatchObject({ status: 0, residual: 0 })
    expect(host.held.seen).toEqual(['flush 0+0'])
    expect(hexOf(dataOf(await guest.ask('1a 08 08 00 ff 00', { in: 255, ...HELD })))).toBe(
      `17001000${caching(false)}`,
    )
    guest.send('2a 00 00000000 00 0001 00', { out: filled(512, 1), ...HELD })
    host.held.end(Status.SUCCESS)
    host.reactors.settle()
    expect(await select(`00000008 00000000 00000200 ${caching(true)}`)).toMatchObject({ status: 0 })
    guest.send('2a 00 00000000 00 0001 00', { out: filled(512, 1), ...HELD })
    host.held.end(Status.SUCCESS)
    host.reactors.settle()
    expect(host.held.seen.slice(1)).toEqual(['write 0+1 fua', 'write 0+1'])
  })

  it('takes ten bytes, and a list that changes nothing', async () => {
    const out = bytes(
      `0000000001000010 0000000200000000 00000000 00000200 ${RECOVERY}${caching(true)}${CONTROL}${EXCEPTIONS}`,
    )
    const answer = await guest.ask(`55 10 0000000000 ${hexOf(Uint8Array.of(0, out.length))} 00`, {
      out,
      ...HELD,
    })
    expect(answer).toMatchObject({ status: 0, residual: 0 })
  })

  it.each([
    ['another block size', `00000008 00000000 00001000`, '5/2600', 4],
    ['another number of blocks', `00000008 00000010 00000200`, '5/2600', 4],
    ['another bit of the caching page', `00000000 0812 06 ${'00'.repeat(17)}`, '5/2600', 6],
    ['another control page', `00000000 0a0a 22 10 00 00 00 00 ffff 0000`, '5/2600', 6],
    ['a page of another length', `00000000 0813 04 ${'00'.repeat(18)}`, '5/2600', 5],
    ['a page that is not there', `00000000 020a ${'00'.repeat(10)}`, '5/2600', 4],
    ['a subpage', `00000000 4812 04 ${'00'.repeat(17)}`, '5/2600', 4],
    ['half a page', `00000000 0812 04`, '5/1a00', 0],
    ['half a header', `000000`, '5/1a00', 0],
    ['a descriptor that is cut', `00000008 00000000`, '5/1a00', 0],
  ])('refuses %s', async (_, parameters, sense, pointer) => {
    const answer = await select(parameters)
    expect(answer).toMatchObject({ status: 2, sense })
    if (pointer > 0) expect([...answer.senseBytes.subarray(15, 18)]).toEqual([0x80, 0, pointer])
    expect(host.held.seen).toEqual([])
  })

  it('refuses to save, other formats, and to switch on a cache that is not there', async () => {
    expect(await select(`00000000${caching(true)}`, '15 11 0000')).toMatchObject({ sense: '5/2400' })
    expect(await select(`00000000${caching(true)}`, '15 00 0000')).toMatchObject({ sense: '5/2400' })
    const out = bytes(`00000000${caching(true)}`)
    expect(await guest.ask('15 10 0000 18 00', { out })).toMatchObject({ sense: '5/2600' })
    expect(await guest.ask('15 10 0000 ff 00', { out })).toMatchObject({ response: 1 })
  })
})

describe('the unit as a whole', () => {
  it('flushes, at SYNCHRONIZE CACHE and when it is stopped', async () => {
    for (const cdb of [
      '35 00 00000000 00 0000 00',
      '91 02 0000000000000008 00000010 00 00',
      '1b 00 00 00 00 00',
    ]) {
      const sent = guest.send(cdb, HELD)
      host.held.end(Status.SUCCESS)
      host.reactors.settle()
      expect(guest.answerOf(sent)).toMatchObject({ status: 0 })
    }
    expect(host.held.seen).toEqual(['flush 0+0', 'flush 0+0', 'flush 0+0'])
    const failed = guest.send('35 00 00000000 00 0000 00', HELD)
    host.held.end(Status.WRITE_FAULT)
    host.reactors.settle()
    expect(guest.answerOf(failed)).toMatchObject({ sense: '4/0300' })
  })

  it.each([
    '1b 00 00 00 01 00',
    '1b 00 00 00 04 00',
    '1e 00 00 00 01 00',
    '1d 04 00 00 00 00',
    '00 0000000000',
  ])('%s is good and does nothing', async cdb => {
    expect(await guest.ask(cdb, HELD)).toMatchObject({ response: 0, status: 0 })
    expect(host.held.seen).toEqual([])
  })

  it.each(['1b 00 00 00 02 00', '1b 00 00 00 30 00', '1d 10 00 00ff 00'])('%s is refused', async cdb => {
    expect(await guest.ask(cdb, HELD)).toMatchObject({ sense: '5/2400' })
  })

  it('has no sense to request but a unit attention', async () => {
    expect(hexOf(dataOf(await guest.ask('03 00 0000 12 00', { in: 18 })))).toBe(
      '700000000000000a00000000000000000000',
    )
    expect(hexOf(dataOf(await guest.ask('03 01 0000 ff 00', { in: 255 })))).toBe('7200000000000000')
  })
})
