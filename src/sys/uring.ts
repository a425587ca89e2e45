/**
 * An io_uring driven from TypeScript through its mapped rings.
 *
 *   prepare() writes an entry      enter() publishes the tail,        reap() hands each completion to the
 *   into shared memory      --->   one system call a round     --->   handler whose token it carries
 *
 * The ring belongs to the thread that made it. `DEFER_TASKRUN` keeps the kernel from interrupting that thread: completions
 * appear only inside `enter`, which is asked for when the kernel has flagged that some are due.
 */
import { assert } from '../core/assert.ts'
import { errnoName, SysError } from '../core/errors.ts'
import {
  CQE_SIZE,
  Enter,
  Feature,
  GetEventsArg,
  OFF_SQ_RING,
  OFF_SQES,
  Opcode,
  Params,
  POLL_ADD_MULTI,
  Register,
  ResourceUpdate,
  Setup,
  SQE_SIZE,
  SqFlag,
  SYS_IO_URING_ENTER,
  SYS_IO_URING_REGISTER,
  SYS_IO_URING_SETUP,
  Timespec,
} from '../spec/io-uring.ts'
import { close, mmap, munmap, syscall, viewMemory } from './libc.ts'
import { type Arena, viewAt } from './memory.ts'

const PROT_READ_WRITE = 3
const MAP_SHARED_POPULATE = 0x01 | 0x8000
const SQE_WORDS = SQE_SIZE / 4
const CQE_WORDS = CQE_SIZE / 4
const TWO_32 = 0x1_0000_0000
const EINTR = 4
const EAGAIN = 11
const EBUSY = 16
const ETIME = 62

const OPEN_ATTEMPTS = 20
const OPEN_PAUSE_MS = 50
const NO_MEMORY = 'beyond the limit of locked memory (ulimit -l, or LimitMEMLOCK=infinity in a systemd unit)'

/** Hears of the completions that carry its token. */
export interface RingHandler {
  /** `result`: what the operation returned, or -errno. `flags`: see `CqeFlag`. */
  complete(result: number, flags: number): void
}

export interface UringOptions {
  /** Submission entries, a power of two. */
  readonly entries: number
  /** Completion entries, a power of two: bounds what may be outstanding without the kernel queueing on its own. */
  readonly completions: number
}

export class Uring {
  readonly #fd: number
  readonly #registered: number
  readonly #enterFlags: number
  readonly #entries: number
  readonly #sqMask: number
  readonly #cqMask: number
  readonly #ring: Int32Array
  readonly #sqes: Int32Array
  readonly #mappings: { address: number; size: number }[] = []
  // Word offsets of the shared indexes within the ring's mapping.
  readonly #sqHeadAt: number
  readonly #sqTailAt: number
  readonly #sqFlagsAt: number
  readonly #cqHeadAt: number
  readonly #cqTailAt: number
  readonly #cqesAt: number
  readonly #waitArgument: number
  readonly #waitTime: DataView
  #tail = 0

  readonly #handlers: (RingHandler | null)[] = []
  readonly #freeTokens: number[] = []

