/** The network between simulated machines: addresses, listeners, connections, and everything that can go wrong. */

import { SysError } from '../../src/core/errors.ts'
import type { Prng } from '../../src/core/prng.ts'
import type { Listener, Network, SocketAddress, Stream, StreamEvents } from '../../src/reactor/network.ts'
import type { SimClock } from './clock.ts'
import { Link } from './link.ts'
import { Errno, SimSocket, type SocketHost, type SocketMachine } from './socket.ts'

const SYN_RETRY_US = 1_000_000

export class Internet {
  readonly clock: SimClock
  readonly prng: Prng
  readonly trace: (line: string) => void
  readonly #machines = new Map<string, NetworkMachine>()
  readonly #links = new Map<string, Link>()
  /** See `SocketParts.duplicates`. */
  duplicates = 0

  constructor(clock: SimClock, prng: Prng, trace: (line: string) => void) {
    this.clock = clock
    this.prng = prng
    this.trace = trace
  }

  join(machine: NetworkMachine): void {
    for (const address of machine.addresses) this.#machines.set(address, machine)
  }

  machineAt(host: string): NetworkMachine | undefined {
    return this.#machines.get(host)
  }

  /** The direction from one address to another. */
  link(from: string, to: string): Link {
    const key = `${from} > ${to}`
    let link = this.#links.get(key)
    if (link === undefined) {
      link = new Link(this.clock, this.prng)
      this.#links.set(key, link)
    }
    return link
  }

  /** Both ends of a new connection. `far` is the one that listened. */
  connectSockets(
    near: { machine: NetworkMachine; address: SocketAddress },
    far: { machine: NetworkMachine; address: SocketAddress },
  ): { near: SimSocket; far: SimSocket } {
    const { clock, prng, duplicates } = this
    const capacity = prng.pick([4096, 65_536, 1 << 20])
    const segmentMax = prng.pick([536, 1448, 16_384, 65_536])
    const shared = { clock, prng, capacity, segmentMax, duplicates }
    const end = (from: typeof near, to: typeof near): SimSocket =>
      new SimSocket({
        ...shared,
        dropsUnsent: from === near,
        machine: from.machine,
        link: this.link(from.address.host, to.address.host),
        local: from.address,
        remote: to.address,
      })
    const nearEnd = end(near, far)
    const farEnd = end(far, near)
    nearEnd.peer = farEnd
    farEnd.peer = nearEnd
    return { near: nearEnd, far: farEnd }
  }
}

interface OpenListener {
  readonly address: SocketAddress
  readonly network: SimNetwork
  readonly onSocket: (socket: number) => void
}

/** A machine's kernel, as far as sockets go. It outlives the programs on it. */
export class NetworkMachine implements SocketMachine {
  readonly name: string
  readonly internet: Internet
  readonly addresses: readonly string[]
  /** Counts the programs that ran: what one had begun does not go on in the next. */
  life = 0
  /** Off: it neither answers nor refuses. */
  isUp = true
  readonly #listeners = new Map<string, OpenListener>()
  readonly #sockets = new Map<number, SimSocket>()
  readonly #numbers = new Map<SimSocket, number>()
  #waiting: (() => void)[] = []
  #nextSocket = 3
  #nextPort = 32_768

  constructor(name: string, internet: Internet, addresses: readonly string[]) {
    this.name = name
    this.internet = internet
    this.addresses = addresses
    internet.join(this)
  }

  /** Sockets that a program has, those it has accepted and not yet adopted included. */
  get openSockets(): number {
    return this.#sockets.size
  }

  get openListeners(): number {
    return this.#listeners.size
  }

  freePort(): number {
    return this.#nextPort++
  }

  register(socket: SimSocket): number {
    const number = this.#nextSocket++
    this.#sockets.set(number, socket)
    this.#numbers.set(socket, number)
    return number
  }

  socket(number: number): SimSocket {
    const socket = this.#sockets.get(number)
    if (socket === undefined) throw new Error(`${this.name} has no socket ${number}`)
    return socket
  }

  forget(socket: SimSocket): void {
    const number = this.#numbers.get(socket)
    if (number === undefined) return
    this.#numbers.delete(socket)
    this.#sockets.delete(number)
  }

  whenUp(go: () => void): void {
    this.#waiting.push(go)
  }

