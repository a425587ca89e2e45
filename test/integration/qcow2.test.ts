/** qcow2 images, judged by QEMU's own programs. */
import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { type CreateOptions, createImage } from '../../src/bdev/drivers/qcow2/image.ts'
import { Prng } from '../../src/core/prng.ts'
import { Bench, torture } from '../bdev/drivers/qcow2/support.ts'
import { describeWith } from './lab/describe-with.ts'
import { findProgram, type Program } from './lab/packages.ts'

const MIB = 1 << 20
const SEED = Number(process.env['SEED'] ?? 20261121)
const PROGRAMS = ['qemu-img', 'qemu-io'] as const

/** Runs a program to its end and returns what it printed; a failure shows all it said. */
async function run(program: Program, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program)!, args, { maxBuffer: 1 << 26 })
  return stdout
}

interface CheckOutput {
  readonly leaks?: number
  readonly corruptions?: number
  readonly 'check-errors': number
}

/** What qemu-img check finds; it ends with another code than 0 when it finds anything. */
async function check(path: string): Promise<CheckOutput> {
  const args = ['check', '--output=json', path]
  const answer = await promisify(execFile)(findProgram('qemu-img')!, args).catch(error => error)
  return JSON.parse(answer.stdout) as CheckOutput
}

async function expectClean(path: string): Promise<void> {
  const { leaks = 0, corruptions = 0, 'check-errors': errors } = await check(path)
  expect({ leaks, corruptions, errors }).toEqual({ leaks: 0, corruptions: 0, errors: 0 })
}

const VARIANTS: readonly (readonly [name: string, options: Omit<CreateOptions, 'sizeBytes'>])[] = [
  ['version 2', { version: 2 }],
  ['clusters of 512 bytes', { clusterSize: 512 }],
  ['clusters of 4 KiB, refcounts of 64 bits', { clusterSize: 4096, refcountBits: 64 }],
  ['clusters of 2 MiB', { clusterSize: 2 * MIB }],
  ['refcounts of 1 bit', { refcountBits: 1, clusterSize: 1024 }],
  ['refcounts of 2 bits', { refcountBits: 2, clusterSize: 4096 }],
  ['refcounts of 4 bits', { refcountBits: 4, clusterSize: 32768 }],
  ['refcounts of 8 bits', { refcountBits: 8 }],
  ['refcounts of 32 bits', { refcountBits: 32, clusterSize: 512 }],
  ['lazy refcounts', { lazyRefcounts: true }],
  ['subclusters', { extendedL2: true, clusterSize: 16384 }],
  ['subclusters of large clusters', { extendedL2: true, clusterSize: 2 * MIB }],
  ['preallocated tables', { preallocation: 'metadata' }],
  ['preallocated by falloc', { preallocation: 'falloc', clusterSize: 4096 }],
  ['preallocated in full, subclusters', { preallocation: 'full', extendedL2: true }],
]

await describeWith(PROGRAMS, 'qcow2 images', () => {
  let bench: Bench
  beforeEach(() => {
    bench = new Bench()
  })
  afterEach(() => bench.close())

  const compare = async (name: string, model: Uint8Array): Promise<void> => {
    writeFileSync(bench.path('twin.raw'), model)
    await run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', bench.path(name), bench.path('twin.raw'))
  }

  it.each(VARIANTS)(
    `are what QEMU makes of them after random operations: %s (SEED=${SEED})`,
    async (_, options) => {
      const prng = new Prng(SEED)
      const sizeBytes = 12 * MIB + 512 * 7
      for (const discard of [true, false]) {
        const name = `image-${discard}`
        await createImage(bench.path(name), { sizeBytes, ...options })
        await expectClean(bench.path(name))
        const disk = await bench.open(name, { discard })
        const model = new Uint8Array(sizeBytes)
        await torture(disk, model, prng, 40)
        await bench.delete(name)
        await expectClean(bench.path(name))
        await compare(name, model)
      }
    },
  )
})
