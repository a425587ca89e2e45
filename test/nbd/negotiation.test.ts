import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { ascii, type Client, EXPORT, option, reply, string, WireService } from './support.ts'

const GREETING = '4e42444d41474943 49484156454f5054 0003'.replaceAll(' ', '')
const ACK = 1
const SERVER = 2
const INFO = 3
const META_CONTEXT = 4
const ERR_UNSUP = 0x80000001
const ERR_POLICY = 0x80000002
const ERR_INVALID = 0x80000003
const ERR_UNKNOWN = 0x80000006
const ERR_TOO_BIG = 0x80000009

// 1 MiB; HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO; DF only with structured replies.
const SIZE = '0000000000100000'
const FLAGS = '0d6d'
const FLAGS_STRUCTURED = '0ded'
const READ_ONLY_FLAGS = '0503'

let service: WireService
let client: Client
let lines: string[]
const { write } = logSettings

beforeEach(async () => {
  lines = []
  logSettings.write = line => void lines.push(line)
  service = await WireService.start()
  await service.exports.start(EXPORT)
  client = await service.dial()
})

afterEach(() => {
  service.close()
  logSettings.write = write
})

/** The reply's number, type and text. */
const refusal = (text: string): [number, number, string] => {
  const bytes = Buffer.from(text, 'hex')
  expect(bytes.readUInt32BE(16)).toBe(bytes.length - 20)
  return [bytes.readUInt32BE(8), bytes.readUInt32BE(12), bytes.toString('utf8', 20)]
}

describe('the handshake', () => {
  it('begins with NBDMAGIC, IHAVEOPT and the flags for fixed newstyle without zeroes', () => {
    expect(client.take().toString('hex')).toBe(GREETING)
  })

  it('ends a connection whose client flags it does not know', () => {
    client.ask('80000003')
    expect(client.peer.sawEnd).toBe(true)
    expect(lines.join()).toContain('unknown client flags 0x80000003')
  })

  it('ends a connection whose option does not begin with IHAVEOPT', () => {
    client.ask('00000003')
    client.ask('49484156454f5055 00000003 00000000')
    expect(client.peer.sawEnd).toBe(true)
  })

  it('cuts off a client that comes to no agreement in 30 seconds', () => {
    service.reactors.advance(29_000_000)
    service.reactors.settle()
    expect(client.peer.waiting).toBeGreaterThan(0)
    service.reactors.advance(2_000_000)
    client.take()
    expect(client.peer.sawEnd).toBe(true)
  })
})

