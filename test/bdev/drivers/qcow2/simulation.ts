/**
 * The engine over a file that loses its power, from a seed: random operations, then a cut (or a kill) at a random moment. What
 * was flushed must be there, and what was not may be old or new; nothing else.
 */
import { Engine } from '../../../../src/bdev/drivers/qcow2/engine.ts'
import { parseHeader } from '../../../../src/bdev/drivers/qcow2/header.ts'
import { type Layer, RawLayer } from '../../../../src/bdev/drivers/qcow2/layer.ts'
import { Request } from '../../../../src/bdev/drivers/qcow2/request.ts'
import type { Buffers } from '../../../../src/bdev/drivers/qcow2/tables.ts'
import { Scheduler, type Steps, type Task } from '../../../../src/bdev/drivers/qcow2/task.ts'
import { IoType, Segments } from '../../../../src/bdev/io.ts'
import type { Prng } from '../../../../src/core/prng.ts'
import { bytesAt, mapAnonymous, unmap } from '../../../../src/sys/memory.ts'
import { FakeFile } from './fake-file.ts'

export const SECTOR = 512
const CONCURRENT = 8

/** What each sector of the disk may be: every sector that is written is filled with a number of its own. */
export class Expectation {
  /** By sector: all that was ever begun, each as what it may read as afterwards. */
  readonly #history: number[][][]
  /** By sector: the first of those that may still be there after a crash. */
  readonly #floor: number[]
  #next = 0x1000_0000

  constructor(content: Uint32Array) {
    this.#history = Array.from(content, tag => [[tag]])
    this.#floor = Array.from(content, () => 0)
  }

  newTag(): number {
    return this.#next++
  }

  began(sector: number, tag: number): void {
    this.#history[sector]!.push([tag])
  }

  /** An unmapped sector is zero, or stays what it was. */
  unmapped(sector: number): void {
    const history = this.#history[sector]!
    history.push([0, ...history.at(-1)!])
  }

  /** The last change of it failed: it may have been done or not. */
  failed(sector: number): void {
    const history = this.#history[sector]!
    history.push([...history.at(-2)!, ...history.at(-1)!])
  }

