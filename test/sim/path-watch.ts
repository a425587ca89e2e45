/**
 * Which paths could be used, and since when. An I/O may fail only when at some moment of its life there was none: that is
 * what multipath promises. A path counts as usable again a while after its last fault, since the host has to notice.
 */
import type { Client } from './client.ts'
import { CLIENT_ADDRESS } from './config.ts'
import type { PathPlace } from './scenario.ts'
import type { World } from './world.ts'

/** Until a host has found that a path is back: its connect time-out, its delay before that, and the connect itself. */
const NOTICE_US = 15_000_000

interface Watched {
  readonly place: PathPlace
  isSound: boolean
  sinceUs: number
  /** Times at which it was certainly usable. */
  readonly usable: { readonly fromUs: number; readonly toUs: number }[]
}

export class PathWatch {
  readonly #world: World
  readonly #client: Client
  readonly #paths: readonly Watched[]
  readonly #withdrawn = new Set<string>()

  constructor(world: World, places: readonly PathPlace[], client: Client) {
    this.#world = world
    this.#client = client
    this.#paths = places.map(place => ({ place, isSound: true, sinceUs: -NOTICE_US, usable: [] }))
  }

  /** To be called after every change, and now and then. */
  look(): void {
    const { nowUs } = this.#world.clock
    for (const path of this.#paths) {
      const isSound = this.#isSound(path.place)
      if (isSound === path.isSound) continue
      if (path.isSound && path.sinceUs + NOTICE_US < nowUs) {
        path.usable.push({ fromUs: path.sinceUs + NOTICE_US, toUs: nowUs })
      }
      path.isSound = isSound
      path.sinceUs = nowUs
    }
  }

  /** The operator takes the path to that address away. */
  withdraw(host: string): void {
    this.#withdrawn.add(host)
    this.look()
  }

  restore(host: string): void {
    this.#withdrawn.delete(host)
    this.look()
  }

  /** Whether at every moment of that time there was a path. */
  wasUsable(fromUs: number, toUs: number): boolean {
    const spans = this.#paths.flatMap(path => {
      const last = { fromUs: path.sinceUs + NOTICE_US, toUs: Number.POSITIVE_INFINITY }
      return path.isSound ? [...path.usable, last] : path.usable
    })
    let atUs = fromUs
    for (const span of spans.sort((a, b) => a.fromUs - b.fromUs)) {
      if (span.fromUs <= atUs && span.toUs > atUs) atUs = span.toUs
    }
    return atUs > toUs
  }

  /** Whether one and the same path could be used all that time. */
  hadOneThroughout(fromUs: number, toUs: number): boolean {
    return this.#paths.some(
      ({ isSound, sinceUs, usable }) =>
        (isSound && sinceUs + NOTICE_US <= fromUs) ||
        usable.some(span => span.fromUs <= fromUs && span.toUs >= toUs),
    )
  }

  #isSound({ gateway, host }: PathPlace): boolean {
    const { internet } = this.#world
    const wish = gateway.wishes.get(host)!
    return (
      gateway.isUp &&
      wish.isListening &&
      wish.ana !== 'inaccessible' &&
      !internet.link(CLIENT_ADDRESS, host).isCut &&
      !internet.link(host, CLIENT_ADDRESS).isCut &&
      !this.#withdrawn.has(host) &&
      this.#client.attached.includes(host)
    )
  }
}
