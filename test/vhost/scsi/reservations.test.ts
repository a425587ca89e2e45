import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type Answer, bytes, filled, hexOf, lunOf, type ScsiGuest, ScsiHost } from './support.ts'

let host: ScsiHost
/** Three controllers over one bdev. */
let a: ScsiGuest
let b: ScsiGuest
let c: ScsiGuest

beforeEach(async () => {
  host = await ScsiHost.start(2)
  a = await host.guest('a', ['m0'])
  b = await host.guest('b', ['m0'])
  c = await host.guest('c', ['m0'])
})
afterEach(() => host.close())

const CONFLICT = { response: 0, status: 0x18, sense: '' }
const GOOD = { response: 0, status: 0 }
const KEY_A = '00000000000000aa'
const KEY_B = '00000000000000bb'
const KEY_C = '00000000000000cc'
const NO_KEY = '0000000000000000'
const READ = '28 00 00000000 00 0001 00'
const WRITE = '2a 00 00000000 00 0001 00'

/** Service actions of PERSISTENT RESERVE OUT. */
const REGISTER = '00'
const RESERVE = '01'
const RELEASE = '02'
const CLEAR = '03'
const PREEMPT = '04'
const PREEMPT_AND_ABORT = '05'
const REGISTER_AND_IGNORE = '06'

const dataOf = ({ data, length }: Answer): string => hexOf(data.subarray(0, length - 108))
const reserve = (
  guest: ScsiGuest,
  action: string,
  type: string,
  key: string,
  other = NO_KEY,
): Promise<Answer> =>
  guest.ask(`5f ${action} ${type} 0000 00000018 00`, { out: bytes(`${key}${other} 00000000 00 000000`) })
const report = async (guest: ScsiGuest, action: string): Promise<string> =>
  dataOf(await guest.ask(`5e ${action} 0000000000 0400 00`, { in: 1024 }))
const read = (guest: ScsiGuest, reactor = 0): Promise<Answer> => guest.ask(READ, { in: 512, reactor })
const write = (guest: ScsiGuest, reactor = 0): Promise<Answer> =>
  guest.ask(WRITE, { out: filled(512, 1), reactor })

async function register(): Promise<void> {
  expect(await reserve(a, REGISTER, '00', NO_KEY, KEY_A)).toMatchObject(GOOD)
  expect(await reserve(b, REGISTER, '00', NO_KEY, KEY_B)).toMatchObject(GOOD)
}

describe('registrations', () => {
  it('are known to all, with the generation', async () => {
    expect(await report(a, '00')).toBe('0000000000000000')
    await register()
    expect(await report(c, '00')).toBe(`00000002 00000010 ${KEY_A}${KEY_B}`.replaceAll(' ', ''))
    expect(await reserve(a, REGISTER, '00', KEY_A, NO_KEY)).toMatchObject(GOOD)
    expect(await report(c, '00')).toBe(`00000003 00000008 ${KEY_B}`.replaceAll(' ', ''))
  })

  it('need the key that is there, unless it is to be ignored', async () => {
    await register()
    expect(await reserve(a, REGISTER, '00', KEY_B, KEY_C)).toMatchObject(CONFLICT)
    expect(await reserve(c, REGISTER, '00', KEY_C, KEY_C)).toMatchObject(CONFLICT)
    expect(await reserve(a, REGISTER_AND_IGNORE, '00', KEY_B, KEY_C)).toMatchObject(GOOD)
    expect(await report(c, '00')).toContain(KEY_C)
  })

  it('refuse what no capability offers, and lists of another length', async () => {
    for (const flags of ['01', '04', '08']) {
      const out = bytes(`${NO_KEY}${KEY_A} 00000000 ${flags} 000000`)
      expect(await a.ask('5f 00 00 0000 00000018 00', { out })).toMatchObject({ sense: '5/2600' })
    }
    expect(await a.ask('5f 00 00 0000 00000017 00', { out: filled(24, 0) })).toMatchObject({
      sense: '5/1a00',
    })
    expect(await a.ask('5f 00 00 0000 00000018 00', { out: filled(23, 0) })).toMatchObject({ response: 1 })
    expect(await a.ask('5f 07 00 0000 00000018 00', { out: filled(24, 0) })).toMatchObject({
      sense: '5/2400',
    })
    // PTPL and the like: none; all six types.
    expect(await report(a, '02')).toBe('00080080ea010000')
  })

  it('are gone with their bdev', async () => {
    await register()
    for (const guest of [a, b, c]) {
      guest.backing.targets.get(0)!.claim.release()
      guest.backing.targets.clear()
      await guest.update()
    }
    await host.reactors.run(host.bdevs.remove('m0'))
    await host.create('malloc', 'm0', { block_size: 512, num_blocks: 64 })
    a.add(0, 'm0')
    await a.update()
    await a.ask('00 0000000000')
    await a.ask('00 0000000000')
    expect(await report(a, '00')).toBe('0000000000000000')
  })
})