  /** For a flush that begins now: what will be certain when it has ended. */
  mark(busy: ReadonlySet<number>): readonly number[] {
    return this.#history.map((history, sector) =>
      busy.has(sector) ? this.#floor[sector]! : history.length - 1,
    )
  }

  flushed(mark: readonly number[]): void {
    for (const [sector, floor] of mark.entries()) this.#floor[sector] = Math.max(this.#floor[sector]!, floor)
  }

  /** The latest that was begun is on stable storage. */
  certain(sector: number): void {
    this.#floor[sector] = this.#history[sector]!.length - 1
  }

  /** The sectors that are what they cannot be. `isAfterCrash`: otherwise only the latest will do. */
  wrong(content: Uint32Array, isAfterCrash: boolean): string[] {
    const found: string[] = []
    for (const [sector, tag] of content.entries()) {
      const history = this.#history[sector]!
      const possible = (isAfterCrash ? history.slice(this.#floor[sector]!) : history.slice(-1)).flat()
      if (!possible.includes(tag)) found.push(`sector ${sector} is ${tag}, not one of ${possible}`)
    }
    return found
  }
}

class FakeBuffers implements Buffers {
  // biome-ignore lint/correctness/useYield: there is always room.
  *acquire(_task: Task, sizeBytes: number): Steps<number> {
    return mapAnonymous(pages(sizeBytes))
  }

  release(address: number, sizeBytes: number): void {
    unmap(address, pages(sizeBytes))
  }
}

/** How a request has ended, null before. */
export interface Ended {
  result: number | null
}

/** An engine and its file, moved on by hand. */
export class Machine {
  readonly file: FakeFile
  readonly scheduler = new Scheduler()
  readonly engine: Engine
  readonly complaints: string[] = []
  readonly #below: FakeFile[] = []
  readonly #prng: Prng
  #soon: (() => void)[] = []

  constructor(image: Uint8Array, backing: Uint8Array | null, isDiscarding: boolean, prng: Prng) {
    this.#prng = prng
    this.file = new FakeFile(image, prng)
    if (backing !== null) this.#below.push(new FakeFile(backing, prng))
    const below = this.#below.map((file): Layer => new RawLayer(file))
    // So small that tables are given up and loaded again all the time.
    const options = { isReadOnly: false, isDiscarding, l2CacheBytes: 1, refcountCacheBytes: 1 }
    this.engine = new Engine(this.file, parseHeader(image.subarray(0, 65536), image.length), below, options, {
      scheduler: this.scheduler,
      buffers: new FakeBuffers(),
      decompressor: { decompress: () => this.complaints.push('nothing here is compressed') },
      soon: done => void this.#soon.push(done),
      complain: message => void this.complaints.push(message),
      recorder: null,
    })
  }

  /** Does one thing. False when there is nothing to do. */
  step(): boolean {
    const busy = [this.file, ...this.#below].filter(file => !file.isIdle)
    if (busy.length > 0) this.#prng.pick(busy).step()
    const soon = this.#soon
    this.#soon = []
    for (const done of soon) done()
    return busy.length + soon.length > 0
  }

  run(steps: (task: Task) => Steps): void {
    let isDone = false
    this.scheduler.start(function* (task) {
      yield* steps(task)
      isDone = true
    })
    while (!isDone) {
      if (!this.step() && !isDone) throw new Error('it waits for something that never comes')
    }
  }

  open(): void {
    this.run(task => this.engine.open(task))
  }

  /** Starts a write of sectors that are all of one byte. */
  write(sector: number, count: number, byte: number): Ended {
    const size = count * SECTOR
    const address = mapAnonymous(pages(size))
    bytesAt(address, size).fill(byte)
    const segments = new Segments(1)
    segments.set(address, size)
    return this.#start(segments, request => {
      request.type = IoType.WRITE
      request.offset = sector * SECTOR
      request.length = size
    })
  }

  flush(): Ended {
    return this.#start(new Segments(1), request => {
      request.type = IoType.FLUSH
    })
  }

  /** Goes on until it has ended. Returns how. */
  finish(ended: Ended): number {
    while (ended.result === null) if (!this.step()) throw new Error('a request never ends')
    return ended.result
  }

  #start(segments: Segments, prepare: (request: Request) => void): Ended {
    const ended: Ended = { result: null }
    const owner = {
      requestDone({ length, result }: Request) {
        if (length > 0) unmap(segments.addresses[0]!, pages(length))
        ended.result = result
      },
    }
    const request = new Request(owner, segments)
    prepare(request)
    this.engine.submit(request)
    return ended
  }

  /** The number that each sector is filled with. */
  readAll(sectors: number): Uint32Array {
    const size = sectors * SECTOR
    const address = mapAnonymous(pages(size))
    const segments = new Segments(1)
    segments.set(address, size)
    let result: number | null = null
    const request = new Request(
      {
        requestDone(ended) {
          result = ended.result
        },
      },
      segments,
    )
    request.length = size
    this.engine.submit(request)
    while (result === null) if (!this.step()) throw new Error('a read never ends')
    if (result !== 0) throw new Error(`a read ended with ${result}: ${this.complaints}`)
    const content = sectorsOf(bytesAt(address, size))
    unmap(address, pages(size))
    return content
  }
}

/** Throws when a sector is not filled with one number. */
export function sectorsOf(bytes: Uint8Array): Uint32Array {
  const words = new Uint32Array(Uint8Array.from(bytes).buffer)
  return Uint32Array.from({ length: bytes.length / SECTOR }, (_, sector) => {
    const part = words.subarray((sector * SECTOR) / 4, ((sector + 1) * SECTOR) / 4)
    if (part.some(word => word !== part[0])) throw new Error(`sector ${sector} is torn`)
    return part[0]!
  })
}

