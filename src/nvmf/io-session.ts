/** An I/O queue of a controller, which may live on another reactor. */
import { Sqe } from '../spec/nvme.ts'
import { Status } from '../spec/nvme-status.ts'
import { DisconnectSqe, FABRICS_OPCODE, FabricsSqe, FabricsStatus, FabricsType } from '../spec/nvmf.ts'
import { refuse, SUCCESS } from './completion.ts'
import type { Path, SubsystemReplica } from './replica.ts'
import type { CommandRequest, Connection, IoQueue, NamespaceView } from './request.ts'

export class IoSession implements IoQueue {
  readonly connection: Connection
  #ended: (() => void) | null = null
  #subsystem: SubsystemReplica | null = null
  #path: Path | null = null
  /** Empty until the queue is admitted. */
  #namespaces: readonly (NamespaceView | undefined)[] = []
  #traffic: Int32Array = new Int32Array(1)
  isClosed = false

  constructor(connection: Connection) {
    this.connection = connection
  }

  /** The directory has agreed: from now on commands find namespaces. `ended` hears once that the connection is over. */
  admit(subsystem: SubsystemReplica, hostnqn: string, traffic: SharedArrayBuffer, ended: () => void): void {
    this.#ended = ended
    this.#subsystem = subsystem
    this.#path = subsystem.acquire(this.connection.listenerId, hostnqn)
    this.#namespaces = this.#path.namespaces
    this.#traffic = new Int32Array(traffic)
  }

  namespace(nsid: number): NamespaceView | undefined {
    return this.#namespaces[nsid]
  }

  /** All queues of the controller share the word: writing it only when it is clear keeps it in their caches. */
  noteTraffic(): void {
    if (this.#traffic[0] === 0) this.#traffic[0] = 1
  }

  execute(request: CommandRequest): void {
    const { sqe } = request
    if (this.#path === null) {
      request.complete(refuse(Status.COMMAND_SEQUENCE_ERROR))
      return
    }
    if (Sqe.opcode.get(sqe, 0) !== FABRICS_OPCODE) {
      request.complete(refuse(Status.INVALID_OPCODE))
      return
    }
    switch (FabricsSqe.fctype.get(sqe, 0)) {
      case FabricsType.DISCONNECT:
        if (DisconnectSqe.recfmt.get(sqe, 0) !== 0) {
          request.complete(refuse(FabricsStatus.INCOMPATIBLE_FORMAT))
          return
        }
        request.complete(SUCCESS)
        this.connection.disconnect('the host disconnects the queue')
        return
      case FabricsType.CONNECT:
        request.complete(refuse(Status.COMMAND_SEQUENCE_ERROR))
        return
      case FabricsType.PROPERTY_GET:
      case FabricsType.PROPERTY_SET:
        request.complete(refuse(FabricsStatus.INVALID_QUEUE_TYPE))
        return
      default:
        request.complete(refuse(Status.INVALID_OPCODE))
    }
  }

  closed(): void {
    if (this.isClosed) return
    this.isClosed = true
    this.#namespaces = []
    if (this.#path !== null) this.#subsystem?.release(this.#path)
    this.#ended?.()
  }
}
