/** Power cuts and kills at any moment, from seeds: never more than lost room, and nothing that was flushed is gone. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import {
  type CreateOptions,
  checkImage,
  createImage,
  createSnapshot,
} from '../../../../src/bdev/drivers/qcow2/image.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { Expectation, Load, Machine, SECTOR, sectorsOf } from './simulation.ts'
import { leakClusters } from './support.ts'

const SEED = Number(process.env['SEED'] ?? 20261121)
const SEEDS = Number(process.env['SEEDS'] ?? 2)
const SECTORS = 2048

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-crash-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

interface Variant {
  readonly name: string
  readonly options: Omit<CreateOptions, 'sizeBytes'>
  readonly hasBacking?: boolean
  readonly hasSnapshot?: boolean
  readonly isKeeping?: boolean
  /** Clusters that are counted already: the table has places for 4096. */
  readonly leaked?: number
}

const VARIANTS: readonly Variant[] = [
  { name: 'clusters of 512 bytes', options: { clusterSize: 512 } },
  { name: 'clusters of 4 KiB, refcounts of 64 bits', options: { clusterSize: 4096, refcountBits: 64 } },
  { name: 'a refcount table that grows', options: { clusterSize: 512, refcountBits: 64 }, leaked: 3900 },
  { name: 'a snapshot', options: { clusterSize: 1024 }, hasSnapshot: true },
  { name: 'a backing file', options: { clusterSize: 2048 }, hasBacking: true },
  { name: 'version 2 over a backing file', options: { version: 2, clusterSize: 1024 }, hasBacking: true },
  { name: 'subclusters', options: { clusterSize: 16384, extendedL2: true }, hasBacking: true },
  {
    name: 'subclusters and a snapshot',
    options: { clusterSize: 16384, extendedL2: true },
    hasSnapshot: true,
  },
  { name: 'zeroed clusters that are kept', options: { clusterSize: 1024 }, isKeeping: true },
]

/** The image's bytes to begin with, filled a little if it is to have a snapshot. */
async function newImage(variant: Variant, prng: Prng, backing: Uint8Array | null): Promise<Uint8Array> {
  const path = join(directory, 'image')
  rmSync(path, { force: true })
  await createImage(path, { sizeBytes: SECTORS * SECTOR, ...variant.options })
  if (variant.leaked !== undefined) await leakClusters(path, variant.leaked)
  if (variant.hasSnapshot !== true) return readFileSync(path)
  const machine = new Machine(readFileSync(path), backing, true, prng)
  machine.open()
  const load = new Load(machine, new Expectation(new Uint32Array(SECTORS)), SECTORS, prng)
  for (let i = 0; i < 60; i++) {
    load.start()
    machine.step()
  }
  machine.run(task => machine.engine.drain(task))
  writeFileSync(path, machine.file.afterKill())
  await createSnapshot(path, 's')
  return readFileSync(path)
}

async function expectUsable(image: Uint8Array, leaks: boolean): Promise<void> {
  const path = join(directory, 'crashed')
  writeFileSync(path, image)
  const result = await checkImage(path)
  expect(result.corruptions, result.problems.join('\n')).toBe(0)
  if (!leaks) expect(result.leaks, result.problems.join('\n')).toBe(0)
}

it.each(VARIANTS)(
  '$name: power cuts, kills and clean ends leave what they may',
  { timeout: 600_000 },
  async variant => {
    for (let seed = SEED; seed < SEED + SEEDS; seed++) {
      const prng = new Prng(seed)
      const backing = variant.hasBacking === true ? new Uint8Array(700 * SECTOR).fill(0x77) : null
      let image = await newImage(variant, prng, backing)
      const start = new Machine(image, backing, true, prng)
      start.open()
      let content = start.readAll(SECTORS)
      // What a crash leaves is used on, so that errors add up.
      for (let life = 0; life < 4; life++) {
        const machine = new Machine(image, backing, variant.isKeeping !== true, prng)
        machine.open()
        const expectation = new Expectation(content)
        const load = new Load(machine, expectation, SECTORS, prng)
        const until = prng.between(10, 1500)
        for (let i = 0; i < until; i++) {
          if (prng.oneIn(3)) load.start()
          machine.step()
        }
        const end = prng.pick(['cut', 'cut', 'kill', 'clean'] as const)
        if (end === 'clean') machine.run(task => machine.engine.drain(task))
        image = end === 'cut' ? machine.file.afterPowerCut() : machine.file.afterKill()
        // Leaks stay, so only a life without any before it can be expected to have none.
        await expectUsable(image, end !== 'clean' || life > 0 || variant.leaked !== undefined)
        const after = new Machine(image, backing, true, prng)
        after.open()
        content = after.readAll(SECTORS)
        const wrong = expectation.wrong(content, end !== 'clean')
        expect(wrong, `seed ${seed}, life ${life}, ${end}`).toEqual([])
      }
    }
  },
)

it('finds a sector that is torn', () => {
  const bytes = new Uint8Array(SECTOR).fill(1)
  bytes[5] = 2
  expect(() => sectorsOf(bytes)).toThrow('torn')
})