/** One operation that is under way. */
interface Running {
  readonly type: IoType
  readonly first: number
  readonly count: number
  readonly isFua: boolean
  readonly mark: readonly number[]
  readonly address: number
}

/** Random operations on a machine, as many at a time as there are lanes, none of which overlap. */
export class Load {
  /** Operations that failed. */
  failures = 0
  /** Whether any may. */
  readonly #mayFail: boolean
  readonly #machine: Machine
  readonly #expectation: Expectation
  readonly #sectors: number
  readonly #prng: Prng
  readonly #running = new Set<Running>()
  readonly #busy = new Set<number>()

  constructor(machine: Machine, expectation: Expectation, sectors: number, prng: Prng, mayFail = false) {
    this.#mayFail = mayFail
    this.#machine = machine
    this.#expectation = expectation
    this.#sectors = sectors
    this.#prng = prng
  }

  get running(): number {
    return this.#running.size
  }

  /** Starts one more operation, if there is room for it. */
  start(): void {
    const prng = this.#prng
    if (this.#running.size >= CONCURRENT) return
    const type = prng.pick([
      ...[IoType.WRITE, IoType.WRITE, IoType.WRITE, IoType.WRITE, IoType.WRITE],
      ...[IoType.READ, IoType.WRITE_ZEROES, IoType.UNMAP, IoType.FLUSH],
    ])
    const first = prng.below(this.#sectors)
    const count =
      type === IoType.FLUSH ? 0 : Math.min(prng.between(1, prng.pick([1, 8, 128])), this.#sectors - first)
    for (let sector = first; sector < first + count; sector++) if (this.#busy.has(sector)) return
    const mark = this.#expectation.mark(this.#busy)
    const size = Math.max(1, count) * SECTOR
    const running: Running = {
      type,
      first,
      count,
      isFua: type !== IoType.READ && type !== IoType.FLUSH && prng.oneIn(6),
      mark,
      address: mapAnonymous(pages(size)),
    }
    const segments = new Segments(1)
    segments.set(running.address, count * SECTOR)
    const request = new Request({ requestDone: ended => this.#ended(running, ended) }, segments)
    request.type = type
    request.offset = first * SECTOR
    request.length = count * SECTOR
    request.isFua = running.isFua
    this.#prepare(running)
    this.#running.add(running)
    for (let sector = first; sector < first + count; sector++) this.#busy.add(sector)
    this.#machine.engine.submit(request)
  }

  #prepare({ type, first, count, address }: Running): void {
    if (type === IoType.READ || type === IoType.FLUSH) return
    const { buffer, byteOffset } = bytesAt(address, count * SECTOR)
    const words = new Uint32Array(buffer, byteOffset, (count * SECTOR) / 4)
    for (let sector = first; sector < first + count; sector++) {
      if (type === IoType.UNMAP) {
        this.#expectation.unmapped(sector)
        continue
      }
      const tag = type === IoType.WRITE ? this.#expectation.newTag() : 0
      words.fill(tag, ((sector - first) * SECTOR) / 4, ((sector - first + 1) * SECTOR) / 4)
      this.#expectation.began(sector, tag)
    }
  }

  #ended(running: Running, { result }: Request): void {
    const { type, first, count, isFua, mark, address } = running
    this.#running.delete(running)
    if (result !== 0) this.failures++
    for (let sector = first; sector < first + count; sector++) {
      this.#busy.delete(sector)
      if (result !== 0 && type !== IoType.READ) this.#expectation.failed(sector)
      else if (isFua) this.#expectation.certain(sector)
    }
    unmap(address, pages(Math.max(1, count) * SECTOR))
    if (result !== 0 && !this.#mayFail)
      throw new Error(`operation ${type} of ${count} sectors at ${first} ended with ${result}`)
    if (type === IoType.FLUSH && result === 0) this.#expectation.flushed(mark)
  }
}

const pages = (size: number): number => Math.ceil(size / 4096) * 4096
