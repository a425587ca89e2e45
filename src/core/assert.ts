/**
 * States what our own code guarantees. A failure means that the state of the process is no longer trusted: it is
 * thrown as `AssertionError` and must not be caught on the data path. Never use it on what a peer sent.
 */
export function assert(condition: unknown, whatMustHold: string): asserts condition {
  if (!condition) throw new AssertionError(whatMustHold)
}

export class AssertionError extends Error {
  override readonly name = 'AssertionError'
}
