/** An NBD server in one thread: with clients that a test drives byte by byte, or with a real network for real ones. */
import { drivers } from '../../src/bdev/drivers/index.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { NbdExports } from '../../src/nbd/exports.ts'
import { ReactorNbdServer } from '../../src/nbd/reactor-server.ts'
import { Acceptor, ReactorAcceptor } from '../../src/reactor/acceptor.ts'
import { LocalReactorGroup, type LocalReactorOptions } from '../support/reactor.ts'
import { MemoryNetwork, type MemoryNetworkOptions, type Peer } from '../support/stream.ts'

export class NbdService {
  readonly reactors: LocalReactorGroup
  readonly bdevs: BdevRegistry
  readonly exports: NbdExports

  constructor(options: LocalReactorOptions = {}) {
    this.reactors = new LocalReactorGroup(options)
    this.bdevs = new BdevRegistry(this.reactors, drivers)
    this.exports = new NbdExports({
      reactors: this.reactors,
      acceptor: new Acceptor(this.reactors),
      bdevs: this.bdevs,
    })
    for (const reactor of this.reactors.reactors) {
      new ReactorNbdServer(reactor, new ReactorAcceptor(reactor), new ReactorBdevs(reactor, drivers))
    }
  }

  close(): void {
    this.reactors.close()
  }
}

export const EXPORT = {
  bdev: 'm0',
  name: undefined,
  address: { host: '127.0.0.1', port: 10809 },
  readOnly: false,
  description: '',
  connectionsMax: 0,
}

export interface WireOptions extends MemoryNetworkOptions {
  readonly blocks?: number
  readonly blockSize?: number
  readonly arenaBytes?: number
}

/** A server with one device in memory, `m0`, over a network in memory. */
export class WireService extends NbdService {
  readonly network: MemoryNetwork

  private constructor(network: MemoryNetwork, arenaBytes: number) {
    super({ network, arenaBytes })
    this.network = network
    this.reactors.reactors[0]!.addPoller(network.poll)
  }

  static async start(options: WireOptions = {}): Promise<WireService> {
    const service = new WireService(new MemoryNetwork(options), options.arenaBytes ?? 64 << 20)
    const { blocks = 2048, blockSize = 512 } = options
    await service.bdevs.create('malloc', 'm0', { block_size: blockSize, num_blocks: blocks })
    return service
  }

  /** A client of the first listener there was. */
  async dial(listenerId = 1): Promise<Client> {
    const { socket, peer } = this.network.dial()
    // As the listening reactor does with what it accepts.
    this.reactors.reactors[0]!.control.post('acceptor.accepted', { service: 'nbd', listenerId, socket })
    const client = new Client(this, peer)
    await this.turn()
    return client
  }

  /** Lets messages between threads arrive, and everything they cause happen. */
  async turn(): Promise<void> {
    for (let i = 0; i < 4; i++) {
      await new Promise(setImmediate)
      this.reactors.settle()
    }
  }
}

/** A client's end: bytes as hexadecimal text, blanks ignored. */
export class Client {
  readonly service: WireService
  readonly peer: Peer

  constructor(service: WireService, peer: Peer) {
    this.service = service
    this.peer = peer
  }

  send(bytes: string | Uint8Array): void {
    this.peer.send(typeof bytes === 'string' ? hex(bytes) : bytes)
    this.service.reactors.settle()
  }

  /** Everything that has arrived. */
  take(size?: number): Buffer {
    this.service.reactors.settle()
    return Buffer.from(this.peer.take(size))
  }

  /** Sends, and returns what came back as hexadecimal text. */
  ask(bytes: string | Uint8Array): string {
    this.send(bytes)
    return this.take().toString('hex')
  }

  /** The shortest way into transmission; with structured replies and base:allocation if asked for. */
  enter({ structured = false, name = '6d30' } = {}): this {
    this.ask('00000003')
    if (structured) {
      this.ask(`49484156454f5054 00000008 00000000`)
      this.ask(option(10, `${string(name)} 00000001 ${string(ascii('base:allocation'))}`))
    }
    this.ask(option(7, `${string(name)} 0000`))
    return this
  }
}

export const hex = (text: string): Buffer => Buffer.from(text.replaceAll(/\s/g, ''), 'hex')
export const ascii = (text: string): string => Buffer.from(text).toString('hex')
const u32 = (value: number): string => value.toString(16).padStart(8, '0')
const u64 = (value: number): string => value.toString(16).padStart(16, '0')
const sizeOf = (data: string): number => hex(data).length

/** Length and bytes of a string, given as hexadecimal text. */
export const string = (data: string): string => `${u32(sizeOf(data))}${data}`

/** IHAVEOPT, option, length, data. */
export const option = (number: number, data = ''): string =>
  `49484156454f5054${u32(number)}${u32(sizeOf(data))}${data}`

/** Magic, option, type, length, data. */
export const reply = (number: number, type: number, data = ''): string =>
  `0003e889045565a9${u32(number)}${u32(type)}${u32(sizeOf(data))}${data}`.replaceAll(' ', '')

export interface RequestFields {
  readonly type: number
  readonly flags?: number
  readonly cookie?: string
  readonly offset?: number
  readonly length?: number
}

export const COOKIE = '0123456789abcdef'

/** Magic, flags, type, cookie, offset, length. */
export function request({ type, flags = 0, cookie = COOKIE, offset = 0, length = 0 }: RequestFields): string {
  const half = (value: number): string => value.toString(16).padStart(4, '0')
  return `25609513${half(flags)}${half(type)}${cookie}${u64(offset)}${u32(length)}`
}

/** Magic, error, cookie. */
export const simpleReply = (error = 0, cookie = COOKIE): string => `67446698${u32(error)}${cookie}`

/** Magic, flags, type, cookie, length, payload. */
export function chunk(flags: number, type: number, payload: string, cookie = COOKIE): string {
  const half = (value: number): string => value.toString(16).padStart(4, '0')
  return `668e33ef${half(flags)}${half(type)}${cookie}${u32(sizeOf(payload))}${payload}`.replaceAll(' ', '')
}
