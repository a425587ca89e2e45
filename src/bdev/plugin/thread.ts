/**
 * The thread of a user's module: loads it, tells what it is, and calls its functions as requests come. Whatever the user's
 * code does wrong ends as the status of one I/O and a line in the log.
 */
import { existsSync } from 'node:fs'
import { constants } from 'node:os'
import { pathToFileURL } from 'node:url'
import { parentPort, workerData } from 'node:worker_threads'
import { assert } from '../../core/assert.ts'
import { Status } from '../../spec/nvme-status.ts'
import { bytesAt, mapAnonymous, viewAt } from '../../sys/memory.ts'
import { statusFromErrno } from '../errno-status.ts'
import { IoType } from '../io.ts'
import type { PluginDisk, PluginOptions } from './disk.ts'
import { idOf, LANES, type Lane, Lanes, SLOTS, State, stateOf, wordOf } from './lanes.ts'

export interface ThreadData {
  readonly path: string
  readonly options: PluginOptions
  readonly lanes: SharedArrayBuffer
}

/** What the thread tells its host. */
export type ThreadMessage =
  | { readonly kind: 'disk'; readonly description: DiskDescription }
  /** The module is a driver for the reactors themselves: see `defineDriver`. */
  | { readonly kind: 'driver' }
  | { readonly kind: 'refused'; readonly why: string }
  | { readonly kind: 'failed'; readonly why: string }
  | { readonly kind: 'closed' }

export interface DiskDescription {
  readonly name: string | undefined
  readonly uuid: string | undefined
  readonly size: unknown
  readonly blockSize: unknown
  readonly readOnly: boolean
  readonly functions: readonly string[]
}

const FUNCTIONS = ['read', 'write', 'flush', 'trim', 'zero'] as const

assert(parentPort, 'a plugin has a thread of its own')
const host = parentPort
const { path, options, lanes: memory } = workerData as ThreadData
const lanes = new Lanes(memory)
const one = mapAnonymous(4096)
viewAt(one, 8).setUint32(0, 1, true)

const tell = (message: ThreadMessage): void => host.postMessage(message)
const explain = (error: unknown): string =>
  error instanceof Error ? `${error.name}: ${error.message}` : `${typeof error} ${String(error)}`

const MISSING = 'there is no such file; ./NAME is one where you are, NAME one where the daemon runs'

/** For modules that import `qpair/driver` from a directory in whose node_modules there is no qpair. */
const remedyFor = (error: unknown): string =>
  error instanceof Error && error.message.includes("find package 'qpair'")
    ? `; run "npm link qpair" there, after "npm link" in qpair's own directory, or "npm install qpair"`
    : ''

// Code that nobody waits for must not end the thread: the I/O that waits for it ends by its time-out.
process.on('uncaughtException', error =>
  tell({ kind: 'failed', why: `threw outside a call: ${explain(error)}` }),
)
process.on('unhandledRejection', error =>
  tell({ kind: 'failed', why: `rejected a promise: ${explain(error)}` }),
)

const disk = await load()
if (disk !== undefined) {
  host.on('message', async () => {
    await Promise.resolve(disk.close?.()).catch(error => tell({ kind: 'failed', why: explain(error) }))
    tell({ kind: 'closed' })
  })
  await serve(disk)
}

async function load(): Promise<PluginDisk | undefined> {
  try {
    const module = (await import(pathToFileURL(path).href)) as Record<string, unknown>
    const exported = module['default'] ?? module
    if (typeof (exported as { openChannel?: unknown }).openChannel === 'function') {
      tell({ kind: 'driver' })
      return undefined
    }
    const made = typeof exported === 'function' ? await exported(options) : exported
    const found = made as PluginDisk
    tell({
      kind: 'disk',
      description: {
        name: found.name,
        uuid: found.uuid,
        size: found.size,
        blockSize: found.blockSize ?? 512,
        readOnly: found.readOnly === true,
        functions: FUNCTIONS.filter(name => typeof found[name] === 'function'),
      },
    })
    return found
  } catch (error) {
    const why = existsSync(path) ? `${explain(error)}${remedyFor(error)}` : MISSING
    tell({ kind: 'refused', why })
    return undefined
  }
}

