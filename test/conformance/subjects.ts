/** Every driver and filter that the conformance suite runs over: a new one is one more line. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { AnyDriver } from '../../src/bdev/bdev.ts'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { create as createQcow2 } from '../../src/bdev/drivers/qcow2/create.ts'
import type { CreateOptions } from '../../src/bdev/drivers/qcow2/image.ts'
import type { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import type { BdevRegistry } from '../../src/bdev/registry.ts'
import { virtioDriver } from '../../src/virtio/driver.ts'
import type { LocalReactorGroup } from '../support/reactor.ts'
import { iscsiSubject } from './iscsi-subject.ts'
import { virtioSubject } from './virtio-subject.ts'

// The thread of a plugin can only run what was compiled, so its driver is the compiled one.
const compiled = new URL('../../dist/bdev/drivers/plugin.js', import.meta.url).href
const { pluginDriver } = (await import(compiled)) as typeof import('../../src/bdev/drivers/plugin.ts')
export const allDrivers: readonly AnyDriver[] = [
  ...drivers.map(driver => (driver.name === 'plugin' ? pluginDriver : driver)),
  virtioDriver,
]

export const BLOCK_SIZE = 512
export const BLOCK_COUNT = 4096

export interface Bench {
  readonly bdevs: BdevRegistry
  readonly reactors: LocalReactorGroup
  /** The devices as each reactor knows them. */
  readonly local: readonly ReactorBdevs[]
  /** A directory of this test's own on the machine's disk, and one in memory. */
  readonly disk: string
  readonly memory: string
  /** Has something done at the end of the test, when the devices are gone. */
  atEnd(undo: () => Promise<unknown>): void
}

export interface Subject {
  readonly name: string
  /** Makes the device and returns its name. */
  create(bench: Bench): Promise<string>
  /** Changes the size of the medium and has the device take it over. */
  resize?(bench: Bench, blockCount: number): Promise<unknown>
  /** Why it cannot be had on this machine. */
  readonly absent?: string | undefined
  /** Why the device cannot give back what was written to it. */
  readonly forgets?: string
}

const GEOMETRY = { block_size: BLOCK_SIZE, num_blocks: BLOCK_COUNT }

async function image(directory: string): Promise<string> {
  const path = join(directory, 'image')
  await writeFile(path, '')
  await truncate(path, BLOCK_COUNT * BLOCK_SIZE)
  return path
}

const file = (
  name: string,
  driver: 'aio' | 'uring',
  where: 'disk' | 'memory',
  params: Record<string, unknown> = {},
): Subject => ({
  name,
  async create(bench) {
    const filename = await image(bench[where])
    await bench.bdevs.create(driver, 'subject', { filename, block_size: BLOCK_SIZE, ...params })
    return 'subject'
  },
  async resize(bench, blockCount) {
    await truncate(join(bench[where], 'image'), blockCount * BLOCK_SIZE)
    await bench.bdevs.resize('subject', blockCount)
  },
})

const qcow2 = (name: string, where: 'disk' | 'memory', options: Partial<CreateOptions> = {}): Subject => ({
  name,
  async create(bench) {
    const filename = join(bench[where], 'image')
    await createQcow2(filename, { sizeBytes: BLOCK_COUNT * BLOCK_SIZE, ...options })
    return (await bench.bdevs.create('qcow2', 'subject', { filename })).name
  },
})

const LATENCIES = {
  avg_read_latency: 50,
  p99_read_latency: 500,
  avg_write_latency: 20,
  p99_write_latency: 200,
}

const filter = (name: string, driver: string, params: Record<string, unknown>): Subject => ({
  name,
  async create({ bdevs }) {
    await bdevs.create('malloc', 'base', GEOMETRY)
    return (await bdevs.create(driver, 'subject', params)).name
  },
})

const PLUGIN = `
  const memory = new Uint8Array(${BLOCK_COUNT * BLOCK_SIZE})
  export const size = memory.length
  export async function read(offset, length) { return memory.subarray(offset, offset + length) }
  export async function write(offset, data) { memory.set(data, offset) }
  export async function flush() {}
`

/** A loop device, which goes with the last descriptor of it. */
function loopDevice(filename: string): string {
  const device = execFileSync('losetup', ['--find', '--show', filename], { encoding: 'utf8', stdio: 'pipe' })
  return device.trim()
}

const detach = (device: string): Buffer => execFileSync('losetup', ['--detach', device], { stdio: 'pipe' })

function whyNoLoopDevices(): string | undefined {
  const { disk, remove } = makeDirectories()
  try {
    writeFileSync(join(disk, 'image'), Buffer.alloc(BLOCK_SIZE))
    detach(loopDevice(join(disk, 'image')))
    return undefined
  } catch {
    return 'loop devices need root and losetup'
  } finally {
    remove()
  }
}

export const subjects: readonly Subject[] = [
  {
    name: 'null',
    forgets: 'it discards what is written',
    create: async ({ bdevs }) => (await bdevs.create('null', 'subject', GEOMETRY)).name,
    resize: ({ bdevs }, blockCount) => bdevs.resize('subject', blockCount),
  },
  {
    name: 'malloc',
    create: async ({ bdevs }) => (await bdevs.create('malloc', 'subject', GEOMETRY)).name,
  },
  file('aio, buffered', 'aio', 'disk'),
  file('aio without hole punching', 'aio', 'disk', { fallocate: false }),
  file('aio, direct', 'aio', 'disk', { direct: true }),
  file('aio on tmpfs', 'aio', 'memory'),
  file('uring', 'uring', 'disk'),
  qcow2('qcow2', 'disk'),
  qcow2('qcow2 on tmpfs, small clusters', 'memory', { clusterSize: 512, refcountBits: 1 }),
  qcow2('qcow2 with subclusters', 'disk', { extendedL2: true, clusterSize: 16384 }),
  {
    name: 'aio on a block device, direct',
    absent: whyNoLoopDevices(),
    async create({ bdevs, disk }) {
      const filename = loopDevice(await image(disk))
      try {
        return (await bdevs.create('aio', 'subject', { filename })).name
      } finally {
        detach(filename)
      }
    },
  },
  {
    name: 'plugin',
    async create({ bdevs, disk }) {
      const filename = join(disk, 'memory.mjs')
      await writeFile(filename, PLUGIN)
      return (await bdevs.create('plugin', 'subject', { filename })).name
    },
  },
  virtioSubject('virtio-blk over malloc', 'blk', false),
  virtioSubject('virtio-blk over malloc, packed', 'blk', true),
  virtioSubject('virtio-scsi over malloc', 'scsi', false),
  iscsiSubject,
  filter('passthru over malloc', 'passthru', { base_bdev_name: 'base' }),
  filter('delay over malloc', 'delay', { base_bdev_name: 'base', ...LATENCIES }),
  filter('error over malloc', 'error', { base_name: 'base' }),
]

export function makeDirectories(): { disk: string; memory: string; remove(): void } {
  const disk = mkdtempSync(join(tmpdir(), 'qpair-conformance-'))
  const memory = mkdtempSync('/dev/shm/qpair-conformance-')
  return {
    disk,
    memory,
    remove() {
      for (const directory of [disk, memory]) rmSync(directory, { recursive: true, force: true })
    },
  }
}
