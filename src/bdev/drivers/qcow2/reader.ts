/** What the disk reads: from the image on top, or where that has nothing, from the files underneath. */
import { constants } from 'node:os'
import { SysError } from '../../../core/errors.ts'
import { SECTOR } from '../../../spec/qcow2.ts'
import { bytesAt } from '../../../sys/memory.ts'
import { Segments } from '../../io.ts'
import { type CompressedRun, compressedRun } from './geometry.ts'
import { Kind, type Layer, type Qcow2Layer } from './layer.ts'
import { copyToSegments, type Request, zeroSegments } from './request.ts'
import type { Buffers } from './tables.ts'
import { join, type Steps, settle, type Task } from './task.ts'

const { EIO, EILSEQ } = constants.errno

/** Decompressed clusters that are kept, for those who read them bit by bit. */
const KEPT_BYTES = 4 << 20

/** Decompresses on other threads. */
export interface Decompressor {
  /** Calls `done` later, with exactly `size` bytes, or null when the input does not yield that many. */
  decompress(
    compression: number,
    input: Uint8Array,
    size: number,
    done: (output: Uint8Array | null) => void,
  ): void
}

export class Reader {
  /** From the top. */
  readonly layers: readonly Layer[]
  /** After `resolve`: in which layer, how much of it, and where. */
  layer: Layer
  length = 0
  hostOffset = 0

  readonly #buffers: Buffers
  readonly #decompressor: Decompressor
  readonly #relieve: (task: Task) => Steps
  readonly #kept = new Map<Qcow2Layer, Map<number, Uint8Array>>()
  readonly #segments: Segments[] = []

  constructor(
    layers: readonly Layer[],
    buffers: Buffers,
    decompressor: Decompressor,
    relieve: (task: Task) => Steps,
  ) {
    this.layers = layers
    this.layer = layers[0]!
    this.#buffers = buffers
    this.#decompressor = decompressor
    this.#relieve = relieve
  }

  /** What the bytes at `offset` are, in which layer: a part of at most `max` that is all the same. Never UNALLOCATED. */
  resolve(offset: number, max: number): Kind {
    const { layers } = this
    let length = max
    for (let i = 0; i < layers.length; i++) {
      const layer = layers[i]!
      if (offset >= layer.sizeBytes) break
      const kind = layer.lookup(offset, Math.min(length, layer.sizeBytes - offset))
      length = layer.length
      if (kind === Kind.UNALLOCATED) continue
      this.layer = layer
      this.length = length
      this.hostOffset = layer.hostOffset
      return kind
    }
    this.length = length
    return Kind.ZERO
  }

  /** Starts what can be started at once of a READ. True when all of it is. */
  advance(request: Request): boolean {
    while (request.done < request.length) {
      const kind = this.resolve(request.offset + request.done, request.length - request.done)
      const { length } = this
      if (kind === Kind.DATA) {
        request.pending++
        this.layer.file.readTo(this.hostOffset, length, request.segments, request.done, request)
      } else if (kind === Kind.ZERO) zeroSegments(request.segments, request.done, length)
      else return false
      request.done += length
    }
    return true
  }

  /** The rest of a READ, from what is done of it on. */
  *read(task: Task, request: Request): Steps {
    while (!this.advance(request)) {
      const offset = request.offset + request.done
      const kind = this.resolve(offset, request.length - request.done)
      const { length } = this
      if (kind !== Kind.COMPRESSED) {
        yield* this.#prepare(task, kind)
        continue
      }
      const cluster = yield* this.#decompressed(task)
      const within = offset % cluster.length
      copyToSegments(request.segments, request.done, cluster.subarray(within, within + length))
      request.done += length
    }
  }

  /** Reads into memory that lies together. */
  *readInto(task: Task, offset: number, length: number, address: number): Steps {
    const segments = this.#segments.pop() ?? new Segments(1)
    segments.set(address, length)
    try {
      for (let done = 0; done < length; ) {
        const kind = this.resolve(offset + done, length - done)
        const part = this.length
        if (kind === Kind.DATA) {
          this.layer.file.readTo(this.hostOffset, part, segments, done, task.one)
        } else if (kind === Kind.ZERO) zeroSegments(segments, done, part)
        else if (kind === Kind.COMPRESSED) {
          const cluster = yield* this.#decompressed(task)
          const within = (offset + done) % cluster.length
          copyToSegments(segments, done, cluster.subarray(within, within + part))
        } else {
          yield* this.#prepare(task, kind)
          continue
        }
        done += part
      }
      yield* join(task, 'read')
    } catch (error) {
      yield* settle(task)
      throw error
    } finally {
      this.#segments.push(segments)
    }
  }

  /** How many of the bytes at `offset`, at most `max`, are known to read as zeroes; 0 when the first is not. */
  *zeroLength(task: Task, offset: number, max: number): Steps<number> {
    for (;;) {
      const kind = this.resolve(offset, max)
      if (kind === Kind.ZERO) return this.length
      if (kind === Kind.DATA || kind === Kind.COMPRESSED) return 0
      yield* this.#prepare(task, kind)
    }
  }

  /** Gets what a lookup missed. */
  *#prepare(task: Task, kind: Kind): Steps {
    const layer = this.layer as Qcow2Layer
    if (kind === Kind.MISS) yield* layer.load(task, layer.missKey, this.#relieve)
    else throw new SysError('read', EIO, layer.corruption)
  }

  /** The cluster that `resolve` has found compressed. */
  *#decompressed(task: Task): Steps<Uint8Array> {
    const layer = this.layer as Qcow2Layer
    const run = compressedRun(layer.geometry, layer.entryHigh, layer.entryLow)
    let kept = this.#kept.get(layer)
    if (kept === undefined) {
      kept = new Map()
      this.#kept.set(layer, kept)
    }
    const present = kept.get(run.offset)
    if (present !== undefined) return present
    const cluster = yield* this.#decompress(task, layer, run)
    kept.set(run.offset, cluster)
    const [oldest] = kept.keys()
    if (kept.size * cluster.length > KEPT_BYTES && kept.size > 1) kept.delete(oldest!)
    return cluster
  }

  *#decompress(task: Task, layer: Qcow2Layer, run: CompressedRun): Steps<Uint8Array> {
    const { clusterSize } = layer.geometry
    // Nobody compresses a cluster to something larger; the descriptor could say so.
    const length = Math.min(run.length, clusterSize + 2 * SECTOR)
    const input = new Uint8Array(length)
    const piece = Math.min(length, 65536)
    const buffer = yield* this.#buffers.acquire(task, piece)
    try {
      for (let at = 0; at < length; at += piece) {
        const part = Math.min(piece, length - at)
        layer.file.read(run.offset + at, buffer, part, task.one)
        yield* join(task, 'read')
        input.set(bytesAt(buffer, part), at)
      }
    } catch (error) {
      yield* settle(task)
      throw error
    } finally {
      this.#buffers.release(buffer, piece)
    }
    let output: Uint8Array | null = null
    task.park()
    this.#decompressor.decompress(layer.header.compression, input, clusterSize, result => {
      output = result
      task.unpark()
    })
    yield
    if (output === null)
      throw new SysError('read', EILSEQ, 'of a compressed cluster that cannot be decompressed')
    return output
  }
}
