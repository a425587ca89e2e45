/** The same bytes in other portions, and bytes that make no sense. */
import { afterEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { Prng } from '../../src/core/prng.ts'
import { byteByByte, type Fragmentation, fragmentedBy, whole } from '../support/stream.ts'
import { ascii, EXPORT, hex, option, request, string, WireService } from './support.ts'

const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8]
const { write } = logSettings

afterEach(() => {
  logSettings.write = write
})

async function start(fragmentation: Fragmentation): Promise<WireService> {
  logSettings.write = () => {}
  const service = await WireService.start({ fragmentation, arenaBytes: 8 << 20 })
  await service.exports.start(EXPORT)
  return service
}

const name = string(ascii('m0'))
const DATA = Array.from({ length: 1536 }, (_, i) => ((i * 13) & 0xff).toString(16).padStart(2, '0')).join('')

/** A whole conversation, from the client's flags to its goodbye. */
const CONVERSATION = hex(
  [
    '00000003',
    option(8),
    option(3),
    option(10, `${name} 00000001 ${string(ascii('base:allocation'))}`),
    option(7, '00'.repeat(20_000)),
    option(7, `${name} 0001 0003`),
    request({ type: 1, offset: 512, length: 1536, cookie: '01'.repeat(8) }) + DATA,
    request({ type: 1, offset: 513, length: 1536, cookie: '02'.repeat(8) }) + DATA,
    request({ type: 0, offset: 512, length: 1536, cookie: '03'.repeat(8) }),
    request({ type: 7, offset: 0, length: 4096, cookie: '04'.repeat(8) }),
    request({ type: 2 }),
  ].join(''),
)

async function converse(fragmentation: Fragmentation): Promise<{ answer: string; isOver: boolean }> {
  const service = await start(fragmentation)
  const client = await service.dial()
  client.send(CONVERSATION)
  const answer = client.take().toString('hex')
  const isOver = client.peer.sawEnd
  service.close()
  return { answer, isOver }
}

describe('a conversation', () => {
  it('is the same byte by byte, and in whatever portions', async () => {
    const expected = await converse(whole)
    expect(expected.answer).toContain(DATA)
    expect(expected.isOver).toBe(true)
    // Replies of the same round may come in another order: the protocol allows any.
    for (const fragmentation of [byteByByte, ...SEEDS.map(fragmentedBy)]) {
      const other = await converse(fragmentation)
      expect(other.isOver).toBe(true)
      expect(messages(other.answer)).toEqual(messages(expected.answer))
    }
  })
})

/** The transmission's replies, sorted; the handshake before them as it is. */
function messages(answer: string): string[] {
  const first = answer.search(/67446698|668e33ef/)
  const replies = answer
    .slice(first)
    .split(/(?=67446698|668e33ef)/)
    .sort()
  return [answer.slice(0, first), ...replies]
}

describe('nonsense', () => {
  it.each(SEEDS)('harms nobody but its own connection (seed %i)', async seed => {
    const prng = new Prng(seed)
    const service = await start(fragmentedBy(seed))
    const witness = (await service.dial()).enter()
    for (let round = 0; round < 40; round++) {
      const client = await service.dial()
      const bytes = mutate(prng, CONVERSATION)
      client.send(bytes)
      client.take()
      client.peer.close()
    }
    await service.turn()
    expect(witness.ask(request({ type: 3 }))).toBe('67446698000000000123456789abcdef')
    expect(service.exports.get('m0').connectionCount).toBe(1)
    witness.peer.close()
    // Everything was given back, or the device could not go.
    await service.reactors.run(service.bdevs.remove('m0'))
    service.close()
  })
})

/** Flips some bytes, drops some, repeats some. */
function mutate(prng: Prng, bytes: Uint8Array): Uint8Array {
  const copy = Uint8Array.from(bytes)
  for (let i = prng.between(1, 8); i > 0; i--) copy[prng.below(copy.length)] = prng.u32()
  if (prng.oneIn(3)) {
    const from = prng.below(copy.length)
    return Buffer.concat([copy.subarray(0, from), copy.subarray(prng.between(from, copy.length))])
  }
  if (prng.oneIn(3)) {
    const from = prng.below(copy.length)
    return Buffer.concat([copy, copy.subarray(from)])
  }
  return copy
}
