/**
 * Memory by address. All threads of the process share one address space: memory mapped in one is viewed in another by
 * its address alone, so an (address, length) pair is what layers hand to each other.
 */
import { assert } from '../core/assert.ts'
import { SysError } from '../core/errors.ts'
import { BUFFER_SIZE_MAX } from './buffer-size.ts'
import { memcmp, memcpy, memset, mmap, munmap, viewMemory } from './libc.ts'

export { memcmp, memcpy, memset }

const PROT_READ_WRITE = 3
const MAP_PRIVATE_ANONYMOUS_NORESERVE = 0x02 | 0x20 | 0x4000
const GIB = 2 ** 30
const PAGE = 4096
const WINDOW_ALIGNMENT = 2 ** 32

/**
 * One GiB of address space around each address that was asked for, viewed on first use and kept. Views over more are
 * slow (indexes beyond 2^31) or abort the process (Node 20 over 4 GiB). A view of what is not mapped is harmless until
 * it is touched.
 */
const windows = new Map<number, Uint8Array<ArrayBuffer>>()

function windowOf(address: number): Uint8Array<ArrayBuffer> {
  const number = Math.floor(address / GIB)
  let window = windows.get(number)
  if (window === undefined) {
    window = new Uint8Array(viewMemory(number * GIB, GIB))
    windows.set(number, window)
  }
  return window
}

/**
 * The bytes at `address` as a view, valid for as long as the memory is mapped. Allocates a small object: on the
 * innermost paths use `memcpy` and friends, or a view of an arena made at start.
 */
export function bytesAt(address: number, size: number): Uint8Array<ArrayBuffer> {
  const offset = address % GIB
  // No view begins at address 0, and the C library's heap may lie in the GiB there.
  if (offset + size > GIB || address < GIB) return new Uint8Array(viewMemory(address, size))
  return windowOf(address).subarray(offset, offset + size)
}

/** As `bytesAt`, as a `DataView` for field objects. */
export function viewAt(address: number, size: number): DataView<ArrayBuffer> {
  const { buffer, byteOffset } = bytesAt(address, size)
  return new DataView(buffer, byteOffset, size)
}

