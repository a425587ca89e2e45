/**
 * Latencies in buckets of about 1.6 % width: 64 a power of two. Recording is a few integer operations and allocates
 * nothing.
 */
const BUCKETS_LOG2 = 6
const BUCKETS = 1 << BUCKETS_LOG2
const POWERS = 26

export class Histogram {
  readonly #counts = new Float64Array(BUCKETS * POWERS)
  #total = 0
  #sum = 0
  #max = 0

  /** `value` is a whole number of any unit, up to 2^31. */
  record(value: number): void {
    this.#counts[bucketOf(value)]!++
    this.#total++
    this.#sum += value
    if (value > this.#max) this.#max = value
  }

  get count(): number {
    return this.#total
  }

  get mean(): number {
    return this.#total === 0 ? 0 : this.#sum / this.#total
  }

  get max(): number {
    return this.#max
  }

  /** The value below which `fraction` of all lie (0.99 for the 99th percentile), to the width of a bucket. */
  percentile(fraction: number): number {
    let left = Math.ceil(this.#total * fraction)
    for (let bucket = 0; bucket < this.#counts.length; bucket++) {
      left -= this.#counts[bucket]!
      if (left <= 0) return Math.min(upperEnd(bucket), this.#max)
    }
    return this.#max
  }
}

/** Values below 64 have a bucket each; from there on every power of two is cut into 64. */
function bucketOf(value: number): number {
  if (value < BUCKETS) return value
  const power = 31 - Math.clz32(value)
  const shift = power - BUCKETS_LOG2
  return Math.min((shift + 1) * BUCKETS + ((value >>> shift) - BUCKETS), BUCKETS * POWERS - 1)
}

function upperEnd(bucket: number): number {
  if (bucket < BUCKETS) return bucket
  const shift = (bucket >> BUCKETS_LOG2) - 1
  return ((bucket & (BUCKETS - 1)) + BUCKETS + 1) * 2 ** shift - 1
}
