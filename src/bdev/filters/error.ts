/**
 * Lets I/O fail on demand. What is to fail lies in memory that all reactors share, so that "the next three writes" means
 * three whatever reactors they come by.
 */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, uint8, uint32, uint64, uuid } from '../../rpc/params.ts'
import { Status } from '../../spec/nvme-status.ts'
import { bytesAt } from '../../sys/memory.ts'
import { type BdevInfo, type ChannelContext, type DriverChannel, defineDriver } from '../bdev.ts'
import { type BdevIo, IO_TYPE_NAMES, IoType, type Segments } from '../io.ts'
import { type BdevContext, deleteMethod, FILTER_ERRORS } from '../method.ts'
import { type ChildIo, type ChildOwner, describeFilter, Forwarder } from './forwarder.ts'

const Injection = { NONE: 0, FAILURE: 1, PENDING: 2, CORRUPT_DATA: 3, NOMEM: 4, NVME_FAILURE: 5 } as const

const params = z.object({
  base_name: z.string().describe('The device underneath'),
  uuid: uuid.optional().describe("Derived from the base's when not given"),
})

/** What is to happen to I/O of one type: a row of the shared table. */
const Column = { INJECTION: 0, STATUS: 1, QUEUE_DEPTH: 2, CORRUPT_OFFSET: 3, CORRUPT_VALUE: 4 } as const
const COLUMNS = 5
const TYPES = IO_TYPE_NAMES.length

/** The shared table, and beside it how many I/Os of each type are still to be hit. */
interface Injections {
  readonly table: Float64Array<SharedArrayBuffer>
  readonly left: Int32Array<SharedArrayBuffer>
}

/** To the channels: let go what is held. */
const RESUME = 'resume'

export const errorDriver = defineDriver({
  name: 'error',
  summary: 'A filter that lets I/O fail on demand.',
  params,
  create: (name, given, control) => {
    const base = control.get(given.base_name)
    const injections: Injections = {
      table: new Float64Array(new SharedArrayBuffer(TYPES * COLUMNS * 8)),
      left: new Int32Array(new SharedArrayBuffer(TYPES * 4)),
    }
    return describeFilter(base, {
      name,
      driver: 'error',
      product: 'Error Injection Disk',
      uuid: given.uuid,
      device: injections,
      driverSpecific: { error_disk: { name, base_bdev: base.name } },
    })
  },
  sizeOver: base => base.blockCount,
  config: (info, given) => [
    { method: 'bdev_error_create', params: { base_name: given.base_name, uuid: info.uuid } },
  ],
  openChannel: (info, context) => new ErrorChannel(info, context),
})

class ErrorChannel implements DriverChannel, ChildOwner {
  readonly lends = false
  readonly #context: ChannelContext
  readonly #forwarder: Forwarder
  readonly #injections: Injections
  #inFlight = 0
  /** Held until they are resumed, reset or aborted. */
  #pending: ChildIo[] = []
  /** The base "had no memory" for them: tried again in the next round. */
  #noMemory: ChildIo[] = []

  constructor(info: BdevInfo, context: ChannelContext) {
    this.#context = context
    this.#injections = info.device as Injections
    this.#forwarder = new Forwarder(context.open(info.bases[0]!), this)
  }

