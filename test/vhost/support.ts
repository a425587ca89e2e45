/** Vhost controllers without sockets: front ends that connect when a test says so, and that note what they are told. */
import { drivers } from '../../src/bdev/drivers/index.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import type { SocketAccess } from '../../src/reactor/socket-access.ts'
import type { MethodCall } from '../../src/rpc/config.ts'
import { Dispatcher, type RpcInfo } from '../../src/rpc/dispatcher.ts'
import type {
  ControllerSession,
  DeviceEvent,
  Listen,
  SessionOptions,
  StartSession,
} from '../../src/vhost/controller.ts'
import { VhostControllers } from '../../src/vhost/controllers.ts'
import type { QueueStats, SessionStats, Tuning } from '../../src/vhost/messages.ts'
import { type VhostContext, vhostMethods } from '../../src/vhost/methods.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

/** A queue on which nothing has happened. */
export const queue = (index: number, rest: Partial<QueueStats> = {}): QueueStats => ({
  index,
  requests: 0,
  outstanding: 0,
  calls: 0,
  kicks: 0,
  isPolled: false,
  ...rest,
})

/** A front end that is connected: what its session was started with, and what it was told since, in order. */
export class FakeSession implements ControllerSession {
  readonly options: SessionOptions
  readonly heard: unknown[] = []
  queues: readonly QueueStats[] = []
  /** Until it is resolved, I/O of what was taken away is outstanding. */
  drained: Promise<void> = Promise.resolve()

  constructor(options: SessionOptions) {
    this.options = options
  }

  async deviceChanged(event?: DeviceEvent): Promise<void> {
    this.heard.push(event ?? 'device changed')
    await this.drained
  }

  async tune(tuning: Tuning): Promise<void> {
    this.heard.push(tuning)
  }

  async stats(): Promise<SessionStats> {
    return { queues: this.queues }
  }

  async close(): Promise<void> {
    this.heard.push('closed')
    this.options.onEnd()
  }
}

interface FakeSocket {
  readonly access: SocketAccess
  readonly onFrontEnd: (start: StartSession) => void
}

export interface VhostServiceOptions {
  /** The processor of each reactor, -1 for any. */
  readonly cpus?: readonly number[]
  readonly directory?: string
  readonly defaultAccess?: SocketAccess
}

type Context = VhostContext & { readonly rpc: RpcInfo }

/** Controllers over two devices in memory, `m0` and `m1`, of 8 blocks each. */
export class VhostService {
  readonly reactors: LocalReactorGroup & { readonly cpus: readonly number[] }
  readonly bdevs: BdevRegistry
  readonly vhost: VhostControllers
  /** Those that are open, by path. */
  readonly sockets = new Map<string, FakeSocket>()
  readonly #dispatcher: Dispatcher<Context>
  /** What the next attempt to listen fails with. */
  refusal: Error | undefined

  private constructor({ cpus = [-1], directory = '/run/vhost', defaultAccess = {} }: VhostServiceOptions) {
    this.reactors = Object.assign(new LocalReactorGroup({ count: cpus.length }), { cpus })
    this.bdevs = new BdevRegistry(this.reactors, drivers)
    for (const reactor of this.reactors.reactors) new ReactorBdevs(reactor, drivers)
    this.vhost = new VhostControllers({
      reactors: this.reactors,
      bdevs: this.bdevs,
      directory,
      defaultAccess,
      listen: this.#listen,
    })
    const context: Context = { vhost: this.vhost, rpc: { state: 'runtime', methods: vhostMethods } }
    this.#dispatcher = new Dispatcher({ methods: vhostMethods, context })
  }

  static async start(options: VhostServiceOptions = {}): Promise<VhostService> {
    const service = new VhostService(options)
    for (const name of ['m0', 'm1']) {
      await service.run(service.bdevs.create('malloc', name, { block_size: 512, num_blocks: 8 }))
    }
    return service
  }

  /** Calls a method as a client would. */
  call(method: string, params: object = {}): Promise<unknown> {
    return this.run(this.#dispatcher.call(method, params))
  }

  /** What would be saved. */
  config(): MethodCall[] {
    return this.vhost.configurables.flatMap(part => part.config())
  }

  run<T>(promise: Promise<T>): Promise<T> {
    return this.reactors.run(promise)
  }

  /** A front end connects to a controller. */
  connect(name: string): FakeSession {
    let session: FakeSession | undefined
    const socket = this.sockets.get(this.vhost.get(name).socketPath)
    if (socket === undefined) throw new Error(`nobody listens for ${name}`)
    socket.onFrontEnd(options => {
      session = new FakeSession(options)
      return session
    })
    return session!
  }

  close(): void {
    this.reactors.close()
  }

  readonly #listen: Listen = async (path, access, onFrontEnd) => {
    if (this.refusal !== undefined) throw this.refusal
    this.sockets.set(path, { access, onFrontEnd })
    return { close: async () => void this.sockets.delete(path) }
  }
}
