/** Images that somebody has tampered with: refused, or used without harm to anything but themselves. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { HEADER_BYTES_MAX, parseHeader } from '../../../../src/bdev/drivers/qcow2/header.ts'
import { checkImage, imageInfo } from '../../../../src/bdev/drivers/qcow2/image.ts'
import { ProtocolError } from '../../../../src/core/errors.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { drive, isDone, type Original, originalsIn, ROUNDS, SEED } from './tampering.ts'

let directory: string
let originals: Original[]

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-fuzz-'))
  originals = await originalsIn(directory)
})
afterAll(() => rmSync(directory, { recursive: true }))

/** A copy with a few bytes changed, most of them in the header. */
function tamper(original: Original, prng: Prng): Uint8Array {
  const bytes = Uint8Array.from(original.bytes)
  for (let i = prng.between(1, 6); i > 0; i--) {
    const limit = prng.pick([112, 512, 4096, bytes.length])
    const at = prng.below(Math.min(limit, bytes.length))
    bytes[at] = prng.pick([0, 1, 0x7f, 0x80, 0xff, prng.below(256)])
  }
  if (prng.oneIn(10)) return bytes.subarray(0, prng.below(bytes.length))
  return bytes
}

it(`reads the header of anything, or says what is wrong with it (SEED=${SEED})`, () => {
  const prng = new Prng(SEED)
  let refused = 0
  for (let round = 0; round < ROUNDS * 100; round++) {
    const bytes = tamper(prng.pick(originals), prng)
    try {
      parseHeader(bytes.subarray(0, HEADER_BYTES_MAX), bytes.length)
    } catch (error) {
      refused++
      if (!(error instanceof ProtocolError)) throw error
    }
  }
  expect(refused).toBeGreaterThan(ROUNDS)
})

it(`survives images that were tampered with: SEED=${SEED}`, { timeout: 600_000 }, async () => {
  const prng = new Prng(SEED)
  const path = join(directory, 'tampered')
  let opened = 0
  for (let round = 0; round < ROUNDS; round++) {
    writeFileSync(path, tamper(prng.pick(originals), prng))
    await isDone(() => imageInfo(path))
    await isDone(() => checkImage(path))
    await isDone(() => checkImage(path, { repair: true }))
    if (await isDone(() => drive(path, prng))) opened++
  }
  expect(opened).toBeGreaterThan(0)
})