  submit(io: BdevIo): void {
    this.#inFlight++
    const child = this.#forwarder.prepare(io)
    if (Atomics.load(this.#injections.left, io.type) > 0) this.#inject(child)
    else this.#forwarder.submit(child)
  }

  childDone(child: ChildIo): void {
    const { segments, type, note } = child
    if (note === Injection.CORRUPT_DATA && (type === IoType.WRITE || child.status === Status.SUCCESS)) {
      // A read is corrupted now; what was changed for a write is put right, since it is the host's data.
      this.#flip(segments, type)
    }
    this.#finish(child, child.status)
  }

  abort(io: BdevIo | null): void {
    this.#pending = this.#abortHeld(this.#pending, io)
    this.#noMemory = this.#abortHeld(this.#noMemory, io)
    this.#forwarder.abort(io)
  }

  tell(message: unknown): void {
    if (message !== RESUME) return
    const held = this.#pending
    this.#pending = []
    for (const child of held) this.#forwarder.submit(child)
  }

  close(): void {
    this.#context.close(this.#forwarder.base)
  }

  #inject(child: ChildIo): void {
    const { table, left } = this.#injections
    const row = child.type * COLUMNS
    const isDeepEnough = this.#inFlight >= table[row + Column.QUEUE_DEPTH]!
    if (!isDeepEnough || Atomics.sub(left, child.type, 1) <= 0) {
      // Another reactor took the last one between our look and now: put back what we took.
      if (isDeepEnough) Atomics.add(left, child.type, 1)
      this.#forwarder.submit(child)
      return
    }
    const injection = table[row + Column.INJECTION]!
    child.note = injection
    if (injection === Injection.FAILURE) this.#finish(child, Status.INTERNAL_ERROR)
    else if (injection === Injection.NVME_FAILURE) this.#finish(child, table[row + Column.STATUS]!)
    else if (injection === Injection.PENDING) this.#pending.push(child)
    else if (injection === Injection.NOMEM) this.#tryAgainLater(child)
    else {
      if (child.type === IoType.WRITE) this.#flip(child.segments, child.type)
      this.#forwarder.submit(child)
    }
  }

  #tryAgainLater(child: ChildIo): void {
    if (this.#noMemory.length === 0) {
      this.#context.reactor.addPoller(this.#retry)
      this.#context.reactor.awaited++
    }
    this.#noMemory.push(child)
  }

  readonly #retry = (): number => {
    const held = this.#noMemory
    this.#noMemory = []
    this.#context.reactor.awaited--
    this.#context.reactor.removePoller(this.#retry)
    for (const child of held) {
      if (Atomics.load(this.#injections.left, child.type) > 0) this.#inject(child)
      else this.#forwarder.submit(child)
    }
    return held.length
  }

  /** Changes one byte, at the offset that was asked for, if the data is that long. Twice changes nothing. */
  #flip(segments: Segments, type: IoType): void {
    const { table } = this.#injections
    let offset = table[type * COLUMNS + Column.CORRUPT_OFFSET]!
    for (let i = 0; i < segments.count; i++) {
      const length = segments.lengths[i]!
      if (offset < length) {
        bytesAt(segments.addresses[i]! + offset, 1)[0]! ^= table[type * COLUMNS + Column.CORRUPT_VALUE]!
        return
      }
      offset -= length
    }
  }

  #finish(child: ChildIo, status: number): void {
    this.#inFlight--
    this.#forwarder.finish(child, status)
  }

  /** Ends those that are asked for, and returns the others. */
  #abortHeld(held: ChildIo[], parent: BdevIo | null): ChildIo[] {
    return held.filter(child => {
      if (parent !== null && child.parent !== parent) return true
      this.#finish(child, Status.ABORTED_BY_REQUEST)
      return false
    })
  }
}

const INJECTION_OF = {
  failure: Injection.FAILURE,
  pending: Injection.PENDING,
  corrupt_data: Injection.CORRUPT_DATA,
  nomem: Injection.NOMEM,
  nvme_failure: Injection.NVME_FAILURE,
} as const

const TYPES_OF = {
  read: [IoType.READ],
  write: [IoType.WRITE],
  unmap: [IoType.UNMAP],
  flush: [IoType.FLUSH],
  // A reset is what ends injected trouble: it always passes.
  all: Object.values(IoType).filter(type => type !== IoType.RESET),
} as const