describe('reservations', () => {
  it.each([
    // Type, what b (registered) may do, what c (not registered) may do.
    ['01', 'r-', 'r-'],
    ['03', '--', '--'],
    ['05', 'rw', 'r-'],
    ['06', 'rw', '--'],
    ['07', 'rw', 'r-'],
    ['08', 'rw', '--'],
  ])(
    'of type %s let a registrant do %s and others do %s, on every reactor',
    async (type, registrant, other) => {
      await register()
      expect(await reserve(a, RESERVE, type, KEY_A)).toMatchObject(GOOD)
      for (const reactor of [0, 1]) {
        expect(await read(a, reactor)).toMatchObject(GOOD)
        expect(await write(a, reactor)).toMatchObject(GOOD)
        expect(await read(b, reactor)).toMatchObject(registrant[0] === 'r' ? GOOD : CONFLICT)
        expect(await write(b, reactor)).toMatchObject(registrant[1] === 'w' ? GOOD : CONFLICT)
        expect(await read(c, reactor)).toMatchObject(other[0] === 'r' ? GOOD : CONFLICT)
        expect(await write(c, reactor)).toMatchObject(CONFLICT)
      }
      // What everybody may do.
      for (const cdb of [
        '00 0000000000',
        '12 00 00 0060 00',
        '25 00 00000000 0000 00 00',
        '5e 00 0000000000 0008 00',
      ]) {
        expect(await c.ask(cdb, { in: 96 })).toMatchObject(GOOD)
      }
      expect(await c.ask('1b 00 00 00 01 00')).toMatchObject(GOOD)
      expect(await c.ask('1b 00 00 00 00 00')).toMatchObject(CONFLICT)
      expect(await c.ask('42 00 00000000 00 0000 00')).toMatchObject(CONFLICT)
      expect(await c.ask('1a 00 3f 00 ff 00', { in: 255 })).toMatchObject(other[0] === 'r' ? GOOD : CONFLICT)
    },
  )

  it('are for registrants with the right key, and for one holder', async () => {
    await register()
    expect(await reserve(c, RESERVE, '01', NO_KEY)).toMatchObject(CONFLICT)
    expect(await reserve(a, RESERVE, '01', KEY_B)).toMatchObject(CONFLICT)
    expect(await reserve(a, RESERVE, '02', KEY_A)).toMatchObject({ sense: '5/2400' })
    expect(await reserve(a, RESERVE, '11', KEY_A)).toMatchObject({ sense: '5/2400' })
    expect(await reserve(a, RESERVE, '01', KEY_A)).toMatchObject(GOOD)
    expect(await reserve(a, RESERVE, '01', KEY_A)).toMatchObject(GOOD)
    expect(await reserve(a, RESERVE, '03', KEY_A)).toMatchObject(CONFLICT)
    expect(await reserve(b, RESERVE, '01', KEY_B)).toMatchObject(CONFLICT)
    expect(await report(c, '01')).toBe(`00000002 00000010 ${KEY_A} 00000000 00 01 0000`.replaceAll(' ', ''))
  })

  it('are released by the holder, who says of which type', async () => {
    await register()
    await reserve(a, RESERVE, '05', KEY_A)
    expect(await reserve(b, RELEASE, '05', KEY_B)).toMatchObject(GOOD)
    expect(await write(c)).toMatchObject(CONFLICT)
    expect(await reserve(a, RELEASE, '01', KEY_A)).toMatchObject({ sense: '5/2604' })
    expect(await reserve(a, RELEASE, '05', KEY_A)).toMatchObject(GOOD)
    expect(await write(c)).toMatchObject(GOOD)
    // RESERVATIONS RELEASED, for registrants and once.
    expect(await write(b)).toMatchObject({ status: 2, sense: '6/2a04' })
    expect(await write(b)).toMatchObject(GOOD)
    expect(await report(a, '01')).toBe('0000000200000000')
  })

  it('of all registrants have no holder of their own, and end with the last one', async () => {
    await register()
    await reserve(a, RESERVE, '07', KEY_A)
    expect(await report(c, '01')).toBe(`00000002 00000010 ${NO_KEY} 00000000 00 07 0000`.replaceAll(' ', ''))
    await reserve(a, REGISTER, '00', KEY_A, NO_KEY)
    expect(await write(c)).toMatchObject(CONFLICT)
    await reserve(b, REGISTER, '00', KEY_B, NO_KEY)
    expect(await write(c)).toMatchObject(GOOD)
  })

  it('end when everything is cleared', async () => {
    await register()
    await reserve(a, RESERVE, '03', KEY_A)
    expect(await reserve(c, CLEAR, '00', NO_KEY)).toMatchObject(CONFLICT)
    expect(await reserve(b, CLEAR, '00', KEY_B)).toMatchObject(GOOD)
    expect(await read(c)).toMatchObject(GOOD)
    expect(await read(a)).toMatchObject({ sense: '6/2a03' })
    expect(await report(c, '00')).toBe('0000000300000000')
  })

  it('are told in full', async () => {
    await register()
    await reserve(a, RESERVE, '01', KEY_A)
    const status = await report(c, '03')
    expect(status.slice(0, 16)).toBe('0000000200000060')
    // Holder of a Write Exclusive reservation, port 1, a TransportID of 24 bytes.
    expect(status.slice(16, 64)).toBe(`${KEY_A} 00000000 01 01 00000000 0001 00000018`.replaceAll(' ', ''))
    expect(status.slice(64, 72)).toBe('06000000')
    expect(status.slice(112, 160)).toBe(`${KEY_B} 00000000 00 00 00000000 0001 00000018`.replaceAll(' ', ''))
  })
})

