/** The admin queue of a connection: its controller's as soon as the directory has agreed that there is one. */
import { Status } from '../spec/nvme-status.ts'
import { refuse } from './completion.ts'
import type { Controller } from './controller.ts'
import type { AdminQueue, CommandRequest, Connection } from './request.ts'

export class AdminSession implements AdminQueue {
  readonly connection: Connection
  controller: Controller | null = null
  isClosed = false

  constructor(connection: Connection) {
    this.connection = connection
  }

  execute(request: CommandRequest): void {
    if (this.controller === null) request.complete(refuse(Status.COMMAND_SEQUENCE_ERROR))
    else this.controller.execute(request)
  }

  noteTraffic(): void {
    this.controller?.noteTraffic()
  }

  end(reason: string): void {
    if (this.controller === null) this.connection.disconnect(reason)
    else this.controller.end(reason)
  }

  closed(): void {
    this.isClosed = true
    this.controller?.closed()
  }
}