/** Looks for requests whenever the doorbell has rung. */
async function serve(disk: PluginDisk): Promise<never> {
  const all = Array.from({ length: LANES }, (_, index) => ({ lane: lanes.lane(index), seen: 0 }))
  for (;;) {
    const rung = lanes.doorbell
    for (const one of all) {
      const { submitted } = one.lane
      if (submitted === one.seen) continue
      one.seen = submitted
      for (let slot = 0; slot < SLOTS; slot++) {
        const word = one.lane.word(slot)
        if (stateOf(word) === State.SUBMITTED) void answer(disk, one.lane, slot, idOf(word))
      }
    }
    await lanes.waitForDoorbell(rung)
  }
}

async function answer(disk: PluginDisk, lane: Lane, slot: number, id: number): Promise<void> {
  const type = lane.typeOf(slot)
  const offset = lane.offsetOf(slot)
  const length = lane.lengthOf(slot)
  const running = wordOf(id, State.RUNNING)
  const locked = wordOf(id, State.LOCKED)
  let data: Uint8Array | undefined
  if (!lane.change(slot, wordOf(id, State.SUBMITTED), locked)) return
  if (type === IoType.WRITE) data = bytesAt(lane.addressOf(slot), length).slice()
  const isFua = lane.isFua(slot)
  lane.change(slot, locked, running)

  let status: number = Status.SUCCESS
  let result: Uint8Array | undefined
  try {
    result = await call(disk, type, offset, length, data)
    if (isFua) await disk.flush?.()
  } catch (error) {
    tell({ kind: 'failed', why: `${nameOf(type)}(${offset}, ${length}) ${explain(error)}` })
    status = statusOfError(error, type === IoType.WRITE)
  }
  // From here to DONE the I/O's memory is ours; if the change fails, the request was given up, and its memory is not.
  if (!lane.change(slot, running, locked)) {
    tell({
      kind: 'failed',
      why: `${nameOf(type)}(${offset}, ${length}) answered too late: the answer is dropped`,
    })
    return
  }
  if (result !== undefined && status === Status.SUCCESS) bytesAt(lane.addressOf(slot), length).set(result)
  lane.setStatus(slot, status)
  lane.change(slot, locked, wordOf(id, State.DONE))
  lane.answer(one)
}

async function call(
  disk: PluginDisk,
  type: number,
  offset: number,
  length: number,
  data: Uint8Array | undefined,
): Promise<Uint8Array | undefined> {
  switch (type) {
    case IoType.READ: {
      const bytes: unknown = await disk.read(offset, length)
      if (!(bytes instanceof Uint8Array)) throw new Error(`returned ${kindOf(bytes)}, not a Uint8Array`)
      if (bytes.length !== length) throw new Error(`returned ${bytes.length} bytes instead of ${length}`)
      return bytes
    }
    case IoType.WRITE:
      await disk.write!(offset, data!)
      return undefined
    case IoType.FLUSH:
      await disk.flush!()
      return undefined
    case IoType.UNMAP:
      await disk.trim!(offset, length)
      return undefined
    default:
      await disk.zero!(offset, length)
      return undefined
  }
}

function nameOf(type: number): string {
  if (type === IoType.READ) return 'read'
  if (type === IoType.WRITE) return 'write'
  if (type === IoType.FLUSH) return 'flush'
  return type === IoType.UNMAP ? 'trim' : 'zero'
}

function kindOf(value: unknown): string {
  return value === null || typeof value !== 'object'
    ? String(value)
    : (value.constructor?.name ?? 'an object')
}

/** An error that carries an errno's name (as those of node:fs do) ends the I/O as that errno would. */
function statusOfError(error: unknown, isWrite: boolean): number {
  const code = (error as { code?: unknown } | null)?.code
  const number = constants.errno[code as keyof typeof constants.errno]
  return number === undefined ? Status.INTERNAL_ERROR : statusFromErrno(number, isWrite)
}
