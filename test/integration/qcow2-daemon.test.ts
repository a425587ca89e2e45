/** qcow2 images in the daemon: several reactors, changes under load, and a daemon that is killed. */
import { execFile } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { type CreateOptions, createImage, createSnapshot } from '../../src/bdev/drivers/qcow2/image.ts'
import { Prng } from '../../src/core/prng.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { findProgram, type Program } from './lab/packages.ts'

const KIB = 1024
const MIB = 1 << 20
const SECTOR = 512
const SEED = Number(process.env['SEED'] ?? 20261121)
const PROGRAMS = ['qemu-img', 'qemu-io', 'nbdcopy', 'fio', 'setpriv'] as const

/** Runs a program to its end and returns what it printed; a failure shows all it said. */
async function run(program: Program, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program)!, args, { maxBuffer: 1 << 26 })
  return stdout
}

/** What qemu-img check finds; it ends with another code than 0 when it finds anything. */
async function check(path: string): Promise<{ leaks: number; corruptions: number; errors: number }> {
  const args = ['check', '--output=json', path]
  const answer = await promisify(execFile)(findProgram('qemu-img')!, args).catch(error => error)
  const { leaks = 0, corruptions = 0, 'check-errors': errors } = JSON.parse(answer.stdout)
  return { leaks, corruptions, errors }
}

const CLEAN = { leaks: 0, corruptions: 0, errors: 0 }

await describeWith(PROGRAMS, 'qcow2 images in the daemon', () => {
  let daemon: Daemon
  beforeEach(async () => {
    daemon = await startDaemon({ args: ['--reactors', '3'] })
  })
  afterEach(() => daemon.stop())
  const path = (name: string): string => join(daemon.directory, name)

  async function serve(): Promise<string> {
    await daemon.rpc('bdev_qcow2_create', { name: 'q', filename: path('image') })
    return await exported()
  }

  async function exported(): Promise<string> {
    const { uri } = await daemon.rpc<{ uri: string }>('nbd_export_start', {
      bdev_name: 'q',
      unix: path('nbd.sock'),
    })
    return uri
  }

  it('is one disk on all reactors', async () => {
    await createImage(path('image'), { sizeBytes: 48 * MIB, clusterSize: 4096 })
    const uri = await serve()
    const data = new Prng(SEED).fill(new Uint8Array(48 * MIB))
    data.fill(0, 10 * MIB, 20 * MIB)
    writeFileSync(path('source'), data)
    await run('nbdcopy', '--connections=6', '--flush', path('source'), uri)
    await run('nbdcopy', '--connections=6', uri, path('back'))
    expect(Buffer.compare(readFileSync(path('back')), data)).toBe(0)
    await daemon.rpc('bdev_qcow2_delete', { name: 'q' })
    expect(await check(path('image'))).toEqual(CLEAN)
    await run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', path('image'), path('source'))
  })

  it('is changed under load: snapshots come and go, it grows, and what is written is what is read', async () => {
    await createImage(path('image'), { sizeBytes: 64 * MIB })
    const uri = await serve()
    const load = run('fio', ...VERIFYING, `--uri=${uri}`)
    let isDone = false
    const ended = load.finally(() => {
      isDone = true
    })
    for (let round = 0; round < 4 || !isDone; round++) {
      const snapshot_name = `s${round}`
      await daemon.rpc('bdev_qcow2_snapshot_create', { name: 'q', snapshot_name })
      await daemon.rpc('bdev_qcow2_resize', { name: 'q', new_size: 65 + round })
      if (round % 2 === 0) await daemon.rpc('bdev_qcow2_snapshot_delete', { name: 'q', snapshot_name })
    }
    await ended
    await daemon.rpc('bdev_qcow2_delete', { name: 'q' })
    expect(await check(path('image'))).toEqual(CLEAN)
  })

  it.each([
    ['ordinary', {}, false],
    ['with small clusters', { clusterSize: 4 * KIB, refcountBits: 8 }, false],
    ['with a snapshot and lazy refcounts', { lazyRefcounts: true }, true],
    ['with subclusters', { extendedL2: true }, true],
  ] as [string, Omit<CreateOptions, 'sizeBytes'>, boolean][])(
    `keeps what was flushed when it is killed under load: %s (SEED=${SEED})`,
    async (_, options, hasSnapshot) => {
      const prng = new Prng(SEED)
      const regions = Array.from({ length: 3 }, (_none, index) => new Region(index * 8 * MIB, 8 * MIB, prng))
      await createImage(path('image'), { sizeBytes: 24 * MIB, ...options })
      if (hasSnapshot) await createSnapshot(path('image'), 's')
      let uri = await serve()
      for (let life = 0; life < 4; life++) {
        let left = prng.between(3, 12)
        let isKilled = false
        await Promise.all(
          regions.map(async region => {
            while (!isKilled) {
              await region.write(uri)
              if (--left > 0 || isKilled) continue
              isKilled = true
              await daemon.kill()
            }
          }),
        )
        const found = await check(path('image'))
        expect({ ...found, leaks: 0 }).toEqual(CLEAN)
        await run('qemu-img', 'convert', '-U', '-O', 'raw', path('image'), path('raw'))
        const content = readFileSync(path('raw'))
        expect(regions.flatMap(region => region.wrong(content))).toEqual([])
        // The state directory has the device, and the export as well.
        await daemon.start()
        uri = `nbd+unix:///q?socket=${path('nbd.sock')}`
      }
      await daemon.rpc('bdev_qcow2_delete', { name: 'q' })
    },
  )
})

