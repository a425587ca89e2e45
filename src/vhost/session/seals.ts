/**
 * Touching memory whose file was truncated ends this process by a signal that cannot be caught (SIGBUS). A front end that
 * seals its files against that cannot do it, by mistake or on purpose.
 */
import { cannotShrink } from '../../sys/shared-memory.ts'
import { fault } from './protocol.ts'

export class SealPolicy {
  readonly #isRequired: boolean
  readonly #warn: (message: string) => void
  #hasWarned = false

  constructor(isRequired: boolean, warn: (message: string) => void) {
    this.#isRequired = isRequired
    this.#warn = warn
  }

  /** Throws `ProtocolError` for what could shrink, or warns once. `what` begins a sentence. */
  check(descriptor: number, what: string): void {
    if (cannotShrink(descriptor)) return
    const why = `${what} is in a file that can be truncated, which would end this process`
    if (this.#isRequired) {
      fault(
        `is refused: ${why}: give QEMU -object memory-backend-memfd,share=on, which is sealed, or allow it with vhost_set_options`,
        0,
      )
    }
    if (!this.#hasWarned) this.#warn(`${why}. -object memory-backend-memfd,share=on is safe`)
    this.#hasWarned = true
  }
}
