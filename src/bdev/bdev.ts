/**
 * The contract that everything implements (drivers), wraps (filters) or serves (NVMe-oF, NBD, vhost).
 *
 * A device has two sides. The control thread holds a `BdevInfo`: plain data, cloned to every reactor. Each reactor opens
 * a channel of its own to it, so the data path shares nothing and needs no lock. A driver is one object with a function
 * for each side:
 *
 *   control thread                            reactor n
 *   create(name, params) -> BdevInfo  ---->   openChannel(info, reactor) -> DriverChannel
 *   destroy(info)                             submit(io) … io.complete(status) … close()
 */
import type { z } from 'zod'
import type { Reactor } from '../reactor/reactor.ts'
import type { MethodCall } from '../rpc/config.ts'
import type { Channel } from './channel.ts'
import type { Extents } from './extents.ts'
import type { BdevIo, IoType } from './io.ts'

/** A block device as plain data. What changes (size) is changed in place, by the registry only. */
export interface BdevInfo {
  readonly name: string
  readonly aliases: readonly string[]
  /** The driver's name: `null`, `aio`, `nvme` … */
  readonly driver: string
  /** As `product_name` in `bdev_get_bdevs`: `Null disk`, `Malloc disk`, `AIO disk` … */
  readonly product: string
  readonly uuid: string
  /** In bytes: a power of two, 512 to 65536. */
  readonly blockSize: number
  /** In bytes: what the medium writes as one, at least `blockSize`. */
  readonly physicalBlockSize: number
  blockCount: number
  /** What the driver does itself. The channel emulates compare, compare-and-write and write zeroes with the rest. */
  readonly supports: ReadonlySet<IoType>
  /** What hosts are advised to keep to, in blocks; 0 or absent for no advice. */
  readonly preferred?: Preferred
  /** True when a completed write may be lost on power failure until a flush: hosts are told of a volatile cache. */
  readonly writeCache: boolean
  /** Present when there is one. A filter has what its base has. */
  readonly privateCache?: PrivateCache
  readonly readOnly: boolean
  /** Names of the devices underneath: a filter's base. They are claimed, and their removal removes this device. */
  readonly bases: readonly string[]
  /** The driver's own: whatever its channels need (a file descriptor, an address). Cloned to the reactors. */
  readonly device: unknown
  /** As `driver_specific` in `bdev_get_bdevs`. */
  readonly driverSpecific: Readonly<Record<string, unknown>>
}

/**
 * A cache in this process's memory in front of data that other gateways may serve as well. Writes that are completed and only
 * there go with the process; a host that goes on elsewhere is not told, and its next flush succeeds there. Reads that are
 * answered from there do not see what was changed elsewhere.
 */
export interface PrivateCache {
  /** How much it holds back at most until a flush; 0 when it writes through. */
  readonly heldBytesMax: number
  /** For messages: what it is, and by whose word. */
  readonly what: string
  /** For messages, an instruction: how to be rid of it. */
  readonly remedy: string
}

/** In blocks, 0 for no advice. */
export interface Preferred {
  readonly writeAlignment: number
  readonly writeGranularity: number
  /** How much to write at once. */
  readonly writeSize: number
  readonly unmapAlignment: number
  readonly unmapGranularity: number
}

/** A driver's end of a channel. All calls come from the reactor's own thread. */
export interface DriverChannel {
  /**
   * Starts an I/O whose range is already checked and whose type the device supports, and completes it exactly once.
   * Never completes it inside this call in a way that the owner could see: `complete` queues.
   */
  submit(io: BdevIo): void
  /**
   * Asks for the early end of an outstanding I/O, or of all when `io` is null. What can be stopped is completed with
   * `ABORTED_BY_REQUEST`; what cannot completes in its own time. A device whose I/O could be outstanding for ever
   * (delay, a lost path) must end it here. An I/O that is not the device's own is ignored.
   */
  abort(io: BdevIo | null): void
  /**
   * True when a READ may be submitted with an empty segment list: the device then points the list at its own memory, and
   * the data stays there until `Channel.release`. This is how memory reaches a socket without a copy.
   */
  readonly lends: boolean
  /** What a READ lent is not looked at any more: its segments are those that the device gave it. */
  released?(io: BdevIo): void
  /**
   * Tells which parts of a range, already checked, are holes: at once, so only a device that has this at hand does.
   * When absent, everything counts as allocated.
   */
  extents?(firstBlock: number, blockCount: number, extents: Extents): void
  /** Hears what the driver's control side says by `BdevRegistry.tell`, which waits for what is not done at once. */
  tell?(message: unknown): Promise<void> | void
  /** Nothing is outstanding any more. */
  close(): void
}

/** What a driver or a filter may use on the reactor. */
export interface ChannelContext {
  readonly reactor: Reactor
  /** Opens a channel to another device (a filter's base). Throws `RpcError` ENODEV when there is none of that name. */
  open(name: string): Channel
  close(channel: Channel): void
}

export interface Driver<Params = unknown> {
  /** Names the methods `bdev_<name>_create` and `bdev_<name>_delete`. */
  readonly name: string
  /** One sentence, for help and reference. */
  readonly summary: string
  readonly params: z.ZodType<Params>
  /** On the control thread. Throws `RpcError` with the object, both values and the remedy. */
  create(name: string, params: Params, control: DriverControl): Promise<BdevInfo> | BdevInfo
  /** On the reactor that is to use the device. */
  openChannel(info: BdevInfo, context: ChannelContext): DriverChannel
  /** A filter's number of blocks after its base has changed its own. When absent, the filter keeps its size. */
  sizeOver?(base: BdevInfo, info: BdevInfo): number
  /** On the control thread, after every channel is closed. */
  destroy?(info: BdevInfo): Promise<void> | void
  /**
   * The calls that would recreate a device that was made with `params`. When absent, `bdev_<driver>_create` with its
   * name, the parameters and its uuid.
   */
  config?(info: BdevInfo, params: Params): MethodCall[]
}

/** A driver among others, whatever its parameters: only who has parsed them with `params` may call `create`. */
export interface AnyDriver extends Omit<Driver<never>, 'params'> {
  readonly params: z.ZodType
}

/** What a driver's control side may use. */
export interface DriverControl {
  /** The device of that name; throws `RpcError` ENODEV naming the ones there are. */
  get(name: string): BdevInfo
  /** Sends a message to the channels of a device on all reactors: see `DriverChannel.tell`. */
  tell(name: string, message: unknown): Promise<void>
}

/** Declares a driver; only here so that its parameters' type is inferred. */
export function defineDriver<Params>(driver: Driver<Params>): Driver<Params> {
  return driver
}
