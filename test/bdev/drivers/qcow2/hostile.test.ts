/**
 * Every field of a header, and entries of every table, with values that somebody would choose who means harm: the image is
 * refused or used, and nothing crashes, hangs, takes much memory or room, or touches another file.
 */
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import {
  addBitmap,
  applySnapshot,
  checkImage,
  createSnapshot,
  deleteSnapshot,
  imageInfo,
  removeBitmap,
  resizeImage,
} from '../../../../src/bdev/drivers/qcow2/image.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { BitmapEntry, BitmapsExtension, Header, SnapshotEntry } from '../../../../src/spec/qcow2.ts'
import { drive, isDone, MIB, type Original, originalsIn, ROUNDS, SEED } from './tampering.ts'

/** What is tampered with: so many bytes at an offset of the file. */
interface Target {
  readonly name: string
  readonly at: number
  readonly size: number
}

let directory: string
let originals: Original[]

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-hostile-'))
  originals = await originalsIn(directory)
})
afterAll(() => rmSync(directory, { recursive: true }))

/** Fields of the header and of what it names, and the first entries of the tables. */
function targetsOf(bytes: Buffer): Target[] {
  const long = (at: number): number => Number(bytes.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n)
  const targets: Target[] = []
  const fields = (what: string, base: number, struct: object): void => {
    for (const [name, field] of Object.entries(struct)) {
      if (typeof field === 'object')
        targets.push({ name: `${what} ${name}`, at: base + field.offset, size: field.size })
    }
  }
  const entries = (what: string, base: number, size = 8): void => {
    for (const index of [0, 1, 2, 5])
      targets.push({ name: `${what} ${index}`, at: base + index * size, size })
  }
  fields('header', 0, Header)
  const extensions = bytes.indexOf(Buffer.from('23852875', 'hex'))
  targets.push({ name: "length of the bitmaps' extension", at: extensions + 4, size: 4 })
  fields('bitmaps extension', extensions + 8, BitmapsExtension)
  const bitmap = long(extensions + 8 + 16)
  fields('bitmap', bitmap, BitmapEntry)
  entries('bitmap table', long(bitmap))
  const snapshot = long(64)
  fields('snapshot', snapshot, SnapshotEntry)
  targets.push({ name: 'snapshot, size of the disk', at: snapshot + 48, size: 8 })
  for (const [what, l1] of [
    ['active', long(40)],
    ['snapshot', long(snapshot)],
  ] as const) {
    entries(`${what} L1 table`, l1)
    entries(`${what} L2 table`, long(l1))
  }
  entries('refcount table', long(48))
  entries('refcount block', long(long(48)), 2)
  return targets
}

/** Numbers that fit into so many bytes. */
function valuesOf({ bytes, clusterSize }: Original, { at, size }: Target): bigint[] {
  const all = 2n ** BigInt(size * 8) - 1n
  const old = BigInt(`0x${bytes.toString('hex', at, at + size)}`)
  const places = [0, 1, 2, 3, 4, 5, 6].map(cluster => BigInt(cluster * clusterSize))
  const offsets = [...places, BigInt(bytes.length), BigInt(bytes.length - (bytes.length % clusterSize))]
  const flags = [1n << 63n, 1n << 62n, 3n << 62n, 1n]
  const powers = [7n, 9n, 16n, 20n, 24n, 31n, 32n, 40n, 52n, 55n].map(bits => 1n << bits)
  const values = [
    ...[0n, 1n, 2n, 3n, all, all >> 1n, old + 1n, old - 1n, old * 2n, old << 8n],
    ...offsets,
    ...offsets.map(offset => offset | (1n << 63n)),
    ...flags.map(flag => old ^ flag),
    ...powers,
    ...powers.map(power => power - 1n),
  ]
  return [...new Set(values)].filter(value => value >= 0n && value <= all && value !== old)
}

/** Does all that can be done with an image. What it says no to is an `RpcError`. */
async function use(path: string, prng: Prng): Promise<void> {
  const works: (() => Promise<unknown>)[] = [
    () => imageInfo(path),
    () => checkImage(path),
    () => drive(path, prng),
    () => createSnapshot(path, 'new'),
    () => applySnapshot(path, 'snapshot'),
    () => deleteSnapshot(path, 'snapshot'),
    () => resizeImage(path, 3 * MIB),
    () => resizeImage(path, MIB, { shrink: true }),
    () => removeBitmap(path, 'b'),
    () => addBitmap(path, 'c', { granularityBytes: 65536 }),
    () => drive(path, prng),
    () => checkImage(path, { repair: true }),
  ]
  for (const work of works) await isDone(work)
}

it(`are refused or used without harm (SEED=${SEED})`, { timeout: 3_600_000 }, async () => {
  const prng = new Prng(SEED)
  const path = join(directory, 'tampered')
  // All combinations of an entry and a value: as many of them are tried as there are rounds.
  const cases = originals.flatMap(original =>
    targetsOf(original.bytes).flatMap(target =>
      valuesOf(original, target).map(value => ({ original, target, value })),
    ),
  )
  const before = readdirSync(directory).length
  for (let round = 0; round < ROUNDS; round++) {
    const index = ROUNDS >= cases.length ? round % cases.length : prng.below(cases.length)
    const { original, target, value } = cases[index]!
    const bytes = Buffer.from(original.bytes)
    bytes.write(value.toString(16).padStart(target.size * 2, '0'), target.at, 'hex')
    writeFileSync(path, bytes)
    const what = `${target.name} of clusters of ${original.clusterSize} is 0x${value.toString(16)}`
    await use(path, prng).catch(cause => {
      throw new Error(what, { cause })
    })
    expect(statSync(path).blocks * 512, what).toBeLessThan(128 * MIB)
    rmSync(path)
    expect(readdirSync(directory).length, what).toBe(before)
  }
})
