import { describe, expect, it } from 'vitest'
import { logSettings } from '../../../src/core/log.ts'
import { Prng } from '../../../src/core/prng.ts'
import { byteByByte, fragmentedBy, type Peer } from '../../support/stream.ts'
import {
  BLOCK_COUNT,
  BLOCK_SIZE,
  byTransport,
  bytes,
  capsule,
  capsuleWith,
  connect,
  entry,
  h2cData,
  IC_REQ,
  inCapsule,
  join,
  Lab,
  pattern,
  read,
  show,
  write,
} from './support.ts'

logSettings.write = () => {}

/** Everything a host says in a session that has each kind of PDU; the answers do not depend on how it arrives. */
const SESSION = [
  bytes(IC_REQ),
  connect(1),
  capsule(read(1, 4, 3)),
  capsuleWith(write(2, 8, 1, inCapsule(512)), pattern(512)),
  capsule(write(3, 16, 8, byTransport(4096))),
]

/** Plays the session on a new connection, each half torn after `cut` bytes, and returns all that was answered. */
function play(lab: Lab, cut = 0): string {
  const peer = lab.dial()
  const say = (bytes: Uint8Array): string =>
    lab.exchange(peer, bytes.subarray(0, cut % bytes.length)) +
    lab.exchange(peer, bytes.subarray(cut % bytes.length))
  const answer = say(join(...SESSION))
  const ttag = Number.parseInt(/09001800180000000300(..)00/.exec(answer)![1]!, 16)
  const data = pattern(4096, cut)
  const end = say(
    join(h2cData(3, ttag, 0, data.subarray(0, 1500), '00'), h2cData(3, ttag, 1500, data.subarray(1500))),
  )
  expect(show(lab.device.contents.subarray(8192, 12288)), `torn after ${cut} bytes`).toBe(show(data))
  peer.close()
  lab.settle()
  expect(lab.pool.taken).toBe(0)
  return answer + end
}

/** The response capsules and data PDUs of a run, without SQHD: what the host learns. */
const learned = (answer: string): string[] =>
  [...answer.matchAll(/0500180018000000(.{16})....0000(....)(....)/g)]
    .map(([, dwords, cid, status]) => `${cid} ${dwords} ${status}`)
    .sort()

describe('a session', () => {
  const expected = learned(play(new Lab()))

  it('is answered', () => {
    expect(expected).toHaveLength(4)
  })

  it('means the same byte by byte', () => {
    expect(learned(play(new Lab({ fragmentation: byteByByte })))).toEqual(expected)
  })

  it('means the same torn at any byte', () => {
    const lab = new Lab()
    const size = join(...SESSION).length
    for (let cut = 1; cut < size; cut++)
      expect(learned(play(lab, cut)), `torn after ${cut} bytes`).toEqual(expected)
  })

  it.each([1, 2, 3, 4, 5, 6, 7, 8])('means the same in pieces of any size (seed %i)', seed => {
    const lab = new Lab({ fragmentation: fragmentedBy(seed), capacity: 1 << (8 + seed) })
    for (let turn = 0; turn < 10; turn++) expect(learned(play(lab))).toEqual(expected)
  })
})

/** One PDU of a host that may be right, nearly right, or nonsense. */
function anyPdu(prng: Prng): Uint8Array {
  const cid = prng.below(4)
  const block = prng.oneIn(8) ? prng.u32() : prng.below(BLOCK_COUNT)
  const blocks = prng.between(1, 8)
  const size = blocks * BLOCK_SIZE
  const fields = {
    nsid: prng.oneIn(8) ? prng.u32() : 1,
    flags: prng.pick(['40', '40', '40', '41', '42', '00']),
  }
  const data = pattern(prng.oneIn(8) ? prng.between(1, 4096) : size)
  const opcode = prng.pick(['00', '01', '02', '05', '08', '09', '7f', '1f'])
  switch (prng.below(7)) {
    case 0:
      return capsule(read(cid, block, blocks, fields))
    case 1:
      return capsuleWith(write(cid, block, blocks, inCapsule(size), fields), data)
    case 2:
      return capsule(write(cid, block, blocks, byTransport(size), fields))
    case 3:
      return h2cData(cid, prng.below(8), prng.oneIn(2) ? 0 : prng.below(4096), data, prng.pick(['00', '04']))
    case 4:
      return capsuleWith(
        entry(opcode, cid, inCapsule(16 * blocks), { cdw10: blocks - 1, cdw11: prng.below(8) }),
        data,
      )
    case 5:
      return capsule(
        entry(opcode, cid, prng.pick([byTransport(size), inCapsule(size)]), {
          cdw10: prng.u32(),
          cdw11: 0,
          cdw12: blocks - 1,
          ...fields,
        }),
      )
    default:
      return connect(prng.below(3))
  }
}

