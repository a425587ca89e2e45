/** Where front ends connect, as the controllers want it: each connection begins a session of the vhost-user protocol. */
import type { ReactorGroup } from '../reactor/group.ts'
import type { MessageSocket, MessageSockets } from '../reactor/message-sockets.ts'
import type { Listen, SessionOptions } from './controller.ts'
import { type QueueBroken, Topic } from './messages.ts'
import { FRAMING } from './protocol.ts'
import { Session } from './session.ts'

export class FrontEnds {
  readonly #reactors: ReactorGroup
  readonly #sockets: MessageSockets
  /** By number. */
  readonly #sessions = new Map<number, Session>()

  constructor(reactors: ReactorGroup, sockets: MessageSockets) {
    this.#reactors = reactors
    this.#sockets = sockets
    for (let index = 0; index < reactors.count; index++) {
      // A session that has ended meanwhile has no queue to lose.
      reactors
        .port(index)
        .on<QueueBroken>(Topic.BROKEN, broken => this.#sessions.get(broken.session)?.queueBroken(broken))
    }
  }

  readonly listen: Listen = (path, access, onFrontEnd) =>
    this.#sockets.listen(path, { framing: FRAMING, ...access }, socket =>
      onFrontEnd(options => this.#start(socket, options)),
    )

  #start(socket: MessageSocket, options: SessionOptions): Session {
    const onEnd = (): void => {
      this.#sessions.delete(options.number)
      options.onEnd()
    }
    const session = new Session({ ...options, onEnd, socket, reactors: this.#reactors })
    this.#sessions.set(options.number, session)
    return session
  }
}
