/**
 * An eventfd that a library's own threads write to, and that the control thread hears of. Node waits for no eventfd, so a
 * reactor does, in its ring:
 *
 *   control thread              reactor 0                       a thread of the library
 *   Bell  --wait-->             polls the eventfd   <--------   eventfd_write
 *         <--answer--           it is readable
 *   reads the counter, tells
 */
import { assert } from '../core/assert.ts'
import { SysError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { Opcode } from '../spec/io-uring.ts'
import { eventfd, read } from '../sys/libc.ts'
import { mapAnonymous, viewAt } from '../sys/memory.ts'
import type { ReactorGroup } from './group.ts'
import type { Reactor } from './reactor.ts'

const log = logger('reactor')

/** To the reactor: an eventfd, answered when it is readable. */
const WAIT = 'bell.wait'
const POLLIN = 1
const COUNTER_SIZE = 8

/** The control thread's side. */
export class Bell {
  /** It does not block, and is never closed: the library may write to it for as long as the process lives. */
  readonly fd: number
  readonly #reactors: ReactorGroup
  readonly #counter = mapAnonymous(COUNTER_SIZE)
  #heard: ((sum: bigint) => void) | undefined

  /** Throws `SysError` EMFILE. */
  constructor(reactors: ReactorGroup) {
    this.#reactors = reactors
    this.fd = eventfd()
    if (this.fd < 0) throw new SysError('eventfd', -this.fd)
  }

  /** From here on `heard` is called, and nobody else, with the sum of what was written since the last call. */
  listen(heard: (sum: bigint) => void): void {
    const isFirst = this.#heard === undefined
    this.#heard = heard
    if (!isFirst) return
    this.#wait().catch((error: Error) =>
      log.error(`nothing is heard of a library any more: ${error.message}`),
    )
  }

  async #wait(): Promise<void> {
    for (;;) {
      await this.#reactors.port(0).call(WAIT, this.fd)
      const sum = this.#take()
      if (sum > 0n) this.#heard!(sum)
    }
  }

  #take(): bigint {
    const size = read(this.fd, this.#counter, COUNTER_SIZE)
    return size === COUNTER_SIZE ? viewAt(this.#counter, COUNTER_SIZE).getBigUint64(0, true) : 0n
  }
}

/** The reactor's side: waits for those eventfds that it is told of. */
export function serveBells({ control, ring }: Pick<Reactor, 'control' | 'ring'>): void {
  control.on<number>(WAIT, fd => {
    assert(ring, 'an eventfd is waited for in a ring')
    return new Promise<void>((resolve, reject) => {
      const token = ring.register({
        complete(result) {
          ring.unregister(token)
          if (result < 0) reject(new SysError('poll', -result, `of the eventfd ${fd}`))
          else resolve()
        },
      })
      ring.prepare(Opcode.POLL_ADD, fd, 0, 0, 0, POLLIN, token)
    })
  })
}
