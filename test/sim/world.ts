/** What all simulated machines share: time, chance, the network between them, and the trace of what happened. */
import { Prng } from '../../src/core/prng.ts'
import { SimClock } from './clock.ts'
import { Internet } from './network.ts'

/** Lines of the trace that are kept for a failure's report. */
const TRACE_LINES = 400

export class World {
  readonly seed: number
  readonly prng: Prng
  readonly clock: SimClock
  readonly internet: Internet
  /** Hears every line as it is traced. */
  onTrace: ((line: string) => void) | null = null
  readonly #trace: string[] = []
  #traceAt = 0
  /** Of every line traced so far: two runs of a seed must agree in it. */
  digest = 0

  constructor(seed: number) {
    this.seed = seed
    this.prng = new Prng(seed)
    this.clock = new SimClock(this.fork())
    this.internet = new Internet(this.clock, this.fork(), line => this.trace(line))
  }

  /** A generator of its own for one part, so that what one part draws does not shift what another gets. */
  fork(): Prng {
    return new Prng(this.prng.u32())
  }

  trace(text: string): void {
    const { nowUs, running } = this.clock
    const line = `${(nowUs / 1e6).toFixed(6)} ${running}: ${text}`
    for (let i = 0; i < line.length; i++) this.digest = (Math.imul(this.digest, 31) + line.charCodeAt(i)) | 0
    this.#trace[this.#traceAt++ % TRACE_LINES] = line
    this.onTrace?.(line)
  }

  /** The last lines of the trace. */
  get lastEvents(): string[] {
    const at = this.#traceAt % TRACE_LINES
    return this.#traceAt < TRACE_LINES
      ? [...this.#trace]
      : [...this.#trace.slice(at), ...this.#trace.slice(0, at)]
  }
}
