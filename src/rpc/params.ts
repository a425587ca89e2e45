/**
 * The parameter types of SPDK's schema. Its decoders take JSON numbers only, never strings of digits, and so do these.
 */
import { z } from 'zod'

export const uint8 = z.int().min(0).max(0xff)
export const uint16 = z.int().min(0).max(0xffff)
export const uint32 = z.int().min(0).max(0xffff_ffff)
export const int32 = z.int().min(-0x8000_0000).max(0x7fff_ffff)

/**
 * SPDK's range is 2^64 − 1. A JSON number beyond 2^53 − 1 loses bits in JavaScript and in most other clients, so it is
 * refused instead of being rounded: in blocks of 512 bytes that is still 4 ZiB.
 */
export const uint64 = z.int().min(0)

/** A UUID in its text form, any version and either case, as `uuid_parse(3)` takes it. Answers in lower case. */
export const uuid = z
  .string()
  .regex(
    /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i,
    'a UUID such as 2d2d3f0a-9a2b-4c55-8b1e-6a7f1c3c9d10',
  )
  .transform(text => text.toLowerCase())

/**
 * A set of names that SPDK keeps as bits: an array, as its decoder takes it, or one text with commas, as its schema
 * describes some. Comes out as the text.
 */
export const nameSet = z
  .union([z.array(z.string()), z.string()])
  .transform(names => (typeof names === 'string' ? names : names.join(',')))

/** What most setters answer. */
export const done = z.literal(true)
