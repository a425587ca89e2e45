/**
 * Disks and drivers written by users.
 *
 * A disk is a module with `read` and perhaps `write`, `flush`, `trim` and `zero` (`plugin/disk.ts`): `bdev_plugin_create`
 * runs it in a thread of its own. A driver is a module whose default export is a `defineDriver(…)`: it is loaded by
 * `--plugin` into every reactor, and `bdev_driver_create` makes devices of it.
 */
import { basename, extname, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, uint32, uuid } from '../../rpc/params.ts'
import { type AnyDriver, type BdevInfo, type DriverControl, defineDriver } from '../bdev.ts'
import { checkGeometry } from '../geometry.ts'
import { IoType } from '../io.ts'
import { type BdevContext, CREATE_ERRORS, deleteMethod } from '../method.ts'
import { PluginChannel, type PluginDevice } from '../plugin/channel.ts'
import { PluginThread } from '../plugin/host.ts'
import type { DiskDescription } from '../plugin/thread.ts'
import { deriveUuid } from '../uuid.ts'
import { mediumIdentity } from './file-identity.ts'

const DEFAULT_TIMEOUT_MS = 10_000

const params = z.object({
  filename: z.string().min(1).describe('The module: a .js or .mjs file'),
  options: z
    .record(z.string(), z.unknown())
    .optional()
    .describe('For the module, when it exports a function'),
  timeout_ms: uint32.min(1).default(DEFAULT_TIMEOUT_MS).describe('An I/O fails that takes longer'),
  uuid: uuid.optional().describe('By default what the module says, or derived from its path and options'),
})

type Params = z.output<typeof params>

export const pluginDriver = defineDriver({
  name: 'plugin',
  summary: "A disk made of a user's JavaScript functions.",
  params,
  create,
  openChannel: (info, { reactor }) => new PluginChannel(info, reactor),
  destroy: info =>
    threads
      .get(info.name)
      ?.close()
      .finally(() => threads.delete(info.name)),
})

interface Started {
  readonly thread: PluginThread
  readonly found: DiskDescription
}

/** Threads of the devices that exist, by the device's name. */
const threads = new Map<string, PluginThread>()
/** Modules that were loaded to see what they are, and that a device is about to be made of. */
const prepared = new Map<string, Started>()

const keyOf = (path: string, options: unknown): string => `${path}\0${JSON.stringify(options ?? {})}`

/** The disk in a module, loaded unless it was just looked at. */
async function start(path: string, options: Params['options']): Promise<Started> {
  const key = keyOf(path, options)
  const ready = prepared.get(key)
  prepared.delete(key)
  if (ready !== undefined) return ready
  const { thread, found } = await PluginThread.start(path, options ?? {})
  if (found !== 'driver') return { thread, found }
  await thread.close()
  throw new RpcError(
    'EINVAL',
    `${path} is a driver, not a disk: load it with qpair serve --plugin ${path}, then use bdev_driver_create`,
  )
}

async function create(name: string, given: Params, control: DriverControl): Promise<BdevInfo> {
  const path = resolve(given.filename)
  const { thread, found } = await start(path, given.options)
  try {
    const identity =
      found.uuid ?? deriveUuid('plugin', ...(await mediumIdentity(path)), keyOf('', given.options))
    const info = describe(name, path, given, found, identity, thread.memory)
    threads.set(name, thread)
    // The reactors that have something outstanding must look at once; the others find the mark when they look.
    thread.onDeath = () => void control.tell(name, 'dead').catch(() => {})
    return info
  } catch (error) {
    await thread.close()
    throw error
  }
}

const TYPE_OF = {
  write: IoType.WRITE,
  flush: IoType.FLUSH,
  trim: IoType.UNMAP,
  zero: IoType.WRITE_ZEROES,
} as const

function describe(
  name: string,
  path: string,
  given: Params,
  found: DiskDescription,
  identity: string,
  memory: SharedArrayBuffer,
): BdevInfo {
  const { size, blockSize, functions } = found
  const refuse = (why: string): never => {
    throw new RpcError('EINVAL', `the plugin ${path} is no disk: ${why}`)
  }
  if (!functions.includes('read')) refuse('it exports no function read(offset, length)')
  if (typeof blockSize !== 'number') return refuse(`its blockSize is ${String(blockSize)}, not a number`)
  if (typeof size !== 'number') return refuse(`its size is ${String(size)}, not a number of bytes`)
  if (!Number.isSafeInteger(size / blockSize)) {
    refuse(`its size of ${size} bytes is no whole number of blocks of ${blockSize} bytes`)
  }
  checkGeometry(name, blockSize, size / blockSize)
  const readOnly = found.readOnly || !functions.includes('write')
  const supports: IoType[] = [IoType.READ]
  for (const [fn, type] of Object.entries(TYPE_OF)) if (functions.includes(fn)) supports.push(type)
  const device: PluginDevice = { memory, path, timeoutMs: given.timeout_ms }
  return {
    name,
    aliases: [],
    driver: 'plugin',
    product: 'Plugin disk',
    uuid: given.uuid ?? uuid.parse(identity),
    blockSize,
    physicalBlockSize: blockSize,
    blockCount: size / blockSize,
    supports: new Set(supports),
    writeCache: functions.includes('flush'),
    readOnly,
    bases: [],
    device,
    driverSpecific: {
      plugin: { filename: path, options: given.options ?? {}, timeout_ms: given.timeout_ms },
    },
  }
}

