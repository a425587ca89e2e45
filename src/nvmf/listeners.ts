/** The sockets that listen: one an address, however many subsystems are reached by it. */
import type { Acceptor } from '../reactor/acceptor.ts'
import { isSameAddress, socketAddressOf, type TransportAddress } from './address.ts'

/** The name under which reactors adopt the connections of these listeners. */
export const NVMF_SERVICE = 'nvmf'

export type ListeningSockets = Pick<Acceptor, 'newListenerId' | 'listen' | 'close'>

export interface Listener {
  readonly id: number
  /** With the port that the system chose when 0 was asked for. */
  readonly address: TransportAddress
}

interface SharedListener extends Listener {
  users: number
}

export class Listeners {
  readonly #sockets: ListeningSockets
  readonly #listeners = new Map<number, SharedListener>()

  constructor(sockets: ListeningSockets) {
    this.#sockets = sockets
  }

  list(): Listener[] {
    return [...this.#listeners.values()].map(({ id, address }) => ({ id, address }))
  }

  /** Listens, or joins those who do already. Throws `RpcError` that names the address and what to do. */
  async open(address: TransportAddress): Promise<Listener> {
    const known = [...this.#listeners.values()].find(other => isSameAddress(other.address, address))
    if (known !== undefined) {
      known.users++
      return known
    }
    const id = this.#sockets.newListenerId()
    const bound = await this.#sockets.listen(NVMF_SERVICE, id, socketAddressOf(address))
    const listener = { id, address: { ...address, trsvcid: String(bound.port) }, users: 1 }
    this.#listeners.set(id, listener)
    return listener
  }

  /** Ends one use; true when it was the last, and the socket is closed. */
  async close(id: number): Promise<boolean> {
    const listener = this.#listeners.get(id)!
    listener.users--
    if (listener.users > 0) return false
    this.#listeners.delete(id)
    await this.#sockets.close(id)
    return true
  }
}
