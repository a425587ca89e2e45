/** A file that fails at any of its operations: the image stays consistent, and what is tried again works. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type CreateOptions, checkImage, createImage } from '../../../../src/bdev/drivers/qcow2/image.ts'
import { Prng } from '../../../../src/core/prng.ts'
import type { Operation } from './fake-file.ts'
import { Expectation, Load, Machine, SECTOR } from './simulation.ts'
import { leakClusters } from './support.ts'

const SEED = Number(process.env['SEED'] ?? 20261121)
const SEEDS = Number(process.env['SEEDS'] ?? 4)
const SECTORS = 1024
const EIO = 5

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-errors-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

interface Variant {
  readonly name: string
  readonly options: Omit<CreateOptions, 'sizeBytes'>
  /** See `leakClusters`. */
  readonly leaked?: number
}

const VARIANTS: readonly Variant[] = [
  { name: 'clusters of 512 bytes', options: { clusterSize: 512 } },
  { name: 'a refcount table that grows', options: { clusterSize: 512, refcountBits: 64 }, leaked: 3950 },
  { name: 'subclusters', options: { clusterSize: 16384, extendedL2: true } },
]
const OPERATIONS: readonly Operation[] = ['read', 'write', 'zero', 'punch', 'sync']
const cases = [
  ...VARIANTS.flatMap(variant => OPERATIONS.map(operation => ({ ...variant, operation }))),
  { ...VARIANTS[1]!, operation: 'write of the header' },
]

async function newImage({ options, leaked }: Variant): Promise<Buffer> {
  const path = join(directory, 'image')
  rmSync(path, { force: true })
  await createImage(path, { sizeBytes: SECTORS * SECTOR, ...options })
  if (leaked !== undefined) await leakClusters(path, leaked)
  return readFileSync(path)
}

/** Counts every reference. Returns what each sector reads as. */
async function expectConsistent(image: Uint8Array, prng: Prng, what: string): Promise<Uint32Array> {
  const path = join(directory, 'image')
  writeFileSync(path, image)
  const { corruptions, problems } = await checkImage(path)
  expect(corruptions, `${what}: ${problems.join('\n')}`).toBe(0)
  const again = new Machine(image, null, true, prng)
  again.open()
  return again.readAll(SECTORS)
}

it.each(cases)(
  '$name: a $operation that fails costs what it was for, and no more',
  async ({ operation, ...variant }) => {
    const image = await newImage(variant)
    let failed = 0
    for (let seed = SEED; seed < SEED + SEEDS; seed++) {
      const prng = new Prng(seed)
      const machine = new Machine(image, null, true, prng)
      machine.open()
      const expectation = new Expectation(new Uint32Array(SECTORS))
      const load = new Load(machine, expectation, SECTORS, prng, true)
      let before = operation === 'write of the header' ? 0 : prng.below(prng.pick([5, 50, 500]))
      let failures = prng.pick([1, 1, 10])
      const isMeant = (ended: Operation, offset: number): boolean =>
        ended === operation || (operation === 'write of the header' && ended === 'write' && offset === 0)
      machine.file.fails = (ended, offset) =>
        isMeant(ended, offset) && before-- <= 0 && failures-- > 0 ? -EIO : 0
      for (let i = 0; i < 600; i++) {
        // What follows would write it again, if anything did.
        if (before < 0 && operation === 'write of the header') break
        if (prng.oneIn(3)) load.start()
        machine.step()
      }
      while (load.running > 0) if (!machine.step()) throw new Error(`seed ${seed}: it hangs`)
      if (before < 0) failed++
      machine.file.fails = () => 0
      // A sync that failed has lost what nobody knows: the file stays what it was, whatever happens next.
      const isLost = operation === 'sync' && before < 0
      const drain = () => machine.run(task => machine.engine.drain(task))
      if (isLost) expect(drain, `seed ${seed}`).toThrow('fdatasync')
      else drain()
      const left = isLost ? machine.file.afterPowerCut() : machine.file.afterKill()
      const content = await expectConsistent(left, prng, `seed ${seed}`)
      expect(expectation.wrong(content, isLost), `seed ${seed}`).toEqual([])
    }
    expect(failed).toBeGreaterThan(0)
  },
)