describe('preempting', () => {
  it('takes the reservation with the registration, and tells who lost it', async () => {
    await register()
    await reserve(a, RESERVE, '03', KEY_A)
    expect(await reserve(b, PREEMPT, '01', KEY_B, KEY_A)).toMatchObject(GOOD)
    expect(await write(b)).toMatchObject(GOOD)
    expect(await write(a)).toMatchObject({ sense: '6/2a05' })
    expect(await write(a)).toMatchObject(CONFLICT)
    expect(await read(a)).toMatchObject(GOOD)
    expect(await report(c, '00')).toBe(`0000000300000008${KEY_B}`)
    expect((await report(c, '01')).slice(16, 32)).toBe(KEY_B)
  })

  it('takes a registration alone', async () => {
    await register()
    await reserve(c, REGISTER, '00', NO_KEY, KEY_C)
    await reserve(a, RESERVE, '05', KEY_A)
    expect(await reserve(c, PREEMPT, '01', KEY_C, KEY_B)).toMatchObject(GOOD)
    expect((await report(c, '01')).slice(16)).toBe(`${KEY_A} 00000000 00 05 0000`.replaceAll(' ', ''))
    expect(await write(b)).toMatchObject({ sense: '6/2a05' })
    expect(await write(b)).toMatchObject(CONFLICT)
    expect(await reserve(c, PREEMPT, '01', KEY_C, '00000000000000dd')).toMatchObject(CONFLICT)
    expect(await reserve(c, PREEMPT, '01', KEY_C, NO_KEY)).toMatchObject({ sense: '5/2600' })
  })

  it('takes everything from all registrants with key 0', async () => {
    await register()
    await reserve(a, RESERVE, '07', KEY_A)
    expect(await reserve(b, PREEMPT, '03', KEY_B, NO_KEY)).toMatchObject(GOOD)
    expect((await report(c, '01')).slice(16)).toBe(`${KEY_B} 00000000 00 03 0000`.replaceAll(' ', ''))
    expect(await read(a)).toMatchObject({ sense: '6/2a05' })
  })

  it('ends what those who lost have in flight, wherever it is', async () => {
    await host.create('held', 'h0', {})
    const old = await host.guest('old', ['h0'])
    const next = await host.guest('next', ['h0'])
    await reserve(old, REGISTER, '00', NO_KEY, KEY_A)
    await reserve(next, REGISTER, '00', NO_KEY, KEY_B)
    await reserve(old, RESERVE, '03', KEY_A)
    const inFlight = [0, 1].map(reactor => old.send(WRITE, { out: filled(512, 1), reactor }))
    const out = bytes(`${KEY_B}${KEY_A} 00000000 00 000000`)
    const preempting = next.send(`5f ${PREEMPT_AND_ABORT} 03 0000 00000018 00`, { out })
    await host.reactors.until(() => host.held.aborted.length === 2)
    expect(preempting.isDone).toBe(false)
    for (const io of [...host.held.held]) host.held.end(0x007, io)
    await host.reactors.until(() => preempting.isDone)
    expect(next.answerOf(preempting)).toMatchObject(GOOD)
    for (const sent of inFlight) expect(old.answerOf(sent)).toMatchObject({ response: 2 })
  })
})

