import type { MethodLists } from '../../src/cli/method-lists.ts'
import type { Terminal } from '../../src/cli/output.ts'
import type { Declarations } from '../../src/rpc/method.ts'

/** A table that is there already. */
export const loaded = (methods: Declarations): MethodLists => ({ all: async () => methods, near: () => [] })

/** A terminal that remembers what was written. */
export class RecordingTerminal implements Terminal {
  out = ''
  error = ''
  readonly isTerminal: boolean
  readonly env: Record<string, string>
  stdin = ''
  /** Ctrl-C is pressed when something is written of which this is true. */
  interruptsAt: (text: string) => boolean = () => false
  #interrupt: () => void = () => {}

  readonly columns: number | undefined

  constructor({
    isTerminal = false,
    columns,
    env = {},
  }: { isTerminal?: boolean; columns?: number; env?: Record<string, string> } = {}) {
    this.isTerminal = isTerminal
    this.columns = columns
    this.env = env
  }

  readonly write = (text: string): void => {
    this.out += text
    if (this.interruptsAt(text)) this.#interrupt()
  }

  readonly writeError = (text: string): void => {
    this.error += text
  }

  readonly onInterrupt = (tell: () => void): (() => void) => {
    this.#interrupt = tell
    return () => {
      this.#interrupt = () => {}
    }
  }

  readonly readStdin = async (): Promise<string> => this.stdin
}