const VERIFYING = [
  ...['--name=load', '--ioengine=nbd', '--thread', '--rw=randwrite', '--bsrange=512-64k', '--size=64M'],
  ...[
    '--io_size=96M',
    '--iodepth=16',
    '--verify=crc32c',
    '--verify_state_save=0',
    '--randseed=7',
    '--rate=24m',
  ],
]

/** A part of the disk that one client writes to: what each sector may be. */
class Region {
  readonly #offset: number
  readonly #prng: Prng
  /** What each sector was filled with when it was last flushed, and with what since. */
  readonly #flushed: Uint8Array
  readonly #later = new Map<number, number[]>()

  constructor(offset: number, size: number, prng: Prng) {
    this.#offset = offset
    this.#prng = prng
    this.#flushed = new Uint8Array(size / SECTOR)
  }

  /** Some writes and a flush, as one client. What does not end well may have been done or not. */
  async write(uri: string): Promise<void> {
    const commands: string[] = []
    for (let i = 0; i < 12; i++) {
      const count = Math.min(this.#prng.between(1, this.#prng.pick([8, 300])), this.#flushed.length)
      const first = this.#prng.below(this.#flushed.length - count + 1)
      const isZero = this.#prng.oneIn(6)
      const fill = isZero ? 0 : this.#prng.between(1, 255)
      const range = `${this.#offset + first * SECTOR} ${count * SECTOR}`
      commands.push('-c', isZero ? `write -z ${range}` : `write -P ${fill} ${range}`)
      for (let sector = first; sector < first + count; sector++) {
        const later = this.#later.get(sector) ?? []
        later.push(fill)
        this.#later.set(sector, later)
      }
    }
    const isDone = await run('qemu-io', '-f', 'raw', ...commands, '-c', 'flush', uri).then(
      () => true,
      () => false,
    )
    if (!isDone) return
    for (const [sector, later] of this.#later) this.#flushed[sector] = later.at(-1)!
    this.#later.clear()
  }

  /** Compares, and takes what is there as what is there from now on. */
  wrong(content: Uint8Array): string[] {
    const found: string[] = []
    for (let sector = 0; sector < this.#flushed.length; sector++) {
      const at = this.#offset + sector * SECTOR
      const part = content.subarray(at, at + SECTOR)
      const possible = [this.#flushed[sector]!, ...(this.#later.get(sector) ?? [])]
      if (part.some(byte => byte !== part[0]) || !possible.includes(part[0]!)) {
        found.push(`the sector at ${at} begins with ${part[0]}, not with one of ${possible}`)
      }
      this.#flushed[sector] = part[0]!
    }
    this.#later.clear()
    return found
  }
}
