/** The vhost target's part on one reactor: answers what the control thread asks (`messages.ts`). */
import type { ChannelContext } from '../bdev/bdev.ts'
import { type Logger, logger } from '../core/log.ts'
import { limitLines } from '../core/log-limit.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { viewAt } from '../sys/memory.ts'
import {
  type OpenSession,
  type SendEvent,
  type SessionStats,
  type SetDevice,
  type SetLog,
  type SetMemory,
  type SetTuning,
  type StartQueue,
  type StopQueue,
  Topic,
  type UpdateQueue,
} from './messages.ts'
import { ReactorSession } from './reactor-session.ts'

const log = logger('vhost')

const NO_STATS: SessionStats = { queues: [] }

export class ReactorVhost {
  readonly #sessions = new Map<number, ReactorSession>()
  /** By controller: a front end that comes again does not begin anew. */
  readonly #logs = new Map<string, Logger>()

  constructor(reactor: Reactor, context: ChannelContext) {
    const one = reactor.arena.allocate(8)
    viewAt(one, 8).setUint32(0, 1, true)
    const { control } = reactor
    control.on<OpenSession>(Topic.OPEN, open => {
      const log = this.#logOf(open.controller)
      this.#sessions.set(open.session, new ReactorSession(reactor, context, one, open, log))
    })
    control.on<SetMemory>(Topic.MEMORY, ({ session, regions }) => this.#session(session).setMemory(regions))
    control.on<SetLog>(Topic.LOG, message => this.#session(message.session).setLog(message.log))
    control.on<StartQueue>(Topic.START, start => this.#session(start.session).start(start))
    control.on<UpdateQueue>(Topic.UPDATE, update => this.#session(update.session).update(update))
    control.on<StopQueue>(Topic.STOP, ({ session, index }) => this.#session(session).stop(index))
    control.on<number>(Topic.CLOSE, session => this.#close(session))
    // These may come for a session that could not be opened here, and has not ended yet.
    control.on<SetDevice>(Topic.DEVICE, ({ session, device }) =>
      this.#sessions.get(session)?.setDevice(device),
    )
    control.on<number>(Topic.SETTLED, session => this.#sessions.get(session)?.settled)
    control.on<SetTuning>(Topic.TUNING, ({ session, tuning }) => {
      const found = this.#sessions.get(session)
      if (found !== undefined) found.tuning = tuning
    })
    control.on<SendEvent>(Topic.EVENT, event => this.#sessions.get(event.session)?.sendEvent(event))
    control.on<number>(Topic.STATS, session => this.#sessions.get(session)?.stats() ?? NO_STATS)
  }

  #logOf(controller: string): Logger {
    const found = this.#logs.get(controller) ?? limitLines(log)
    this.#logs.set(controller, found)
    return found
  }

  #session(number: number): ReactorSession {
    const session = this.#sessions.get(number)
    if (session === undefined) throw new Error(`session ${number} is not open on this reactor`)
    return session
  }

  /** Also of a session that could not be opened here: nothing is left of that. */
  async #close(number: number): Promise<void> {
    await this.#sessions.get(number)?.close()
    this.#sessions.delete(number)
  }
}
