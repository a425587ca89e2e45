/** Requests to the same sectors at the same time, from seeds: each sector is what one of them made of it, and nothing is lost. */
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
import { Request } from '../../../../src/bdev/drivers/qcow2/request.ts'
import { IoType, Segments } from '../../../../src/bdev/io.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { mapAnonymous, memset, unmap } from '../../../../src/sys/memory.ts'
import { Machine, SECTOR } from './simulation.ts'

const SEED = Number(process.env['SEED'] ?? 20261121)
const SEEDS = Number(process.env['SEEDS'] ?? 8)
const SECTORS = 384
const CONCURRENT = 12
/** Half of all requests are to so many sectors. */
const HOT = 64
const EIO = 5

interface Variant {
  readonly name: string
  readonly options: Omit<CreateOptions, 'sizeBytes'>
  readonly hasBacking?: boolean
  readonly hasSnapshot?: boolean
  readonly isKeeping?: boolean
}

const VARIANTS: readonly Variant[] = [
  { name: 'clusters of 512 bytes', options: { clusterSize: 512 } },
  { name: 'a backing file', options: { clusterSize: 4096 }, hasBacking: true },
  { name: 'a snapshot', options: { clusterSize: 2048 }, hasSnapshot: true },
  { name: 'zeroed clusters that are kept', options: { clusterSize: 1024 }, isKeeping: true },
]

/** What a request makes of a sector. */
interface Change {
  readonly began: number
  ended: number
  readonly byte: number
  /** It may have been done or not: what was there before may still be. */
  isCertain: boolean
}

/** Random requests to a machine, of which many are to the same sectors. */
class Crowd {
  running = 0
  readonly #machine: Machine
  readonly #prng: Prng
  readonly #hot: number
  readonly #mayFail: boolean
  readonly #changes: readonly Change[][]
  #now = 1

  /** `content`: the byte that each sector is filled with. */
  constructor(machine: Machine, prng: Prng, content: readonly number[], mayFail: boolean) {
    this.#machine = machine
    this.#prng = prng
    this.#hot = prng.below(SECTORS - HOT)
    this.#mayFail = mayFail
    this.#changes = content.map(byte => [{ began: 0, ended: 0, byte, isCertain: true }])
  }

  start(): void {
    const prng = this.#prng
    if (this.running >= CONCURRENT) return
    const { READ, WRITE, FLUSH, WRITE_ZEROES, UNMAP } = IoType
    const type = prng.pick([WRITE, WRITE, WRITE, WRITE, WRITE_ZEROES, UNMAP, FLUSH, READ])
    const first = prng.oneIn(2) ? this.#hot + prng.below(HOT) : prng.below(SECTORS)
    const count = type === FLUSH ? 0 : Math.min(prng.between(1, prng.pick([1, 8, 128])), SECTORS - first)
    const byte = type === WRITE ? prng.between(1, 255) : 0
    const changes = type === READ || type === FLUSH ? [] : this.#begin(first, count, byte, type !== UNMAP)
    const size = Math.max(1, count) * SECTOR
    const address = mapAnonymous(size)
    memset(address, byte, size)
    const segments = new Segments(1)
    segments.set(address, count * SECTOR)
    const requestDone = ({ result }: Request): void => {
      unmap(address, size)
      this.#end(changes, result)
    }
    const request = new Request({ requestDone }, segments)
    Object.assign(request, { type, offset: first * SECTOR, length: count * SECTOR })
    request.isFua = type === WRITE && prng.oneIn(6)
    this.running++
    this.#machine.engine.submit(request)
  }

  /** The sectors that are what none of the requests, and no order of them, has made. */
  wrong(content: readonly number[]): string[] {
    return content.flatMap((byte, sector) => {
      const changes = this.#changes[sector]!
      const possible = changes
        .filter(each => !changes.some(other => other.isCertain && other.began > each.ended))
        .map(each => each.byte)
      return possible.includes(byte) ? [] : [`sector ${sector} is ${byte}, not one of ${possible}`]
    })
  }

  #begin(first: number, count: number, byte: number, isCertain: boolean): Change[] {
    const began = this.#now++
    return Array.from({ length: count }, (_, i) => {
      const change = { began, ended: Number.POSITIVE_INFINITY, byte, isCertain }
      this.#changes[first + i]!.push(change)
      return change
    })
  }

  #end(changes: readonly Change[], result: number): void {
    this.running--
    if (result !== 0 && !this.#mayFail) throw new Error(`a request ended with ${result}`)
    const now = this.#now++
    for (const change of changes) {
      change.ended = now
      if (result !== 0) change.isCertain = false
    }
  }
}

let directory: string
let path: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-overlap-'))
  path = join(directory, 'image')
})
afterAll(() => rmSync(directory, { recursive: true }))

const bytesIn = (machine: Machine): number[] => Array.from(machine.readAll(SECTORS), tag => tag & 0xff)

function open({ hasBacking, isKeeping }: Variant, prng: Prng): Machine {
  const backing = hasBacking === true ? new Uint8Array(300 * SECTOR).fill(0x77) : null
  const machine = new Machine(readFileSync(path), backing, isKeeping !== true, prng)
  machine.open()
  return machine
}

const cases = VARIANTS.flatMap(variant => [
  { ...variant, mayFail: false, what: 'one of those under way wins' },
  { ...variant, mayFail: true, what: 'so it is where some of them fail' },
])

it.each(cases)('$name: $what', { timeout: 600_000 }, async ({ mayFail, ...variant }) => {
  for (let seed = SEED; seed < SEED + SEEDS; seed++) {
    const prng = new Prng(seed)
    rmSync(path, { force: true })
    await createImage(path, { sizeBytes: SECTORS * SECTOR, ...variant.options })
    for (let life = 0; life < 3; life++) {
      const machine = open(variant, prng)
      const crowd = new Crowd(machine, prng, bytesIn(machine), mayFail)
      let failures = mayFail ? prng.pick([1, 1, 5]) : 0
      machine.file.fails = operation =>
        failures > 0 && operation !== 'sync' && prng.oneIn(60) && failures-- > 0 ? -EIO : 0
      for (let i = prng.between(20, 200); i > 0; i--) {
        if (prng.oneIn(2)) crowd.start()
        machine.step()
      }
      while (crowd.running > 0) if (!machine.step()) throw new Error(`seed ${seed}: it hangs`)
      machine.file.fails = () => 0
      const content = bytesIn(machine)
      expect(crowd.wrong(content), `seed ${seed}, life ${life}`).toEqual([])
      machine.run(task => machine.engine.drain(task))
      writeFileSync(path, machine.file.afterKill())
      const { corruptions, leaks, problems } = await checkImage(path)
      expect([corruptions, mayFail ? 0 : leaks], `seed ${seed}: ${problems.join('\n')}`).toEqual([0, 0])
      expect(bytesIn(open(variant, prng)), `seed ${seed}, life ${life}`).toEqual(content)
      if (variant.hasSnapshot === true && life === 0) await createSnapshot(path, 's')
    }
  }
})
