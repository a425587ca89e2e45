/**
 * Wire structures as field objects over one `DataView` per mapped region and a numeric base. No per-entry objects, no
 * BigInt, no Buffer getters. Everything is little-endian unless the name says `be`.
 *
 * In the innermost loops use flat `Int32Array`s; everywhere else use these.
 */
import { assert } from './assert.ts'

/** A number within a structure. */
export interface Field {
  /** From the start of the structure, in bytes. */
  readonly offset: number
  /** In bytes. */
  readonly size: number
  get(view: DataView, base: number): number
  set(view: DataView, base: number, value: number): void
}

/** A run of bytes within a structure. */
export interface BytesField {
  readonly offset: number
  readonly size: number
  /** A view, not a copy. */
  get(view: DataView, base: number): Uint8Array
  /** Copies `value` and pads with zeroes; `value` may be shorter, never longer. */
  set(view: DataView, base: number, value: Uint8Array): void
}

/** ASCII text within a structure, padded with spaces (NVMe's SN, MN, FR) or NUL (NQNs). */
export interface TextField {
  readonly offset: number
  readonly size: number
  /** The text without its padding. */
  get(view: DataView, base: number): string
  set(view: DataView, base: number, value: string): void
}

type AnyField = Field | BytesField | TextField
export type Struct<T> = T & { readonly size: number }

/** Names the fields of a structure of `size` bytes, and checks at load that none leaves it. */
export function struct<T extends Record<string, AnyField>>(size: number, fields: T): Struct<T> {
  for (const [name, field] of Object.entries(fields)) {
    assert(field.offset >= 0 && field.offset + field.size <= size, `field ${name} lies within ${size} bytes`)
  }
  return { ...fields, size }
}

export const u8 = (offset: number): Field => ({
  offset,
  size: 1,
  get: (view, base) => view.getUint8(base + offset),
  set: (view, base, value) => view.setUint8(base + offset, value),
})

export const u16 = (offset: number): Field => ({
  offset,
  size: 2,
  get: (view, base) => view.getUint16(base + offset, true),
  set: (view, base, value) => view.setUint16(base + offset, value, true),
})

/** Three bytes, as in the NVMe/TCP SGL descriptor's length and the transport address lists. */
export const u24 = (offset: number): Field => ({
  offset,
  size: 3,
  get: (view, base) => view.getUint16(base + offset, true) | (view.getUint8(base + offset + 2) << 16),
  set: (view, base, value) => {
    view.setUint16(base + offset, value & 0xffff, true)
    view.setUint8(base + offset + 2, value >>> 16)
  },
})

export const u32 = (offset: number): Field => ({
  offset,
  size: 4,
  get: (view, base) => view.getUint32(base + offset, true),
  set: (view, base, value) => view.setUint32(base + offset, value, true),
})

export const i32 = (offset: number): Field => ({
  offset,
  size: 4,
  get: (view, base) => view.getInt32(base + offset, true),
  set: (view, base, value) => view.setInt32(base + offset, value, true),
})

/**
 * 64 bits as a number. Exact up to 2^53; a larger value reads as the nearest double, which every bounds check still
 * refuses. Values that must keep 64 bits (host cookies, `user_data`) are copied as two `u32`.
 */
export const u53 = (offset: number): Field => ({
  offset,
  size: 8,
  get: (view, base) =>
    view.getUint32(base + offset + 4, true) * 0x1_0000_0000 + view.getUint32(base + offset, true),
  set: (view, base, value) => {
    view.setUint32(base + offset, value % 0x1_0000_0000, true)
    view.setUint32(base + offset + 4, Math.floor(value / 0x1_0000_0000), true)
  },
})

export const u16be = (offset: number): Field => ({
  offset,
  size: 2,
  get: (view, base) => view.getUint16(base + offset, false),
  set: (view, base, value) => view.setUint16(base + offset, value, false),
})

export const u32be = (offset: number): Field => ({
  offset,
  size: 4,
  get: (view, base) => view.getUint32(base + offset, false),
  set: (view, base, value) => view.setUint32(base + offset, value, false),
})

/** As `u53`, big-endian. */
export const u53be = (offset: number): Field => ({
  offset,
  size: 8,
  get: (view, base) =>
    view.getUint32(base + offset, false) * 0x1_0000_0000 + view.getUint32(base + offset + 4, false),
  set: (view, base, value) => {
    view.setUint32(base + offset, Math.floor(value / 0x1_0000_0000), false)
    view.setUint32(base + offset + 4, value % 0x1_0000_0000, false)
  },
})

/** `count` bits of `field`, from bit `shift` upward. At most 31 bits. */
export const bits = (field: Field, shift: number, count: number): Field => {
  const mask = 2 ** count - 1
  return {
    offset: field.offset,
    size: field.size,
    get: (view, base) => (field.get(view, base) >>> shift) & mask,
    set: (view, base, value) => {
      const rest = field.get(view, base) & ~(mask << shift)
      field.set(view, base, (rest | ((value & mask) << shift)) >>> 0)
    },
  }
}

export const bytes = (offset: number, size: number): BytesField => ({
  offset,
  size,
  get: (view, base) => new Uint8Array(view.buffer, view.byteOffset + base + offset, size),
  set: (view, base, value) => {
    assert(value.length <= size, `${value.length} bytes fit into a field of ${size}`)
    const target = new Uint8Array(view.buffer, view.byteOffset + base + offset, size)
    target.fill(0)
    target.set(value)
  },
})

/** ASCII padded with `padding`: space for NVMe identification strings, NUL for NQNs. */
export const text = (offset: number, size: number, padding: ' ' | '\0'): TextField => ({
  offset,
  size,
  get: (view, base) => {
    const raw = Buffer.from(view.buffer, view.byteOffset + base + offset, size).toString('latin1')
    // Linux's target pads the addresses of its discovery log with NUL where the specification says space.
    if (padding === ' ') return raw.replace(/[ \0]+$/, '')
    const end = raw.indexOf('\0')
    return end < 0 ? raw : raw.slice(0, end)
  },
  set: (view, base, value) => {
    assert(value.length <= size, `"${value}" fits into ${size} characters`)
    Buffer.from(view.buffer, view.byteOffset + base + offset, size).write(
      value.padEnd(size, padding),
      'latin1',
    )
  },
})