  listen(listener: OpenListener): void {
    const { host, port } = listener.address
    if (!this.addresses.includes(host)) throw new SysError('bind', Errno.EADDRNOTAVAIL)
    const key = `${host}:${port}`
    if (this.#listeners.has(key)) throw new SysError('bind', Errno.EADDRINUSE)
    this.#listeners.set(key, listener)
  }

  unlisten({ host, port }: SocketAddress): void {
    this.#listeners.delete(`${host}:${port}`)
  }

  listener({ host, port }: SocketAddress): OpenListener | undefined {
    return this.#listeners.get(`${host}:${port}`)
  }

  /** Resets one connection with that address, if there is one. */
  severOne(host: string, prng: Prng): void {
    const sockets = [...this.#sockets.values()].filter(({ remote }) => remote.host === host)
    if (sockets.length > 0) prng.pick(sockets).sever()
  }

  /** The programs end at once; the kernel lives on, closes their sockets and refuses connections. */
  endPrograms(): void {
    this.life++
    this.#listeners.clear()
    for (const socket of [...this.#sockets.values()]) socket.abandon()
  }

  /** The power is gone. What it had sent may or may not have left. */
  powerOff(): void {
    this.life++
    this.isUp = false
    this.#listeners.clear()
    for (const socket of this.#sockets.values()) socket.vanish(this.internet.prng.oneIn(2))
    this.#sockets.clear()
    this.#numbers.clear()
  }

  powerOn(): void {
    this.isUp = true
    const waiting = this.#waiting
    this.#waiting = []
    for (const go of waiting) go()
  }
}

/** One reactor's network. `poll` is to be one of its pollers. */
export class SimNetwork implements Network, SocketHost {
  readonly machine: NetworkMachine
  #ready: (SimSocket | (() => void))[] = []

  constructor(machine: NetworkMachine) {
    this.machine = machine
  }

  readonly poll = (): number => {
    if (this.#ready.length === 0) return 0
    const ready = this.#ready
    this.#ready = []
    if (ready.length > 1 && this.machine.internet.prng.oneIn(2)) ready.reverse()
    let events = 0
    for (const item of ready) {
      if (typeof item === 'function') {
        item()
        events++
      } else {
        item.isReady = false
        events += item.poll()
      }
    }
    return events
  }

  markReady(socket: SimSocket): void {
    if (socket.isReady) return
    socket.isReady = true
    this.#ready.push(socket)
  }

  /** Runs `tell` in the reactor's round. */
  tellLater(tell: () => void): void {
    this.#ready.push(tell)
  }

  adopt(number: number, events: StreamEvents): Stream {
    const socket = this.machine.socket(number)
    socket.attach(this, events)
    return socket
  }

  connect(
    remote: SocketAddress,
    source: SocketAddress | undefined,
    timeoutMs: number,
    events: StreamEvents,
    done: (stream: Stream | undefined, errno: number) => void,
  ): () => void {
    const attempt = new ConnectAttempt(this, remote, source, events, done)
    attempt.start(timeoutMs)
    return () => attempt.giveUp(Errno.ECANCELED)
  }

  listen(address: SocketAddress, _backlog: number, onSocket: (socket: number) => void): Listener {
    const bound = { host: address.host, port: address.port === 0 ? this.machine.freePort() : address.port }
    this.machine.listen({ address: bound, network: this, onSocket })
    return { address: bound, close: () => this.machine.unlisten(bound) }
  }
}

class ConnectAttempt {
  readonly #network: SimNetwork
  readonly #life: number
  readonly #remote: SocketAddress
  readonly #source: SocketAddress | undefined
  readonly #events: StreamEvents
  readonly #done: (stream: Stream | undefined, errno: number) => void
  #timer: { cancel(): void } | null = null
  #socket: SimSocket | null = null
  #isOver = false

  constructor(
    network: SimNetwork,
    remote: SocketAddress,
    source: SocketAddress | undefined,
    events: StreamEvents,
    done: (stream: Stream | undefined, errno: number) => void,
  ) {
    this.#network = network
    this.#life = network.machine.life
    this.#remote = remote
    this.#source = source
    this.#events = events
    this.#done = done
  }

  start(timeoutMs: number): void {
    const { machine } = this.#network
    const host = this.#source?.host ?? machine.addresses[0]!
    if (!machine.addresses.includes(host)) {
      this.giveUp(Errno.EADDRNOTAVAIL)
      return
    }
    this.#timer = machine.internet.clock.after(timeoutMs * 1000, () => this.giveUp(Errno.ETIMEDOUT))
    this.#knock({ host, port: machine.freePort() })
  }

  giveUp(errno: number): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#timer?.cancel()
    this.#socket?.abandon()
    this.#network.tellLater(() => this.#done(undefined, errno))
  }

  /** Nobody waits for it any more. */
  get #isStale(): boolean {
    return this.#isOver || this.#life !== this.#network.machine.life
  }

  /** Sends the first segment, again and again until somebody answers. */
  #knock(local: SocketAddress): void {
    if (this.#isStale) return
    const { internet } = this.#network.machine
    const out = internet.link(local.host, this.#remote.host)
    const back = internet.link(this.#remote.host, local.host)
    const machine = internet.machineAt(this.#remote.host)
    if (machine === undefined || !machine.isUp || out.isCut || back.isCut) {
      internet.clock.after(SYN_RETRY_US, () => this.#knock(local))
      return
    }
    internet.clock.after(out.takesUs(0), () => this.#knocked(machine, local, back))
  }

  #knocked(far: NetworkMachine, local: SocketAddress, back: Link): void {
    if (this.#isStale) return
    const { machine } = this.#network
    const { internet } = machine
    const listener = far.isUp ? far.listener(this.#remote) : undefined
    if (listener === undefined) {
      internet.clock.after(back.takesUs(0), () =>
        this.giveUp(far.isUp ? Errno.ECONNREFUSED : Errno.ETIMEDOUT),
      )
      return
    }
    const sockets = internet.connectSockets(
      { machine, address: local },
      { machine: far, address: this.#remote },
    )
    this.#socket = sockets.near
    machine.register(sockets.near)
    const number = far.register(sockets.far)
    listener.network.tellLater(() => {
      if (far.listener(this.#remote) === listener) listener.onSocket(number)
      else sockets.far.abandon()
    })
    internet.clock.after(back.takesUs(0), () => this.#accepted())
  }

  #accepted(): void {
    if (this.#isStale) return
    this.#isOver = true
    this.#timer?.cancel()
    const socket = this.#socket!
    this.#network.tellLater(() => {
      socket.attach(this.#network, this.#events)
      this.#done(socket, 0)
    })
  }
}
