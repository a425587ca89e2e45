/** Two ends of a `Port` in one thread: bodies are cloned as between threads, and arrive in order, one microtask later. */
import type { Port } from '../../src/reactor/port.ts'

class LinkedPort implements Port {
  readonly #listeners = new Map<string, (body: unknown) => unknown>()
  #peer!: LinkedPort

  static pair(): [LinkedPort, LinkedPort] {
    const a = new LinkedPort()
    const b = new LinkedPort()
    a.#peer = b
    b.#peer = a
    return [a, b]
  }

  post(topic: string, body: unknown): void {
    void this.call(topic, body)
  }

  async call<T = unknown>(topic: string, body: unknown): Promise<T> {
    const arrived = structuredClone(body)
    await null
    return structuredClone(await this.#peer.#listener(topic)(arrived)) as T
  }

  on<T = unknown>(topic: string, listener: (body: T) => unknown): void {
    this.#listeners.set(topic, listener as (body: unknown) => unknown)
  }

  #listener(topic: string): (body: unknown) => unknown {
    const listener = this.#listeners.get(topic)
    if (listener === undefined) throw new Error(`nobody listens to ${topic}`)
    return listener
  }
}

/** The control thread's end and the reactor's end. */
export const linkedPorts = (): [Port, Port] => LinkedPort.pair()