/** Private zeroed memory, not backed until it is touched. Returns its address. */
export function mapAnonymous(sizeBytes: number): number {
  const address = mmap(0, sizeBytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
  if (address < 0) throw new SysError('mmap', -address, `of ${sizeBytes} bytes`)
  return address
}

export function unmap(address: number, sizeBytes: number): void {
  const result = munmap(address, sizeBytes)
  assert(result === 0, `munmap of our own mapping succeeds, not ${result}`)
}

/** Memory of which each piece is handed out once and never taken back; buffers may be cut from it. Whole pages. */
export class Area {
  readonly base: number
  readonly sizeBytes: number
  #used = 0

  constructor(base: number, sizeBytes: number) {
    assert(base % PAGE === 0 && sizeBytes % PAGE === 0, 'an area is whole pages')
    this.base = base
    this.sizeBytes = sizeBytes
  }

  /** The address of `sizeBytes` bytes that nobody has used, or 0 when the area is used up. */
  allocate(sizeBytes: number, alignment = 64): number {
    const offset = Math.ceil(this.#used / alignment) * alignment
    if (offset + sizeBytes > this.sizeBytes) return 0
    this.#used = offset + sizeBytes
    return this.base + offset
  }

  /** Bytes that have not been handed out. */
  get freeBytes(): number {
    return this.sizeBytes - this.#used
  }

  /** Where one of its own addresses lies within it. */
  offsetOf(address: number): number {
    return address - this.base
  }
}

/**
 * A window of at most 1 GiB at an address that is a multiple of 4 GiB: an offset into its typed arrays is the low half
 * of the address, and the high half is a constant. Zeroed, and not backed until it is touched.
 */
export class Arena extends Area {
  readonly view: DataView<ArrayBuffer>
  readonly u8: Uint8Array<ArrayBuffer>
  readonly i32: Int32Array<ArrayBuffer>
  readonly f64: Float64Array<ArrayBuffer>

  constructor(sizeBytes: number) {
    super(mapWindow(sizeBytes), sizeBytes)
    const buffer = viewMemory(this.base, sizeBytes)
    this.view = new DataView(buffer)
    this.u8 = new Uint8Array(buffer)
    this.i32 = new Int32Array(buffer)
    this.f64 = new Float64Array(buffer)
  }

  close(): void {
    unmap(this.base, this.sizeBytes)
  }
}

function mapWindow(sizeBytes: number): number {
  assert(sizeBytes % PAGE === 0 && sizeBytes <= GIB, `${sizeBytes} bytes are whole pages, at most 1 GiB`)
  // Reserve enough to find an aligned address inside, then give the rest back.
  const reserved = sizeBytes + WINDOW_ALIGNMENT
  const start = mapAnonymous(reserved)
  const base = Math.ceil(start / WINDOW_ALIGNMENT) * WINDOW_ALIGNMENT
  if (base > start) unmap(start, base - start)
  const end = base + sizeBytes
  if (start + reserved > end) unmap(end, start + reserved - end)
  return base
}

/** What a span is cut from, unless the arena has no more left than a buffer: every size of a buffer divides it. */
const SPAN_SIZE = BUFFER_SIZE_MAX
/** This part of the arena is not for buffers: what else is taken from it is small, and nobody can wait for it. */
const RESERVE_DIVISOR = 16

/** A piece of the arena that is cut into buffers of one size, for as long as one of them is in use. */
interface Span {
  readonly address: number
  readonly sizeBytes: number
  bufferSize: number
  readonly free: number[]
  used: number
}

/**
 * Data buffers of one reactor, in a few sizes, cut from its arena or from a space of their own.
 *
 *   arena  | span: 4 KiB x 256 | span: 128 KiB x 8 | span: 128 KiB x 8 | …  | not for buffers |
 *
 * When the arena is used up, a span of which no buffer is in use is cut anew for the size that is wanted: whatever was
 * in demand at one time, memory comes back for what is in demand later. Exhaustion returns 0: the caller keeps the
 * request waiting, which is back-pressure.
 */
export class BufferPool {
  /** The largest buffer there is, in bytes. */
  static readonly MAX_SIZE = SPAN_SIZE

  readonly #arena: Area
  /** Of each size the spans that have a free buffer, the one to be used next at the end. */
  readonly #classes = [4096, 16384, 65536, 131072, 1 << 18, BufferPool.MAX_SIZE].map(size => ({
    size,
    spans: [] as Span[],
  }))
  readonly #spans: Span[] = []
  /** The span of each page of the arena, by its place in `#spans`. */
  readonly #spanOfPage: Uint32Array

  constructor(arena: Area) {
    this.#arena = arena
    this.#spanOfPage = new Uint32Array(arena.sizeBytes / PAGE)
  }

  /** The address of a page-aligned buffer of at least `sizeBytes` (at most `MAX_SIZE`), or 0 when there is none. */
  acquire(sizeBytes: number): number {
    const { size, spans } = this.#classOf(sizeBytes)
    if (spans.length === 0) {
      const span = this.#newSpan(size) ?? this.#idleSpan(size)
      if (span === undefined) return 0
      cut(span, size)
      spans.push(span)
    }
    const span = spans[spans.length - 1]!
    span.used++
    const address = span.free.pop()!
    if (span.free.length === 0) spans.pop()
    return address
  }

  /** `sizeBytes` as given to `acquire`. */
  release(address: number, sizeBytes: number): void {
    const span = this.#spans[this.#spanOfPage[this.#arena.offsetOf(address) / PAGE]!]!
    assert(span.used > 0, 'a buffer is given back once')
    if (span.free.length === 0) this.#classOf(sizeBytes).spans.push(span)
    span.free.push(address)
    span.used--
  }

  #classOf(sizeBytes: number): { readonly size: number; readonly spans: Span[] } {
    const classes = this.#classes
    for (let i = 0; i < classes.length; i++) {
      if (sizeBytes <= classes[i]!.size) return classes[i]!
    }
    throw new RangeError(`${sizeBytes} bytes fit into the largest buffer, ${BufferPool.MAX_SIZE}`)
  }

  #newSpan(size: number): Span | undefined {
    const room = this.#arena.freeBytes - this.#arena.sizeBytes / RESERVE_DIVISOR - PAGE
    const sizeBytes = room >= SPAN_SIZE ? SPAN_SIZE : size
    const address = room >= sizeBytes ? this.#arena.allocate(sizeBytes, PAGE) : 0
    if (address === 0) return undefined
    const first = this.#arena.offsetOf(address) / PAGE
    this.#spanOfPage.fill(this.#spans.length, first, first + sizeBytes / PAGE)
    const span = { address, sizeBytes, bufferSize: size, free: [], used: 0 }
    this.#spans.push(span)
    return span
  }

  /** A span of another size of which nothing is in use, and which is large enough. */
  #idleSpan(size: number): Span | undefined {
    const span = this.#spans.find(({ used, sizeBytes }) => used === 0 && sizeBytes >= size)
    if (span === undefined) return undefined
    const { spans } = this.#classOf(span.bufferSize)
    spans.splice(spans.indexOf(span), 1)
    return span
  }
}

function cut(span: Span, size: number): void {
  span.bufferSize = size
  span.free.length = 0
  // From the last one down, so that they are handed out from the first one up.
  for (let offset = span.sizeBytes - size; offset >= 0; offset -= size) span.free.push(span.address + offset)
}
