import { describe, expect, it } from 'vitest'
import { Prng } from '../../src/core/prng.ts'
import type { SocketAddress, Stream, StreamEvents } from '../../src/reactor/network.ts'
import type { Reactor } from '../../src/reactor/reactor.ts'
import { bytesAt, viewAt } from '../../src/sys/memory.ts'
import { SimNode } from './node.ts'
import { Errno } from './socket.ts'
import { World } from './world.ts'

const SERVER: SocketAddress = { host: '10.0.0.2', port: 7 }
const SIZE = 4096

/** One end of an echo protocol, which sends and receives through real memory. */
class End implements StreamEvents {
  stream: Stream | null = null
  readonly received: number[] = []
  readonly log: string[] = []
  isOver = false
  readonly #reactor: Reactor
  readonly #buffer: number
  readonly #out: number
  readonly #iovecs: number
  readonly #echoes: boolean
  #queue: Uint8Array[] = []
  #isSending = false

  constructor(reactor: Reactor, echoes: boolean) {
    this.#reactor = reactor
    this.#echoes = echoes
    this.#buffer = reactor.arena.allocate(SIZE)
    this.#out = reactor.arena.allocate(SIZE)
    this.#iovecs = reactor.arena.allocate(32)
  }

  open(stream: Stream): void {
    this.stream = stream
    stream.receive(this.#buffer, SIZE)
  }

  write(bytes: Uint8Array): void {
    this.#queue.push(bytes)
    this.#sendNext()
  }

  #sendNext(): void {
    if (this.#isSending) return
    const bytes = this.#queue.shift()
    if (bytes === undefined) return
    this.#isSending = true
    bytesAt(this.#out, bytes.length).set(bytes)
    const view = viewAt(this.#iovecs, 32)
    const half = bytes.length >> 1
    for (const [at, address, size] of [
      [0, this.#out, half],
      [16, this.#out + half, bytes.length - half],
    ] as const) {
      view.setBigUint64(at, BigInt(address), true)
      view.setBigUint64(at + 8, BigInt(size), true)
    }
    this.stream!.send(this.#iovecs, 2)
  }

  onReceived(result: number): void {
    if (result <= 0) {
      this.log.push(`received ${result}`)
      this.stream!.close()
      return
    }
    const bytes = bytesAt(this.#buffer, result).slice()
    this.received.push(...bytes)
    if (this.#echoes) this.write(bytes)
    const split = Math.min(64, SIZE / 2)
    this.stream!.receiveSplit(this.#buffer, split, this.#buffer + split, SIZE - split)
  }

  onSent(result: number): void {
    this.#isSending = false
    // What was sent may be used again at once.
    bytesAt(this.#out, SIZE).fill(0xee)
    if (result > 0) this.#sendNext()
    else this.log.push(`sent ${result}`)
  }

  onClosed(): void {
    this.isOver = true
  }

  get memory(): Reactor {
    return this.#reactor
  }
}

function lab(seed: number) {
  const world = new World(seed)
  const client = new SimNode(world, 'client', ['10.0.0.1'], 1)
  const server = new SimNode(world, 'server', ['10.0.0.2'], 1)
  const near = client.start().reactors[0]!
  const far = server.start().reactors[0]!
  const accepted: End[] = []
  const serve = (reactor: Reactor) =>
    reactor.network.listen(SERVER, 8, socket => {
      const end = new End(reactor, true)
      accepted.push(end)
      end.open(reactor.network.adopt(socket, end))
    })
  const listener = serve(far)
  const dial = (timeoutMs = 5000) => {
    const end = new End(near, false)
    const outcome = { errno: -1 }
    const cancel = near.network.connect(SERVER, undefined, timeoutMs, end, (stream, errno) => {
      outcome.errno = errno
      if (stream !== undefined) end.open(stream)
    })
    return { end, outcome, cancel }
  }
  const out = world.internet.link('10.0.0.1', '10.0.0.2')
  const back = world.internet.link('10.0.0.2', '10.0.0.1')
  return { world, client, server, near, far, accepted, listener, serve, dial, out, back }
}

describe('the simulated network', () => {
  it.each([1, 2, 3, 4, 5, 6, 7, 8])(
    'carries bytes unchanged and in order, in any pieces (seed %i)',
    async seed => {
      const { world, dial, accepted } = lab(seed)
      const { end } = dial()
      await world.clock.until(() => end.stream !== null)
      const data = new Prng(seed).fill(new Uint8Array(20_000))
      for (let at = 0; at < data.length; at += 3000) end.write(data.slice(at, at + 3000))
      await world.clock.until(() => end.received.length === data.length)
      expect(end.received).toEqual([...data])
      end.stream!.close()
      await world.clock.until(() => end.isOver && accepted[0]!.isOver)
      expect(accepted[0]!.log).toEqual([`received ${-Errno.ECONNRESET}`])
    },
  )

  it('does the same again for the same seed, and something else for another', async () => {
    const run = async (seed: number): Promise<number> => {
      const { world, dial } = lab(seed)
      const { end } = dial()
      await world.clock.until(() => end.stream !== null)
      for (let i = 0; i < 10; i++) end.write(new Uint8Array(1000).fill(i))
      await world.clock.until(() => end.received.length === 10_000)
      return world.clock.nowUs
    }
    expect(await run(7)).toBe(await run(7))
    expect(await run(7)).not.toBe(await run(8))
  })

  it('refuses a connect where nobody listens, and lets one to a silent machine time out', async () => {
    const { world, dial, listener, server } = lab(1)
    listener.close()
    const refused = dial()
    await world.clock.until(() => refused.outcome.errno !== -1)
    expect(refused.outcome.errno).toBe(Errno.ECONNREFUSED)
    server.crash('power')
    const startUs = world.clock.nowUs
    const silent = dial(3000)
    await world.clock.until(() => silent.outcome.errno !== -1)
    expect(silent.outcome.errno).toBe(Errno.ETIMEDOUT)
    expect(world.clock.nowUs - startUs).toBe(3_000_000)
  })

  it('gives up a connect early when it is asked to', async () => {
    const { world, dial, out } = lab(1)
    out.cut()
    const attempt = dial()
    attempt.cancel()
    await world.clock.until(() => attempt.outcome.errno !== -1)
    expect(attempt.outcome.errno).toBe(Errno.ECANCELED)
  })

  it('drops bytes silently on a link that is cut in one direction, and delivers them once it is whole', async () => {
    const { world, dial, accepted, out } = lab(3)
    const { end } = dial()
    await world.clock.until(() => accepted.length > 0 && end.stream !== null)
    out.cut()
    end.write(new Uint8Array([1, 2, 3]))
    await world.clock.run(world.clock.sleep(30_000_000))
    expect(accepted[0]!.received).toEqual([])
    out.heal()
    await world.clock.until(() => end.received.length === 3)
  })

  it('delivers what was answered before a close even after the sender closed on a cut link', async () => {
    const { world, dial, accepted, back } = lab(3)
    const { end } = dial()
    await world.clock.until(() => accepted.length > 0 && end.stream !== null)
    back.cut()
    accepted[0]!.write(new Uint8Array([9, 9]))
    accepted[0]!.stream!.close()
    await world.clock.until(() => accepted[0]!.isOver)
    back.heal()
    await world.clock.until(() => end.isOver)
    expect(end.received).toEqual([9, 9])
  })

  it.each([
    ['while it is cut', 0],
    ['before it is sent again', 1000],
  ])('does not deliver what a cut link had held back from a host that closed %s', async (_, healedUs) => {
    const { world, dial, accepted, out } = lab(3)
    const { end } = dial()
    await world.clock.until(() => accepted.length > 0 && end.stream !== null)
    out.cut()
    end.write(new Uint8Array([9, 9]))
    await world.clock.run(world.clock.sleep(1_000_000))
    if (healedUs > 0) {
      out.heal()
      await world.clock.run(world.clock.sleep(healedUs))
    }
    end.stream!.close()
    await world.clock.until(() => end.isOver)
    out.heal()
    await world.clock.run(world.clock.sleep(30_000_000))
    expect(accepted[0]!.received).toEqual([])
  })

  it('delivers what is on its way when a host closes, and then a reset', async () => {
    const { world, dial, accepted } = lab(3)
    const { end } = dial()
    await world.clock.until(() => accepted.length > 0 && end.stream !== null)
    end.write(new Uint8Array([9, 9]))
    end.stream!.close()
    await world.clock.until(() => accepted[0]!.isOver)
    expect(accepted[0]!.received).toEqual([9, 9])
    expect(accepted[0]!.log).toContain(`received ${-Errno.ECONNRESET}`)
  })

  it('lets a sender wait whose peer does not read', async () => {
    const { world, dial, accepted, far } = lab(5)
    const { end } = dial()
    await world.clock.until(() => accepted.length > 0 && end.stream !== null)
    world.clock.pause(far, 10_000_000)
    for (let i = 0; i < 1000; i++) end.write(new Uint8Array(4000))
    await world.clock.run(world.clock.sleep(5_000_000))
    expect(accepted[0]!.received.length).toBe(0)
    await world.clock.until(() => end.received.length === 4_000_000)
  })

  it('tells the peer of a program that died, and not of a machine that lost its power', async () => {
    for (const kind of ['program', 'power'] as const) {
      const { world, dial, accepted, server } = lab(6)
      const { end } = dial()
      await world.clock.until(() => accepted.length > 0 && end.stream !== null)
      server.crash(kind)
      await world.clock.run(world.clock.sleep(60_000_000))
      expect(end.isOver).toBe(kind === 'program')
      expect(server.machine.openSockets).toBe(0)
    }
  })

  it('resets a connection to a machine that came back without knowing it', async () => {
    const { world, dial, accepted, server } = lab(6)
    const { end } = dial()
    await world.clock.until(() => accepted.length > 0 && end.stream !== null)
    server.crash('power')
    end.write(new Uint8Array(10))
    server.start()
    await world.clock.until(() => end.isOver)
    expect(end.log.some(line => line === `received ${-Errno.ECONNRESET}`)).toBe(true)
  })

  it('would notice a network that delivers a segment twice', async () => {
    const { world, dial } = lab(6)
    world.internet.duplicates = 3
    const { end } = dial()
    await world.clock.until(() => end.stream !== null)
    const data = new Prng(6).fill(new Uint8Array(4000))
    for (let at = 0; at < data.length; at += 100) end.write(data.slice(at, at + 100))
    await world.clock.until(() => end.received.length >= data.length)
    expect(end.received.slice(0, data.length)).not.toEqual([...data])
  })
})