/** What the modules of `--plugin` are. Disks stay loaded for the `bdev_plugin_create` that is to follow. */
export async function classifyPlugins(
  paths: readonly string[],
): Promise<{ readonly drivers: string[]; readonly disks: string[] }> {
  const drivers: string[] = []
  const disks: string[] = []
  for (const path of paths.map(one => resolve(one))) {
    const { thread, found } = await PluginThread.start(path, {})
    if (found === 'driver') {
      drivers.push(path)
      await thread.close()
    } else {
      disks.push(path)
      prepared.set(keyOf(path, undefined), { thread, found })
    }
  }
  return { drivers, disks }
}

/** Makes the devices of `--plugin`, except those that a saved configuration has made already. */
export async function createPluginDisks({ bdevs }: BdevContext, paths: readonly string[]): Promise<void> {
  const isThere = (path: string): boolean =>
    bdevs.list().some(({ driver, device }) => driver === 'plugin' && (device as PluginDevice).path === path)
  for (const path of paths) {
    if (!isThere(path)) await createDisk({ bdevs }, undefined, { filename: path })
    await prepared.get(keyOf(path, undefined))?.thread.close()
    prepared.delete(keyOf(path, undefined))
  }
}

async function createDisk(
  { bdevs }: BdevContext,
  name: string | undefined,
  given: z.input<typeof params>,
): Promise<string> {
  const path = resolve(given.filename)
  const started = await start(path, given.options)
  prepared.set(keyOf(path, given.options), started)
  const fallback = basename(path, extname(path)).replace(/[^\w.-]/g, '_')
  try {
    const info = await bdevs.create('plugin', name ?? started.found.name ?? fallback, {
      ...given,
      filename: path,
    })
    return info.name
  } finally {
    // Still there when the device was refused before its driver was asked.
    if (prepared.delete(keyOf(path, given.options))) await started.thread.close()
  }
}

/** The driver that a module exports. Every thread loads it for itself, since functions do not travel. */
export async function loadUserDriver(path: string): Promise<AnyDriver> {
  const module = (await import(pathToFileURL(path).href)) as { default: AnyDriver }
  const driver = module.default
  for (const [member, type] of [
    ['name', 'string'],
    ['params', 'object'],
    ['create', 'function'],
  ] as const) {
    if (typeof driver[member] === type) continue
    throw new RpcError(
      'EINVAL',
      `the plugin ${path} is no driver: its default export has no ${member} (${type})`,
    )
  }
  return {
    ...driver,
    config: (info: BdevInfo, given: never) => [
      {
        method: 'bdev_driver_create',
        params: { driver: driver.name, name: info.name, params: given },
      },
    ],
  }
}

export const pluginMethods = [
  method({
    name: 'bdev_plugin_create',
    summary: "Makes a disk of a user's JavaScript module.",
    params: z.object({
      name: z.string().min(1).optional().describe("Its name; by default the module's, or the file's"),
      ...params.shape,
    }),
    result: z.string().describe('The name'),
    errors: { ...CREATE_ERRORS, EINVAL: 'the module cannot be loaded, or is no disk' },
    saves: true,
    cli: { positional: ['filename'], flags: { name: 'b' } },
    run: ({ name, ...rest }, context: BdevContext) => createDisk(context, name, rest),
  }),
  deleteMethod('bdev_plugin_delete', 'plugin'),
  method({
    name: 'bdev_driver_create',
    summary: 'Makes a device of a driver that was loaded with --plugin.',
    params: z.object({
      driver: z.string().describe("The driver's name"),
      name: z.string().min(1).describe("The device's name"),
      params: z.record(z.string(), z.unknown()).default({}).describe("The driver's own parameters"),
    }),
    result: z.string().describe('The name'),
    errors: { ...CREATE_ERRORS, ENOENT: 'no driver has that name' },
    saves: true,
    cli: { positional: ['driver', 'name'] },
    async run({ driver, name, params: given }, { bdevs }: BdevContext) {
      if (!bdevs.driverNames.includes(driver)) {
        throw new RpcError(
          'ENOENT',
          `there is no driver ${driver}, there are ${bdevs.driverNames.join(', ')}: load it with qpair serve --plugin FILE`,
        )
      }
      return (await bdevs.create(driver, name, given)).name
    },
  }),
  method({
    name: 'bdev_driver_delete',
    summary: 'Removes a device, whatever its driver, under whatever uses it.',
    params: z.object({ name: z.string().describe('The device') }),
    result: done,
    errors: { ENODEV: 'no device has that name' },
    saves: true,
    cli: { positional: ['name'], commands: ['bdev delete'] },
    async run({ name }, { bdevs }: BdevContext) {
      await bdevs.remove(name)
      return true as const
    },
  }),
]