describe('RESERVE (6)', () => {
  it('keeps everybody else away until it is released', async () => {
    expect(await a.ask('16 00 0000 00 00')).toMatchObject(GOOD)
    for (const answer of [await read(b, 1), await b.ask('00 0000000000'), await b.ask('16 00 0000 00 00')]) {
      expect(answer).toMatchObject(CONFLICT)
    }
    expect(await reserve(b, REGISTER, '00', NO_KEY, KEY_B)).toMatchObject(CONFLICT)
    expect(await b.ask('12 00 00 0060 00', { in: 96 })).toMatchObject(GOOD)
    expect(await b.ask('17 00 0000 00 00')).toMatchObject(GOOD)
    expect(await read(b)).toMatchObject(CONFLICT)
    expect(await a.ask('17 00 0000 00 00')).toMatchObject(GOOD)
    expect(await read(b)).toMatchObject(GOOD)
    expect(await a.ask('16 01 0000 00 00')).toMatchObject({ sense: '5/2400' })
  })

  it('is not for a unit with registrations', async () => {
    await register()
    expect(await a.ask('16 00 0000 00 00')).toMatchObject(CONFLICT)
  })

  it('is broken by a reset of the unit, and by a front end that begins anew', async () => {
    await a.ask('16 00 0000 00 00')
    expect(await b.manage(5)).toBe(0)
    expect(await b.ask('00 0000000000')).toMatchObject({ sense: '6/2903' })
    expect(await read(b)).toMatchObject(GOOD)
    await a.ask('16 00 0000 00 00')
    expect(await read(b)).toMatchObject(CONFLICT)
    a.state = { writeback: true }
    await a.update()
    expect(await read(b)).toMatchObject(GOOD)
  })
})

describe('a controller that is made again', () => {
  it('has what was registered for it', async () => {
    await register()
    await reserve(a, RESERVE, '01', KEY_A)
    const again = await host.guest('a', ['m0'])
    expect(await write(again)).toMatchObject(GOOD)
    const other = await host.guest('d', ['m0'])
    expect(await other.ask(WRITE, { out: filled(512, 1), lun: lunOf(0) })).toMatchObject(CONFLICT)
  })
})
