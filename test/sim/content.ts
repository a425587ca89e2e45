/** What the simulation writes: every block says which write it belongs to, so that what is read can be told apart. */
import { BLOCK_SIZE } from './disk.ts'

/** A block that was never written, or was zeroed. */
export const ZEROES = 0
/** Bytes that no write of the simulation has in that block. */
export const GARBAGE = -1

const WORDS = BLOCK_SIZE / 4

const wordAt = (id: number, block: number, word: number): number =>
  (Math.imul(id, 0x9e3779b1) + Math.imul(block, 0x85ebca6b) + Math.imul(word, 0xc2b2ae35)) | 0

function wordsOf(bytes: Uint8Array): Int32Array {
  const isAligned = bytes.byteOffset % 4 === 0
  const whole = isAligned ? bytes : bytes.slice()
  return new Int32Array(whole.buffer, whole.byteOffset, WORDS)
}

/** Fills one block, which lies at a multiple of four, with the content that write `id` (from 1) has in `block`. */
export function fillBlock(bytes: Uint8Array, id: number, block: number): void {
  const words = wordsOf(bytes)
  words[0] = id
  words[1] = block
  for (let word = 2; word < WORDS; word++) words[word] = wordAt(id, block, word)
}

/** The write whose content that is, `ZEROES`, or `GARBAGE`. */
export function writerOf(bytes: Uint8Array, block: number): number {
  const words = wordsOf(bytes)
  const id = words[0]!
  if (id === ZEROES) return words.every(word => word === 0) ? ZEROES : GARBAGE
  if (words[1] !== block) return GARBAGE
  for (let word = 2; word < WORDS; word++) if (words[word] !== wordAt(id, block, word)) return GARBAGE
  return id
}
