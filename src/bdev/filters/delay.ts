/**
 * Makes a device as slow as asked: 99 of 100 reads take at least the average read latency, one takes the p99 latency; the
 * same for writes. Everything else passes.
 *
 *   submit --> base --> done: due already? --> complete
 *                             otherwise   --> queue of its latency, ended by one timer for the first in it
 */
import { z } from 'zod'
import type { Timer } from '../../core/clock.ts'
import { RpcError } from '../../core/errors.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { method } from '../../rpc/method.ts'
import { done, uint64, uuid } from '../../rpc/params.ts'
import { Status } from '../../spec/nvme-status.ts'
import { type BdevInfo, type ChannelContext, type DriverChannel, defineDriver } from '../bdev.ts'
import { type BdevIo, IoType } from '../io.ts'
import { type BdevContext, deleteMethod, FILTER_ERRORS } from '../method.ts'
import { type ChildIo, type ChildOwner, describeFilter, Forwarder } from './forwarder.ts'

/** Places in the shared table of latencies, and in the list of queues. */
const AVG_READ = 0
const P99_READ = 1
const AVG_WRITE = 2
const P99_WRITE = 3

const params = z.object({
  base_bdev_name: z.string().describe('The device underneath'),
  avg_read_latency: uint64.describe('Microseconds'),
  p99_read_latency: uint64.describe('Microseconds, of one read in a hundred'),
  avg_write_latency: uint64.describe('Microseconds'),
  p99_write_latency: uint64.describe('Microseconds, of one write in a hundred'),
  uuid: uuid.optional().describe("Derived from the base's when not given"),
})

type Latencies = Float64Array<SharedArrayBuffer>

export const delayDriver = defineDriver({
  name: 'delay',
  summary: 'A filter that makes a device slower.',
  params,
  create: (name, given, control) => createDelay(name, given, control.get(given.base_bdev_name)),
  sizeOver: base => base.blockCount,
  config: (info, given) => {
    const { name, ...present } = shown(info)
    return [{ method: 'bdev_delay_create', params: { name, ...given, ...present, uuid: info.uuid } }]
  },
  openChannel: (info, context) => new DelayChannel(info, context),
})

function createDelay(name: string, given: z.output<typeof params>, base: BdevInfo): BdevInfo {
  const latencies = new Float64Array(new SharedArrayBuffer(4 * 8))
  latencies[AVG_READ] = given.avg_read_latency
  latencies[P99_READ] = given.p99_read_latency
  latencies[AVG_WRITE] = given.avg_write_latency
  latencies[P99_WRITE] = given.p99_write_latency
  checkLatencies(name, latencies)
  const info: BdevInfo = describeFilter(base, {
    name,
    driver: 'delay',
    product: 'delay',
    uuid: given.uuid,
    device: latencies,
    // Read whenever it is shown, since latencies change.
    driverSpecific: {
      get delay() {
        return shown(info)
      },
    },
  })
  return info
}

function shown({ name, bases, device }: BdevInfo) {
  const latencies = device as Latencies
  return {
    name,
    base_bdev_name: bases[0]!,
    avg_read_latency: latencies[AVG_READ]!,
    p99_read_latency: latencies[P99_READ]!,
    avg_write_latency: latencies[AVG_WRITE]!,
    p99_write_latency: latencies[P99_WRITE]!,
  }
}

function checkLatencies(name: string, latencies: Latencies): void {
  for (const [kind, avg, p99] of [
    ['read', latencies[AVG_READ]!, latencies[P99_READ]!],
    ['write', latencies[AVG_WRITE]!, latencies[P99_WRITE]!],
  ] as const) {
    if (avg <= p99) continue
    throw new RpcError(
      'EINVAL',
      `${name} would have an avg_${kind}_latency of ${avg} us above its p99_${kind}_latency of ${p99} us: ` +
        'raise the p99 or lower the average',
    )
  }
}

class DelayChannel implements DriverChannel, ChildOwner {
  readonly lends = false
  readonly #context: ChannelContext
  readonly #forwarder: Forwarder
  readonly #latencies: Latencies
  readonly #queues: readonly DelayQueue[]
  #reads = 0
  #writes = 0