describe('options', () => {
  beforeEach(() => {
    client.take()
    client.ask('00000003')
  })

  it('NBD_OPT_GO answers with size and flags, then with what was asked for, then lets the client in', () => {
    const asked = client.ask(option(7, `${string(ascii('m0'))} 0003 0003 0001 0002`))
    expect(asked).toBe(
      reply(7, INFO, `0000 ${SIZE} ${FLAGS}`) +
        reply(7, INFO, '0003 00000200 00001000 02000000') +
        reply(7, INFO, `0001 ${ascii('m0')}`) +
        reply(7, ACK),
    )
    expect(client.ask(`25609513 0000 0003 0000000000000001 ${'00'.repeat(12)}`)).toBe(
      '67446698000000000000000000000001',
    )
  })

  it('NBD_OPT_INFO answers alike and goes on negotiating', () => {
    const info = option(6, `${string(ascii('m0'))} 0000`)
    expect(client.ask(info)).toBe(reply(6, INFO, `0000 ${SIZE} ${FLAGS}`) + reply(6, ACK))
    expect(client.ask(info)).not.toBe('')
  })

  it('takes the empty name for the only export, and by no means for one of several', async () => {
    expect(client.ask(option(6, '00000000 0000'))).toContain(SIZE)
    await service.exports.start({ ...EXPORT, name: 'other' })
    const [number, type, text] = refusal(client.ask(option(6, '00000000 0000')))
    expect([number, type]).toEqual([6, ERR_UNKNOWN])
    expect(text).toContain('"m0", "other"')
  })

  it('NBD_OPT_EXPORT_NAME answers with size and flags alone when zeroes are not wanted', () => {
    expect(client.ask(option(1, ascii('m0')))).toBe(`${SIZE}${FLAGS}`)
  })

  it('NBD_OPT_EXPORT_NAME adds 124 zeroes for a client that did not refuse them', async () => {
    const old = await service.dial()
    old.take()
    old.ask('00000001')
    expect(old.ask(option(1, ascii('m0')))).toBe(`${SIZE}${FLAGS}${'00'.repeat(124)}`)
  })

  it('NBD_OPT_EXPORT_NAME of an unknown export can only hang up', () => {
    expect(client.ask(option(1, ascii('m1')))).toBe('')
    expect(client.peer.sawEnd).toBe(true)
    expect(lines.join()).toContain('there is no export "m1" here, only "m0"')
  })

  it('NBD_OPT_LIST names the exports of this socket with their descriptions', async () => {
    await service.exports.start({ ...EXPORT, name: 'ro', readOnly: true, description: 'base' })
    await service.exports.start({ ...EXPORT, name: 'elsewhere', address: { host: '127.0.0.1', port: 10810 } })
    expect(client.ask(option(3))).toBe(
      reply(3, SERVER, string(ascii('m0'))) +
        reply(3, SERVER, string(ascii('ro')) + ascii('base')) +
        reply(3, ACK),
    )
    expect(client.ask(option(6, `${string(ascii('ro'))} 0000`))).toContain(`${SIZE}${READ_ONLY_FLAGS}`)
  })

  it('NBD_OPT_ABORT is acknowledged before the end', () => {
    expect(client.ask(option(2))).toBe(reply(2, ACK))
    expect(client.peer.sawEnd).toBe(true)
    expect(lines.join()).not.toContain('WARNING')
  })

  it('NBD_OPT_STRUCTURED_REPLY is acknowledged and adds DF to the flags', () => {
    expect(client.ask(option(8))).toBe(reply(8, ACK))
    expect(client.ask(option(6, `${string(ascii('m0'))} 0000`))).toContain(`${SIZE}${FLAGS_STRUCTURED}`)
  })

  it('NBD_OPT_LIST_META_CONTEXT lists base:allocation, all or by its namespace', () => {
    client.ask(option(8))
    const name = string(ascii('m0'))
    const listed = reply(9, META_CONTEXT, `00000000${ascii('base:allocation')}`) + reply(9, ACK)
    expect(client.ask(option(9, `${name} 00000000`))).toBe(listed)
    expect(client.ask(option(9, `${name} 00000001 ${string(ascii('base:'))}`))).toBe(listed)
    expect(client.ask(option(9, `${name} 00000001 ${string(ascii('qemu:'))}`))).toBe(reply(9, ACK))
  })

  it('NBD_OPT_SET_META_CONTEXT selects base:allocation by its full name only', () => {
    client.ask(option(8))
    const name = string(ascii('m0'))
    expect(client.ask(option(10, `${name} 00000001 ${string(ascii('base:'))}`))).toBe(reply(10, ACK))
    expect(client.ask(option(10, `${name} 00000001 ${string(ascii('base:allocation'))}`))).toBe(
      reply(10, META_CONTEXT, `00000001${ascii('base:allocation')}`) + reply(10, ACK),
    )
  })

  it.each([
    ['TLS', option(5), 5, ERR_UNSUP],
    ['an option nobody knows', option(4242, '00'), 4242, ERR_UNSUP],
    ['extended headers', option(11), 11, ERR_UNSUP],
    ['a list with data', option(3, '00'), 3, ERR_INVALID],
    ['structured replies with data', option(8, '00'), 8, ERR_INVALID],
    [
      'metadata contexts before structured replies',
      option(10, `${string(ascii('m0'))} 00000000`),
      10,
      ERR_INVALID,
    ],
    ['GO with data that is too short', option(7, '000000'), 7, ERR_INVALID],
    ['GO with a name longer than the data', option(7, '00000009 6d30 0000'), 7, ERR_INVALID],
    ['GO with fewer requests than it says', option(7, `${string(ascii('m0'))} 0002 0003`), 7, ERR_INVALID],
    ['GO with bytes left over', option(7, `${string(ascii('m0'))} 0000 00`), 7, ERR_INVALID],
    ['GO to an export that is not there', option(7, `${string(ascii('m1'))} 0000`), 7, ERR_UNKNOWN],
    ['more data than any option needs', option(7, '00'.repeat(70_000)), 7, ERR_TOO_BIG],
  ])('refuses %s and goes on', (_, bytes, number, type) => {
    expect(refusal(client.ask(bytes)).slice(0, 2)).toEqual([number, type])
    expect(client.ask(option(8))).toBe(reply(8, ACK))
  })

  it.each([
    ['a query longer than the data', `${string(ascii('m0'))} 00000001 00000010 00`],
    ['fewer queries than it says', `${string(ascii('m0'))} ffffffff`],
    ['bytes left over', `${string(ascii('m0'))} 00000000 00`],
  ])('refuses metadata contexts with %s', (_, data) => {
    client.ask(option(8))
    expect(refusal(client.ask(option(10, data))).slice(0, 2)).toEqual([10, ERR_INVALID])
  })

  it('refuses one client more than the export allows, and lets it in once another has left', async () => {
    await service.exports.start({ ...EXPORT, name: 'one', connectionsMax: 1 })
    const go = option(7, `${string(ascii('one'))} 0000`)
    client.ask(go)
    const second = await service.dial()
    second.take()
    second.ask('00000003')
    expect(refusal(second.ask(go))).toEqual([7, ERR_POLICY, 'one has as many connections as it allows'])
    expect(service.exports.get('one').connectionCount).toBe(1)

    client.peer.close()
    await service.turn()
    expect(second.ask(go)).toContain(reply(7, ACK))
  })

  it('ends a connection that asks and asks', () => {
    client.send(option(8).repeat(1001))
    client.take()
    expect(client.peer.sawEnd).toBe(true)
  })
})
