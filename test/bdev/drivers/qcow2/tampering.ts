/** What tests of images have in common that somebody has tampered with. */
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from 'vitest'
import { addBitmap, createImage, createSnapshot } from '../../../../src/bdev/drivers/qcow2/image.ts'
import { IoType } from '../../../../src/bdev/io.ts'
import { RpcError } from '../../../../src/core/errors.ts'
import type { Prng } from '../../../../src/core/prng.ts'
import { Bench, BLOCK, Disk } from './support.ts'

export const SEED = Number(process.env['SEED'] ?? 20261121)
/** How many images are tried. */
export const ROUNDS = Number(process.env['ROUNDS'] ?? 40)

export const MIB = 1 << 20
const SIZE = 2 * MIB

export interface Original {
  readonly bytes: Buffer
  readonly clusterSize: number
}

/** Images with some of everything: data, a snapshot named `snapshot`, a bitmap named `b`; one with subclusters. */
export async function originalsIn(directory: string): Promise<Original[]> {
  const originals: Original[] = []
  for (const [clusterSize, extendedL2] of [
    [512, false],
    [16384, true],
  ] as const) {
    const path = join(directory, 'original')
    await createImage(path, { sizeBytes: SIZE, clusterSize, extendedL2 })
    await addBitmap(path, 'b', { granularityBytes: 512 })
    const bench = new Bench()
    await bench.call('bdev_qcow2_create', { name: 'image', filename: path })
    const disk = new Disk(bench, bench.local[0]!.open('image'))
    for (let at = 0; at < SIZE; at += 131072) await disk.write(at, new Uint8Array(19968).fill(at >> 17))
    await bench.close()
    await createSnapshot(path, 'snapshot')
    originals.push({ bytes: readFileSync(path), clusterSize })
    rmSync(path)
  }
  return originals
}

/** Whether it was done. What is refused is refused by an `RpcError`: all else is thrown. */
export async function isDone(work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work()
    return true
  } catch (error) {
    if (error instanceof RpcError) return false
    throw error
  }
}

const TYPES = [IoType.READ, IoType.WRITE, IoType.WRITE, IoType.WRITE_ZEROES, IoType.UNMAP, IoType.FLUSH]

/** I/O of every kind, as a device. Any status will do, as long as there is one. */
export async function drive(path: string, prng: Prng): Promise<void> {
  const bench = new Bench()
  try {
    await bench.call('bdev_qcow2_create', { name: 'image', filename: path })
    const channel = bench.local[0]!.open('image')
    const disk = new Disk(bench, channel)
    // Beyond what the image had, too.
    const blocks = Math.min(channel.info.blockCount, (2 * SIZE) / BLOCK)
    for (let i = 0; i < 24; i++) {
      const count = Math.min(blocks, prng.between(1, 64))
      const offset = prng.below(blocks - count + 1) * BLOCK
      const type = prng.pick(TYPES)
      const range = type === IoType.FLUSH ? ([0, 0] as const) : ([offset, count * BLOCK] as const)
      expect(await disk.run(type, ...range)).toBeGreaterThanOrEqual(0)
    }
  } finally {
    await bench.close()
  }
}
