/** The devices as one reactor knows them: a replica of each one's description, and one channel to each one in use. */
import { assert } from '../core/assert.ts'
import { RpcError } from '../core/errors.ts'
import type { Reactor } from '../reactor/reactor.ts'
import type { AnyDriver, BdevInfo, ChannelContext } from './bdev.ts'
import { Channel, type ChannelState } from './channel.ts'
import { IoStat } from './iostat.ts'
import {
  type AddMessage,
  type IostatAnswer,
  type IostatMessage,
  type ResizeMessage,
  type TellMessage,
  Topic,
} from './messages.ts'

/** What users of devices on the same reactor are told: front ends whose clients must hear of it, filters. */
export interface ReactorBdevListener {
  /** New I/O is refused from now on, and what is outstanding ends; the channel still has to be closed by its users. */
  bdevRemoved?(channel: Channel): void
  /** Its description already has the new size. */
  bdevResized?(info: BdevInfo, oldBlockCount: number): void
}

interface Replica {
  readonly info: BdevInfo
  readonly state: ChannelState
  channel: Channel | null
  users: number
}

export class ReactorBdevs implements ChannelContext {
  readonly reactor: Reactor
  readonly #drivers: ReadonlyMap<string, AnyDriver>
  readonly #replicas = new Map<string, Replica>()
  readonly #listeners = new Set<ReactorBdevListener>()

  constructor(reactor: Reactor, drivers: readonly AnyDriver[]) {
    this.reactor = reactor
    this.#drivers = new Map(drivers.map(driver => [driver.name, driver]))
    const { control } = reactor
    control.on<AddMessage>(Topic.ADD, message => this.#add(message))
    control.on<string>(Topic.REMOVE, name => this.#remove(name))
    control.on<ResizeMessage>(Topic.RESIZE, message => this.#resize(message))
    control.on<TellMessage>(Topic.TELL, ({ name, message }) => this.#replica(name).channel?.tell(message))
    control.on<IostatMessage>(Topic.IOSTAT, message => this.#iostat(message))
  }

  find(name: string): BdevInfo | undefined {
    return this.#replicas.get(name)?.info
  }

  /**
   * The reactor's channel to the device: opened for the first user, shared with the others. Throws `RpcError` ENODEV
   * when there is no device of that name, or what the driver has to say.
   */
  open(name: string): Channel {
    const replica = this.#replica(name)
    if (replica.channel === null) {
      const driver = this.#drivers.get(replica.info.driver)
      assert(driver, `the driver ${replica.info.driver} is known on every reactor`)
      const { reactor } = this
      replica.channel = new Channel(
        replica.info,
        reactor,
        driver.openChannel(replica.info, this),
        replica.state,
      )
    }
    replica.users++
    return replica.channel
  }

  /** Ends one use. The last user must have nothing outstanding, except on a device that is being removed. */
  close(channel: Channel): void {
    // The channel of a removed device is closed by the removal, which knows when nothing is outstanding any more.
    if (channel.isRemoved) return
    const replica = this.#replica(channel.info.name)
    assert(replica.channel === channel && replica.users > 0, `the channel to ${channel.info.name} is open`)
    replica.users--
    if (replica.users > 0) return
    replica.channel = null
    channel.close()
  }

  listen(listener: ReactorBdevListener): void {
    this.#listeners.add(listener)
  }

  unlisten(listener: ReactorBdevListener): void {
    this.#listeners.delete(listener)
  }

  #replica(name: string): Replica {
    const replica = this.#replicas.get(name)
    if (replica === undefined) throw new RpcError('ENODEV', `there is no bdev ${name}`)
    return replica
  }

  #add({ info, lock }: AddMessage): void {
    const state = { lock: new Int32Array(lock), stat: new IoStat() }
    this.#replicas.set(info.name, { info, state, channel: null, users: 0 })
  }

  async #remove(name: string): Promise<void> {
    const { channel } = this.#replica(name)
    this.#replicas.delete(name)
    if (channel === null) return
    const quiet = new Promise<void>(resolve => channel.remove(resolve))
    for (const listener of this.#listeners) listener.bdevRemoved?.(channel)
    await quiet
    channel.close()
  }

  #resize({ name, blockCount }: ResizeMessage): void {
    const { info } = this.#replica(name)
    const oldBlockCount = info.blockCount
    info.blockCount = blockCount
    for (const listener of this.#listeners) listener.bdevResized?.(info, oldBlockCount)
  }

  #iostat({ names, reset }: IostatMessage): IostatAnswer {
    return names.map(name => {
      const replica = this.#replicas.get(name)
      // Removed while the question was on its way.
      if (replica === undefined) return { counters: new IoStat().snapshot(), outstanding: 0, isOpen: false }
      const { state, channel } = replica
      const counters = state.stat.snapshot()
      state.stat.reset(reset)
      return { counters, outstanding: channel?.outstanding ?? 0, isOpen: channel !== null }
    })
  }
}
