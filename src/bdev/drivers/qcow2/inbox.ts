/** Requests of other reactors, as the image's owner takes them from their lanes. */
import { bytesAt } from '../../../sys/memory.ts'
import { statusFromErrno } from '../../errno-status.ts'
import { IoType, Segments } from '../../io.ts'
import { idOf, LANES, type Lane, Lanes, SLOTS, State, stateOf, wordOf } from '../../plugin/lanes.ts'
import { BLOCK_SIZE, one } from './device.ts'
import { Request, type RequestOwner } from './request.ts'

export class Inbox implements RequestOwner {
  readonly #lanes: Lanes
  readonly #all: readonly Lane[]
  readonly #taken: Float64Array = new Float64Array(LANES)
  readonly #start: (request: Request) => void
  /** Each keeps the list that it has grown to. */
  readonly #free: Request[] = []
  #seen = 0

  constructor(memory: SharedArrayBuffer, start: (request: Request) => void) {
    this.#lanes = new Lanes(memory)
    this.#all = Array.from({ length: LANES }, (_, index) => this.#lanes.lane(index))
    this.#start = start
  }

  /** Takes what is new. Returns how many there were. */
  poll(): number {
    const { doorbell } = this.#lanes
    if (doorbell === this.#seen) return 0
    this.#seen = doorbell
    let events = 0
    for (let index = 0; index < LANES; index++) {
      const lane = this.#all[index]!
      const { submitted } = lane
      if (submitted === this.#taken[index]) continue
      this.#taken[index] = submitted
      for (let slot = 0; slot < SLOTS; slot++) {
        const word = lane.word(slot)
        if (stateOf(word) !== State.SUBMITTED) continue
        lane.change(slot, word, wordOf(idOf(word), State.RUNNING))
        this.#take(index, lane, slot)
        events++
      }
    }
    return events
  }

  requestDone(request: Request): void {
    const lane = this.#all[Math.floor(request.tag / SLOTS)]!
    const slot = request.tag % SLOTS
    const { result, type } = request
    this.#free.push(request)
    lane.setStatus(slot, result === 0 ? 0 : statusFromErrno(-result, type !== IoType.READ))
    const word = lane.word(slot)
    lane.change(slot, word, wordOf(idOf(word), State.DONE))
    lane.answer(one())
  }

  #take(index: number, lane: Lane, slot: number): void {
    const request = this.#free.pop() ?? new Request(this, new Segments(8))
    request.tag = index * SLOTS + slot
    request.type = lane.typeOf(slot) as IoType
    request.isFua = lane.isFua(slot)
    request.offset = lane.offsetOf(slot)
    // In blocks, since a range to be unmapped may be longer than 32 bits can say.
    request.length = lane.lengthOf(slot) * BLOCK_SIZE
    readList(lane.addressOf(slot), request.segments)
    this.#start(request)
  }
}

/**
 * A list of segments in memory, for another thread: their number, then an address and a length each, as doubles.
 * `address`: 0 for no list.
 */
export function readList(address: number, target: Segments): void {
  target.count = 0
  if (address === 0) return
  const [count] = doublesAt(address, 1)
  target.reserve(count!)
  const list = doublesAt(address + 8, count! * 2)
  for (let i = 0; i < count!; i++) target.push(list[i * 2]!, list[i * 2 + 1]!)
}

export function writeList(source: Segments, target: Float64Array): void {
  target[0] = source.count
  for (let i = 0; i < source.count; i++) {
    target[1 + i * 2] = source.addresses[i]!
    target[2 + i * 2] = source.lengths[i]!
  }
}

export function doublesAt(address: number, count: number): Float64Array {
  const { buffer, byteOffset } = bytesAt(address, count * 8)
  return new Float64Array(buffer, byteOffset, count)
}