function mutate(prng: Prng, pdu: Uint8Array): Uint8Array {
  const changed = pdu.slice()
  for (let flips = prng.between(1, 4); flips > 0; flips--) {
    // Mostly within the headers: that is where the lengths are.
    const at = prng.below(prng.oneIn(4) ? changed.length : Math.min(changed.length, 80))
    changed[at] = prng.oneIn(2) ? prng.u32() : changed[at]! ^ (1 << prng.below(8))
  }
  return prng.oneIn(8) ? changed.subarray(0, prng.between(1, changed.length)) : changed
}

/** PDUs of a controller, one after the other, each with a length that makes sense. */
function checkAnswers(answer: Uint8Array): void {
  const view = new DataView(answer.buffer, answer.byteOffset, answer.length)
  for (let at = 0; at < answer.length; ) {
    expect([1, 3, 5, 7, 9]).toContain(view.getUint8(at))
    const plen = view.getUint32(at + 4, true)
    expect(plen).toBeGreaterThanOrEqual(view.getUint8(at + 2))
    at += plen
    expect(at).toBeLessThanOrEqual(answer.length)
  }
}

/** What each of the answered R2Ts asked for is delivered by a host that mostly behaves. */
function deliver(prng: Prng, peer: Peer, answer: Uint8Array): void {
  const view = new DataView(answer.buffer, answer.byteOffset, answer.length)
  for (let at = 0; at + 24 <= answer.length; at += Math.max(8, view.getUint32(at + 4, true))) {
    if (view.getUint8(at) !== 9 || prng.oneIn(4)) continue
    const [cid, ttag, length] = [
      view.getUint16(at + 8, true),
      view.getUint16(at + 10, true),
      view.getUint32(at + 16, true),
    ]
    peer.send(h2cData(cid, ttag, 0, pattern(length)))
  }
}

describe('a host that sends nonsense', () => {
  const run = (seed: number): void => {
    const prng = new Prng(seed)
    const lab = new Lab({ fragmentation: fragmentedBy(seed), sqSize: 8, transport: { maxIoSize: 4096 } })
    lab.device.lends = prng.oneIn(2)
    lab.device.isHolding = prng.oneIn(4)
    // The memory around every buffer must stay as it is: nothing else in the arena is written.
    const fence = lab.arena.allocate(4096)
    const fenced = lab.arena.u8
      .subarray(lab.arena.offsetOf(fence), lab.arena.offsetOf(fence) + 4096)
      .fill(0x5a)
    for (let host = 0; host < 6; host++) {
      const peer = prng.oneIn(4) ? lab.dial() : lab.open(prng.below(2), prng.oneIn(3) ? { cattr: '04' } : {})
      const answers: Uint8Array[] = []
      for (let turn = 0; turn < 12 && !peer.sawEnd; turn++) {
        const pdu = anyPdu(prng)
        peer.send(prng.oneIn(6) ? mutate(prng, pdu) : pdu)
        if (prng.oneIn(16)) peer.send(prng.fill(new Uint8Array(prng.below(300))))
        lab.settle()
        if (prng.oneIn(3)) lab.device.letGo()
        for (const request of lab.requests.splice(0)) request.complete({ status: 0, data: pattern(64) })
        lab.settle()
        const answer = peer.take()
        answers.push(answer)
        deliver(prng, peer, answer)
      }
      peer.close()
      lab.settle()
      answers.push(peer.take())
      checkAnswers(join(...answers))
    }
    lab.device.isHolding = false
    lab.device.letGo()
    lab.pass(60_000)
    expect(lab.network.openStreams, 'every connection has ended').toBe(0)
    expect(lab.pool.taken, 'every buffer is back').toBe(0)
    expect(lab.channel.outstanding, 'every I/O has ended').toBe(0)
    expect(
      fenced.every(byte => byte === 0x5a),
      'foreign memory is as it was',
    ).toBe(true)
    lab.arena.close()
  }

  const HUNDRED = Array.from({ length: 100 }, (_, i) => i + 1)
  it.each(HUNDRED)(
    'gets valid answers or the end of its connection, and leaves nothing behind (seed %i)',
    run,
  )
})
