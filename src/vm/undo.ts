/** Steps that are taken back, the last one first, when a later one fails. */
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'

const log = logger('vm')

interface Step {
  readonly what: string
  readonly run: () => Promise<unknown>
}

export class Undo {
  readonly #steps: Step[] = []

  /** `what` goes on "could not be taken back: ". */
  add(what: string, run: () => Promise<unknown>): void {
    this.#steps.push({ what, run })
  }

  /** Takes back all of them, and answers what could not be. */
  async all(): Promise<string[]> {
    const left: string[] = []
    for (const { what, run } of this.#steps.splice(0).reverse()) {
      try {
        await run()
      } catch (error) {
        log.error(`${what} could not be taken back: ${(error as Error).message}`)
        left.push(`${what} (${(error as Error).message})`)
      }
    }
    return left
  }
}

/** Does work of several steps: wholly, or not at all. What could not be taken back is told with the reason. */
export async function withUndo<Result>(work: (undo: Undo) => Promise<Result>): Promise<Result> {
  const undo = new Undo()
  try {
    return await work(undo)
  } catch (error) {
    const left = await undo.all()
    if (left.length === 0 || !(error instanceof RpcError)) throw error
    throw new RpcError(error.code, `${error.message}. This could not be taken back: ${left.join('; ')}`, {
      cause: error,
    })
  }
}
