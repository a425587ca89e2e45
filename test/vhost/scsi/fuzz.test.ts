/** A guest that sends whatever it likes: every request is answered once, sensibly, and nothing beside it is touched. */
import { afterEach, expect, it } from 'vitest'
import { Prng } from '../../../src/core/prng.ts'
import { filled, lunOf, type ScsiGuest, ScsiHost, type Sent, UNTOUCHED } from './support.ts'

const OPCODES = [
  0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1d, 0x1e, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x35,
  0x41, 0x42, 0x55, 0x5a, 0x5e, 0x5f, 0x88, 0x89, 0x8a, 0x8e, 0x8f, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa8, 0xaa,
]
const STATUSES = [0x00, 0x02, 0x08, 0x18]
const RESPONSES = [0, 1, 2, 3, 4, 9]
const STEPS = 1000

let host: ScsiHost

afterEach(() => host.close())

function anyCdb(prng: Prng): Uint8Array {
  const cdb = Uint8Array.from({ length: 32 }, () => (prng.oneIn(4) ? prng.below(256) : prng.below(3)))
  if (!prng.oneIn(10)) cdb[0] = OPCODES[prng.below(OPCODES.length)]!
  // Mostly addresses that exist: else hardly a command would get as far as the bdev.
  if (prng.oneIn(2)) cdb.fill(0, 2, 12)
  if (prng.oneIn(2)) cdb[5] = prng.below(64)
  if (prng.oneIn(2)) cdb[9] = prng.below(64)
  return cdb
}

const anyBytes = (prng: Prng, size: number): Uint8Array =>
  prng.oneIn(2)
    ? filled(size, 0)
    : Uint8Array.from({ length: size }, () => (prng.oneIn(3) ? prng.below(256) : prng.below(2)))

function anySize(prng: Prng): number {
  const kind = prng.below(4)
  return kind === 0
    ? 0
    : kind === 1
      ? prng.below(64)
      : kind === 2
        ? 512 * prng.below(130)
        : prng.below(70_000)
}

/** Cuts a whole into pieces, or does not. */
function pieces(prng: Prng, total: number): number[] {
  const sizes: number[] = []
  let left = total
  while (left > 0) {
    const size = prng.oneIn(3) ? left : prng.between(1, Math.min(left, prng.oneIn(2) ? 40 : 5000))
    sizes.push(size)
    left -= size
    if (sizes.length === 40) {
      if (left > 0) sizes.push(left)
      break
    }
  }
  return sizes
}

function anyLun(prng: Prng): Uint8Array {
  if (prng.oneIn(20)) return anyBytes(prng, 8)
  if (prng.oneIn(20)) return Uint8Array.of(1, 0, 0xc1, 1, 0, 0, 0, 0)
  return lunOf(prng.below(3), prng.oneIn(15) ? 1 : 0)
}

function sendAny(prng: Prng, guest: ScsiGuest): Sent {
  const header = new Uint8Array(51)
  header.set(anyLun(prng))
  header[8] = prng.below(4)
  header.set(anyCdb(prng), 19)
  const out = Buffer.concat([header, anyBytes(prng, prng.oneIn(2) ? 0 : anySize(prng))])
  const readable = prng.oneIn(40) ? out.subarray(0, prng.between(1, 50)) : out
  let at = 0
  const cut = pieces(prng, readable.length).map(size => {
    at += size
    return readable.subarray(at - size, at)
  })
  const writableBytes = prng.oneIn(40) ? prng.below(108) : 108 + anySize(prng)
  return guest.start(cut, pieces(prng, writableBytes), { reactor: prng.below(2) })
}

function check(sent: Sent, readable: readonly Uint8Array[]): void {
  expect(sent.lengths.length).toBe(1)
  const written = sent.written
  expect(sent.lengths[0]).toBeLessThanOrEqual(written.length)
  expect(sent.guards.every(([byte]) => byte === UNTOUCHED)).toBe(true)
  expect(
    sent.readable.map((piece, i) => Buffer.compare(piece, readable[i]!)).every(order => order === 0),
  ).toBe(true)
  if (written.length < 12) return
  const view = new DataView(Uint8Array.from(written).buffer)
  expect(RESPONSES).toContain(view.getUint8(11))
  expect(STATUSES).toContain(view.getUint8(10))
  expect(view.getUint32(0, true) > 0).toBe(view.getUint8(10) === 2)
  expect(view.getUint32(0, true)).toBeLessThanOrEqual(96)
}

it.each([1, 2, 3])('survives and answers a guest of seed %i', async seed => {
  const prng = new Prng(seed)
  host = await ScsiHost.start(2)
  await host.create('null', 'n0', { block_size: 4096, num_blocks: 2 ** 20 })
  await host.create('malloc', 'm1', { block_size: 512, num_blocks: 8 })
  await host.reactors.run(host.bdevs.create('error', 'e0', { base_name: 'm1' }))
  const [error] = host.bdevs.list().filter(({ driver }) => driver === 'error')
  const guests = [await host.guest('vhost.0', ['m0', 'n0', error!.name]), await host.guest('vhost.1', ['m0'])]
  const seen = new Map<string, number>()
  for (let step = 0; step < STEPS; step++) {
    const guest = guests[prng.oneIn(8) ? 1 : 0]!
    const batch = Array.from({ length: prng.between(1, 4) }, () => {
      const sent = sendAny(prng, guest)
      return { sent, readable: sent.readable.map(piece => Uint8Array.from(piece)) }
    })
    if (prng.oneIn(50)) {
      expect([0, 3, 10, 11, 12]).toContain(
        await host.reactors.run(guest.manage(prng.below(9), prng.below(4), prng.below(3))),
      )
    }
    await host.reactors.until(() => batch.every(({ sent }) => sent.isDone))
    host.reactors.settle()
    for (const { sent, readable } of batch) {
      check(sent, readable)
      const key = sent.written.length < 12 ? 'none' : `${sent.written[11]}/${sent.written[10]}`
      seen.set(key, (seen.get(key) ?? 0) + 1)
    }
  }
  // It got far: commands that were carried out, refused, in conflict, too long, nowhere.
  for (const key of ['0/0', '0/2', '0/24', '1/0', '3/0', '9/0'])
    expect(seen.get(key) ?? 0, key).toBeGreaterThan(0)
})
