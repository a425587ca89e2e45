/** Images that somebody has tampered with: refused, or used without harm to anything but themselves. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { HEADER_BYTES_MAX, parseHeader } from '../../../../src/bdev/drivers/qcow2/header.ts'
import {
  addBitmap,
  checkImage,
  createImage,
  createSnapshot,
  imageInfo,
} from '../../../../src/bdev/drivers/qcow2/image.ts'
import { IoType } from '../../../../src/bdev/io.ts'
import { ProtocolError, RpcError } from '../../../../src/core/errors.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { Bench, Disk } from './support.ts'

const SEED = Number(process.env['SEED'] ?? 20261121)
const ROUNDS = Number(process.env['ROUNDS'] ?? 40)
const MIB = 1 << 20

let directory: string
let originals: Uint8Array[]

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-fuzz-'))
  originals = []
  for (const extendedL2 of [false, true]) {
    const path = join(directory, `original-${extendedL2}`)
    const bench = new Bench()
    await createImage(path, { sizeBytes: 2 * MIB, clusterSize: extendedL2 ? 16384 : 512, extendedL2 })
    await addBitmap(path, 'bitmap', { granularityBytes: 4096 })
    await bench.call('bdev_qcow2_create', { name: 'image', filename: path })
    const disk = new Disk(bench, bench.local[0]!.open('image'))
    for (let at = 0; at < 2 * MIB; at += 131072)
      await disk.write(at, new Uint8Array(20000 - (20000 % 512)).fill(at))
    await bench.close()
    await createSnapshot(path, 'snapshot')
    originals.push(readFileSync(path))
  }
})
afterAll(() => rmSync(directory, { recursive: true }))

/** A copy with a few bytes changed, most of them in the header. */
function tamper(original: Uint8Array, prng: Prng): Uint8Array {
  const bytes = Uint8Array.from(original)
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
    for (const look of [
      () => imageInfo(path),
      () => checkImage(path),
      () => checkImage(path, { repair: true }),
    ]) {
      await look().catch(error => {
        if (!(error instanceof RpcError)) throw error
      })
    }
    const bench = new Bench()
    try {
      await bench.call('bdev_qcow2_create', { name: 'image', filename: path })
      opened++
      const channel = bench.local[0]!.open('image')
      const { blockCount } = channel.info
      const disk = new Disk(bench, channel)
      for (let i = 0; i < 20; i++) {
        const length = Math.min(blockCount, prng.between(1, 64)) * 512
        const offset = prng.below(Math.min(blockCount, 8192) - length / 512 + 1) * 512
        const type = prng.pick([IoType.READ, IoType.WRITE, IoType.WRITE_ZEROES, IoType.UNMAP])
        // Any status will do, as long as there is one.
        expect(await disk.run(type, offset, length)).toBeGreaterThanOrEqual(0)
      }
    } catch (error) {
      if (!(error instanceof RpcError)) throw error
    } finally {
      await bench.close()
    }
  }
  expect(opened).toBeGreaterThan(0)
})