const injectParams = z.object({
  name: z.string().describe('The filter'),
  io_type: z.enum(['clear', 'read', 'write', 'unmap', 'flush', 'all']).describe('What fails; clear: nothing'),
  error_type: z
    .enum(['failure', 'pending', 'corrupt_data', 'nomem', 'nvme_failure'])
    .describe('How: pending is held until resumed, nomem is tried again'),
  nvme_sct: uint32.max(7).default(0).describe('Status code type, for nvme_failure'),
  nvme_sc: uint32.max(255).default(0).describe('Status code, for nvme_failure'),
  num: uint32.max(0x7fff_ffff).default(1).describe('How many; 0 ends the injection'),
  queue_depth: uint64.default(0).describe('Only while at least so many are outstanding on a reactor'),
  corrupt_offset: uint64.default(0).describe('Which byte of an I/O is changed, for corrupt_data'),
  corrupt_value: uint8.default(0).describe('What it is XORed with, from 1'),
})

function inject(info: BdevInfo, given: z.output<typeof injectParams>): void {
  const { table, left } = info.device as Injections
  if (given.io_type === 'clear') {
    left.fill(0)
    return
  }
  if (given.error_type === 'corrupt_data' && given.corrupt_value === 0) {
    throw new RpcError('EINVAL', `${info.name}: a corrupt_value of 0 changes nothing: give 1 to 255`)
  }
  const status = given.nvme_sct * 256 + given.nvme_sc
  if (given.error_type === 'nvme_failure' && status === 0) {
    throw new RpcError(
      'EINVAL',
      `${info.name}: nvme_sct 0 with nvme_sc 0 is success: give the status to fail with`,
    )
  }
  for (const type of TYPES_OF[given.io_type]) {
    // Nothing is hit while the row changes.
    Atomics.store(left, type, 0)
    table[type * COLUMNS + Column.INJECTION] = INJECTION_OF[given.error_type]
    table[type * COLUMNS + Column.STATUS] = status
    table[type * COLUMNS + Column.QUEUE_DEPTH] = given.queue_depth
    table[type * COLUMNS + Column.CORRUPT_OFFSET] = given.corrupt_offset
    table[type * COLUMNS + Column.CORRUPT_VALUE] = given.corrupt_value
    Atomics.store(left, type, given.num)
  }
}

function errorFilter({ bdevs }: BdevContext, name: string): BdevInfo {
  const info = bdevs.get(name)
  if (info.driver === 'error') return info
  throw new RpcError(
    'ENODEV',
    `${info.name} is a ${info.driver} bdev, not error: bdev_error_create puts EE_${info.name} over it`,
  )
}

const ENODEV = 'no error filter has that name'

export const errorMethods = [
  method({
    name: 'bdev_error_create',
    summary: 'Puts a filter named EE_<base> over a device, by which I/O can be made to fail.',
    params,
    result: done,
    errors: FILTER_ERRORS,
    saves: true,
    cli: { positional: ['base_name'], flags: { uuid: 'u' } },
    async run(given, { bdevs }: BdevContext) {
      await bdevs.create('error', `EE_${bdevs.get(given.base_name).name}`, given)
      return true as const
    },
  }),
  deleteMethod('bdev_error_delete', 'error'),
  method({
    name: 'bdev_error_inject_error',
    summary: 'Lets the next I/Os of a type fail.',
    params: injectParams,
    result: done,
    errors: { ENODEV, EINVAL: 'the injection would change nothing' },
    cli: {
      positional: ['name', 'io_type', 'error_type'],
      flags: { num: 'n', queue_depth: 'q', corrupt_offset: 'o', corrupt_value: 'v' },
    },
    run(given, context: BdevContext) {
      inject(errorFilter(context, given.name), given)
      return true as const
    },
  }),
  method({
    name: 'bdev_error_resume_pending',
    summary: 'Lets go the I/Os that a pending injection holds.',
    params: z.object({ name: z.string().describe('The filter') }),
    result: done,
    errors: { ENODEV },
    cli: { positional: ['name'] },
    async run({ name }, context: BdevContext) {
      await context.bdevs.tell(errorFilter(context, name).name, RESUME)
      return true as const
    },
  }),
]
