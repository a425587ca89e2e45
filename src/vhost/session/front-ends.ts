/** Where front ends connect, as the controllers want it: each connection begins a session of the vhost-user protocol. */
import type { ReactorGroup } from '../../reactor/group.ts'
import type { MessageSockets } from '../../reactor/message-sockets.ts'
import type { Listen } from '../controller.ts'
import { FRAMING } from './protocol.ts'
import { Session } from './session.ts'

export class FrontEnds {
  readonly #reactors: ReactorGroup
  readonly #sockets: MessageSockets

  constructor(reactors: ReactorGroup, sockets: MessageSockets) {
    this.#reactors = reactors
    this.#sockets = sockets
  }

  readonly listen: Listen = (path, access, onFrontEnd) =>
    this.#sockets.listen(path, { framing: FRAMING, ...access }, socket => {
      const isWelcome = onFrontEnd(options => new Session({ ...options, socket, reactors: this.#reactors }))
      if (!isWelcome) void socket.close()
    })
}
