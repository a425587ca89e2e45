/** One request to the engine, whoever it comes from: this reactor or another. Pooled by its owner. */
import { bytesAt, memset } from '../../../sys/memory.ts'
import { type BdevIo, IoType, type Segments } from '../../io.ts'
import type { FileWaiter } from './task.ts'

/** Hears of the end of its requests, and may use them again. */
export interface RequestOwner {
  requestDone(request: Request): void
}

/** What the engine does when the last operation of a request has ended. */
export interface RequestEngine {
  ended(request: Request): void
}

export class Request implements FileWaiter {
  readonly owner: RequestOwner
  type: IoType = IoType.READ
  isFua = false
  /** In bytes. */
  offset = 0
  length = 0
  segments: Segments
  /** -errno, or 0. */
  result = 0
  /** For the owner. */
  io: BdevIo | null = null
  tag = 0
  /** For the engine: bytes that have been dealt with, operations that are outstanding, which epoch it began in. */
  done = 0
  pending = 0
  epoch = 0
  next: Request | null = null
  engine: RequestEngine | null = null

  constructor(owner: RequestOwner, segments: Segments) {
    this.owner = owner
    this.segments = segments
  }

  fileDone(result: number): void {
    if (result < 0 && this.result === 0) this.result = result
    if (--this.pending === 0) this.engine!.ended(this)
  }
}

/** Makes `length` bytes of the list zero, from `skip` bytes on. */
export function zeroSegments(segments: Segments, skip: number, length: number): void {
  walk(segments, skip, length, (address, size) => memset(address, 0, size))
}

/** Copies `bytes` into the list, from `skip` bytes on. */
export function copyToSegments(segments: Segments, skip: number, bytes: Uint8Array): void {
  let at = 0
  walk(segments, skip, bytes.length, (address, size) => {
    bytesAt(address, size).set(bytes.subarray(at, at + size))
    at += size
  })
}

function walk(
  segments: Segments,
  skip: number,
  length: number,
  visit: (address: number, size: number) => void,
): void {
  let before = skip
  let left = length
  for (let i = 0; left > 0; i++) {
    const size = segments.lengths[i]! - before
    if (size <= 0) {
      before = -size
      continue
    }
    const part = Math.min(size, left)
    visit(segments.addresses[i]! + before, part)
    left -= part
    before = 0
  }
}