  constructor(info: BdevInfo, context: ChannelContext) {
    this.#context = context
    this.#latencies = info.device as Latencies
    this.#forwarder = new Forwarder(context.open(info.bases[0]!), this)
    const queue = (): DelayQueue => new DelayQueue(context.reactor, this.#forwarder)
    this.#queues = [queue(), queue(), queue(), queue()]
  }

  submit(io: BdevIo): void {
    const child = this.#forwarder.prepare(io)
    child.note = this.#kindOf(io)
    child.dueUs = child.note < 0 ? 0 : this.#context.reactor.clock.nowUs() + this.#latencies[child.note]!
    this.#forwarder.submit(child)
  }

  childDone(child: ChildIo): void {
    const isDue = child.dueUs <= this.#context.reactor.clock.nowUs()
    if (child.note < 0 || isDue || child.isAborted) {
      this.#forwarder.finish(child, child.status)
    } else this.#queues[child.note]!.push(child)
  }

  abort(io: BdevIo | null): void {
    this.#forwarder.abort(io)
    for (const queue of this.#queues) queue.abort(io)
  }

  close(): void {
    this.#context.close(this.#forwarder.base)
  }

  /** Which latency the I/O is to have, -1 for none. One in a hundred has the high one, evenly, so that runs repeat. */
  #kindOf(io: BdevIo): number {
    if (io.type === IoType.READ) return ++this.#reads % 100 === 0 ? P99_READ : AVG_READ
    if (io.type === IoType.WRITE) return ++this.#writes % 100 === 0 ? P99_WRITE : AVG_WRITE
    return -1
  }
}

/** Children that wait for their moment, in the order in which they came, which is nearly that of their moments. */
class DelayQueue {
  readonly #reactor: Reactor
  readonly #forwarder: Forwarder
  #first: ChildIo | null = null
  #last: ChildIo | null = null
  #timer: Timer | null = null

  constructor(reactor: Reactor, forwarder: Forwarder) {
    this.#reactor = reactor
    this.#forwarder = forwarder
  }

  push(child: ChildIo): void {
    child.next = null
    if (this.#last === null) this.#first = child
    else this.#last.next = child
    this.#last = child
    if (this.#timer === null) this.#arm()
  }

  /** Ends the parent's child early if it waits here, or every one that does. */
  abort(parent: BdevIo | null): void {
    let previous: ChildIo | null = null
    for (let child = this.#first; child !== null; ) {
      const next = child.next as ChildIo | null
      if (parent === null || child.parent === parent) {
        if (previous === null) this.#first = next
        else previous.next = next
        if (next === null) this.#last = previous
        child.next = null
        this.#forwarder.finish(child, Status.ABORTED_BY_REQUEST)
      } else previous = child
      child = next
    }
    if (this.#first === null) this.#disarm()
  }

  readonly #fire = (): void => {
    this.#timer = null
    const now = this.#reactor.clock.nowUs()
    while (this.#first !== null && this.#first.dueUs <= now) {
      const child: ChildIo = this.#first
      this.#first = child.next as ChildIo | null
      if (this.#first === null) this.#last = null
      child.next = null
      this.#forwarder.finish(child, child.status)
    }
    this.#arm()
  }

  #arm(): void {
    if (this.#first === null) return
    const { clock } = this.#reactor
    this.#timer = clock.after(Math.max(0, this.#first.dueUs - clock.nowUs()) / 1000, this.#fire)
  }

  #disarm(): void {
    this.#timer?.cancel()
    this.#timer = null
  }
}

const KIND_OF = {
  avg_read: AVG_READ,
  p99_read: P99_READ,
  avg_write: AVG_WRITE,
  p99_write: P99_WRITE,
} as const

export const delayMethods = [
  method({
    name: 'bdev_delay_create',
    summary: 'Puts a filter over a device that makes it slower.',
    params: z.object({ name: z.string().min(1).describe('Its name'), ...params.shape }),
    result: z.string().describe('The name'),
    errors: { ...FILTER_ERRORS, EINVAL: 'an average latency is above its p99' },
    saves: true,
    cli: {
      flags: {
        base_bdev_name: 'b',
        name: 'd',
        avg_read_latency: 'r',
        p99_read_latency: ['t', 'nine-nine-read-latency'],
        avg_write_latency: 'w',
        p99_write_latency: ['n', 'nine-nine-write-latency'],
        uuid: 'u',
      },
    },
    async run({ name, ...rest }, { bdevs }: BdevContext) {
      return (await bdevs.create('delay', name, rest)).name
    },
  }),
  deleteMethod('bdev_delay_delete', 'delay'),
  method({
    name: 'bdev_delay_update_latency',
    summary: 'Changes a latency; what is outstanding keeps the old one.',
    params: z.object({
      delay_bdev_name: z.string().describe('The filter'),
      latency_type: z.enum(['avg_read', 'p99_read', 'avg_write', 'p99_write']).describe('Which one'),
      latency_us: uint64.describe('Microseconds'),
    }),
    result: done,
    errors: { ENODEV: 'no delay filter has that name', EINVAL: 'an average would be above its p99' },
    saves: true,
    cli: { positional: ['delay_bdev_name', 'latency_type', 'latency_us'] },
    run({ delay_bdev_name, latency_type, latency_us }, { bdevs }: BdevContext) {
      const { name, driver, device } = bdevs.get(delay_bdev_name)
      if (driver !== 'delay') throw new RpcError('ENODEV', `${name} is a ${driver} bdev, not delay`)
      const latencies = device as Latencies
      const changed: Latencies = new Float64Array(new SharedArrayBuffer(4 * 8))
      changed.set(latencies)
      changed[KIND_OF[latency_type]] = latency_us
      checkLatencies(name, changed)
      latencies.set(changed)
      return true as const
    },
  }),
]
