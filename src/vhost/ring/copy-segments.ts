import type { Segments } from '../../bdev/io.ts'

/**
 * Makes `target` a copy of a part of a list. For data that is whole segments, as drivers lay it out: much cheaper than
 * `Segments.slice`, which passes addresses on as numbers on the heap.
 */
export function copySegments(source: Segments, first: number, end: number, target: Segments): void {
  const count = end - first
  target.reserve(count)
  const { addresses, lengths } = target
  for (let i = 0; i < count; i++) {
    addresses[i] = source.addresses[first + i]!
    lengths[i] = source.lengths[first + i]!
  }
  target.count = count
}