  /**
   * A ring, also when what a process that was just killed had locked is not given back yet: that is waited for.
   * Throws `SysError`: ENOSYS or EPERM where io_uring is missing or forbidden, ENOMEM at the limit of locked memory.
   */
  static open(arena: Arena, options: UringOptions): Uring {
    for (let attempt = 1; ; attempt++) {
      try {
        return new Uring(arena, options)
      } catch (error) {
        if (!(error instanceof SysError && error.code === 'ENOMEM')) throw error
        if (attempt === OPEN_ATTEMPTS) throw new SysError(error.call, error.errno, NO_MEMORY)
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, OPEN_PAUSE_MS)
      }
    }
  }

  private constructor(arena: Arena, options: UringOptions) {
    const scratch = arena.allocate(256)
    const params = viewAt(scratch, Params.size)
    Params.flags.set(
      params,
      0,
      Setup.CQSIZE |
        Setup.CLAMP |
        Setup.SUBMIT_ALL |
        Setup.TASKRUN_FLAG |
        Setup.SINGLE_ISSUER |
        Setup.DEFER_TASKRUN,
    )
    Params.cqEntries.set(params, 0, options.completions)
    this.#fd = syscall(SYS_IO_URING_SETUP, options.entries, scratch, 0, 0, 0, 0)
    if (this.#fd < 0) throw new SysError('io_uring_setup', -this.#fd)
    const features = Params.features.get(params, 0)
    const needed = Feature.SINGLE_MMAP | Feature.NODROP | Feature.EXT_ARG
    assert((features & needed) === needed, 'a kernel that has DEFER_TASKRUN has these older features')

    this.#entries = Params.sqEntries.get(params, 0)
    const cqEntries = Params.cqEntries.get(params, 0)
    this.#sqMask = this.#entries - 1
    this.#cqMask = cqEntries - 1
    const ringSize = Math.max(
      Params.sqArray.get(params, 0) + this.#entries * 4,
      Params.cqCqes.get(params, 0) + cqEntries * CQE_SIZE,
    )
    this.#ring = new Int32Array(this.#map(ringSize, OFF_SQ_RING))
    this.#sqes = new Int32Array(this.#map(this.#entries * SQE_SIZE, OFF_SQES))
    this.#sqHeadAt = Params.sqHead.get(params, 0) / 4
    this.#sqTailAt = Params.sqTail.get(params, 0) / 4
    this.#sqFlagsAt = Params.sqFlags.get(params, 0) / 4
    this.#cqHeadAt = Params.cqHead.get(params, 0) / 4
    this.#cqTailAt = Params.cqTail.get(params, 0) / 4
    this.#cqesAt = Params.cqCqes.get(params, 0) / 4
    const array = Params.sqArray.get(params, 0) / 4
    for (let i = 0; i < this.#entries; i++) this.#ring[array + i] = i

    this.#waitArgument = arena.allocate(GetEventsArg.size)
    const waitTime = arena.allocate(Timespec.size)
    this.#waitTime = viewAt(waitTime, Timespec.size)
    GetEventsArg.sigmaskSize.set(viewAt(this.#waitArgument, GetEventsArg.size), 0, 8)
    GetEventsArg.timespec.set(viewAt(this.#waitArgument, GetEventsArg.size), 0, waitTime)

    const update = viewAt(scratch + 128, ResourceUpdate.size)
    ResourceUpdate.offset.set(update, 0, 0xffff_ffff)
    ResourceUpdate.data.set(update, 0, this.#fd)
    const count = syscall(SYS_IO_URING_REGISTER, this.#fd, Register.RING_FDS, scratch + 128, 1, 0, 0)
    const isRegistered = count === 1
    this.#registered = isRegistered ? ResourceUpdate.offset.get(update, 0) : this.#fd
    this.#enterFlags = isRegistered ? Enter.REGISTERED_RING : 0
    // Token 0 is for operations whose end interests nobody (cancellations).
    this.register({ complete() {} })
  }

  /** The token by which completions find `handler`. */
  register(handler: RingHandler): number {
    const token = this.#freeTokens.pop() ?? this.#handlers.length
    this.#handlers[token] = handler
    return token
  }

  /** Nothing that carries the token may be outstanding. */
  unregister(token: number): void {
    this.#handlers[token] = null
    this.#freeTokens.push(token)
  }

  /**
   * Writes one entry. `offset`, `address` and `length` are the entry's `off`, `addr` and `len`, whatever the operation
   * makes of them; `operationFlags` its `rw_flags`, `msg_flags` …; `priority` its `ioprio`. The entry goes to the kernel
   * with the next `enter`; if the queue is full, it is emptied first.
   */
  prepare(
    opcode: number,
    fd: number,
    offset: number,
    address: number,
    length: number,
    operationFlags: number,
    token: number,
    priority = 0,
  ): void {
    if (this.#pending() >= this.#entries) {
      this.#submit(0)
      assert(this.#pending() < this.#entries, 'the kernel takes entries from a full queue')
    }
    const sqes = this.#sqes
    const at = (this.#tail & this.#sqMask) * SQE_WORDS
    sqes[at] = opcode | (priority << 16)
    sqes[at + 1] = fd
    sqes[at + 2] = offset | 0
    sqes[at + 3] = (offset / TWO_32) | 0
    sqes[at + 4] = address | 0
    sqes[at + 5] = (address / TWO_32) | 0
    sqes[at + 6] = length | 0
    sqes[at + 7] = operationFlags
    sqes[at + 8] = token
    sqes[at + 9] = 0
    sqes[at + 10] = 0
    sqes[at + 11] = 0
    sqes[at + 12] = 0
    sqes[at + 13] = 0
    this.#tail = (this.#tail + 1) | 0
  }

  /** Arms a poll for readability that stays armed: its handler hears one completion for each event. */
  pollReadable(fd: number, token: number): void {
    const POLLIN = 1
    this.prepare(Opcode.POLL_ADD, fd, 0, 0, POLL_ADD_MULTI, POLLIN, token)
  }

  /** Asks the kernel to end the operation that carries `token`; its own completion tells how it ended. */
  cancel(token: number): void {
    this.prepare(Opcode.ASYNC_CANCEL, -1, 0, token, 0, 0, 0)
  }

  /** Hands every completion that is there to its handler. Returns how many. */
  reap(): number {
    const ring = this.#ring
    const head = ring[this.#cqHeadAt]!
    const count = (Atomics.load(ring, this.#cqTailAt) - head) | 0
    if (count === 0) return 0
    const handlers = this.#handlers
    for (let i = 0; i < count; i++) {
      const at = this.#cqesAt + ((head + i) & this.#cqMask) * CQE_WORDS
      const handler = handlers[ring[at]!]
      assert(handler, 'a completion carries the token of a registered handler')
      handler.complete(ring[at + 2]!, ring[at + 3]!)
    }
    Atomics.store(ring, this.#cqHeadAt, (head + count) | 0)
    return count
  }

  /** Gives what was prepared to the kernel and lets it post what is due. No system call when there is neither. */
  enter(): void {
    const pending = this.#pending()
    const due = Atomics.load(this.#ring, this.#sqFlagsAt) & (SqFlag.TASKRUN | SqFlag.CQ_OVERFLOW)
    if (pending > 0 || due !== 0) this.#submit(Enter.GETEVENTS)
  }

  /** Blocks until something completes, for at most `timeoutUs`. */
  wait(timeoutUs: number): void {
    if (Atomics.load(this.#ring, this.#cqTailAt) !== this.#ring[this.#cqHeadAt]) return
    Timespec.seconds.set(this.#waitTime, 0, Math.floor(timeoutUs / 1e6))
    Timespec.nanoseconds.set(this.#waitTime, 0, Math.floor(timeoutUs % 1e6) * 1000)
    Atomics.store(this.#ring, this.#sqTailAt, this.#tail)
    const pending = this.#pending()
    const flags = this.#enterFlags | Enter.GETEVENTS | Enter.EXT_ARG
    const result = syscall(
      SYS_IO_URING_ENTER,
      this.#registered,
      pending,
      1,
      flags,
      this.#waitArgument,
      GetEventsArg.size,
    )
    checkEntered(result)
  }

  /** Lets the ring's kernel workers run on the processors in the bit mask at `mask`. Best effort. */
  setWorkerAffinity(mask: number, sizeBytes: number): void {
    syscall(SYS_IO_URING_REGISTER, this.#fd, Register.IOWQ_AFF, mask, sizeBytes, 0, 0)
  }

  /** Ends the ring and everything outstanding in it. */
  close(): void {
    close(this.#fd)
    for (const { address, size } of this.#mappings) munmap(address, size)
  }

  /** Entries that the kernel has not taken yet. */
  #pending(): number {
    return (this.#tail - Atomics.load(this.#ring, this.#sqHeadAt)) | 0
  }

  #submit(flags: number): void {
    Atomics.store(this.#ring, this.#sqTailAt, this.#tail)
    const pending = this.#pending()
    const result = syscall(SYS_IO_URING_ENTER, this.#registered, pending, 0, this.#enterFlags | flags, 0, 0)
    checkEntered(result)
  }

  #map(size: number, offset: number): ArrayBuffer {
    const address = mmap(0, size, PROT_READ_WRITE, MAP_SHARED_POPULATE, this.#fd, offset)
    if (address < 0) throw new SysError('mmap', -address, 'of an io_uring')
    this.#mappings.push({ address, size })
    return viewMemory(address, size)
  }
}

/**
 * Asserts that `io_uring_enter` worked or came back early: what is not taken now (a full completion queue, a signal, no
 * memory) stays in the queue for the next round. The message is made only when it is needed, since made each time it would be
 * most of a reactor's garbage.
 */
function checkEntered(result: number): void {
  if (result >= 0 || result === -ETIME || result === -EINTR || result === -EBUSY || result === -EAGAIN) return
  assert(false, `io_uring_enter works, instead of ${errnoName(-result)}`)
}
