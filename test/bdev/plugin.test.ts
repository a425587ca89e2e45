/** Users' modules, in their real thread: the worker can only run what was compiled, so the drivers come from `dist/`. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Channel } from '../../src/bdev/channel.ts'
import { IoType } from '../../src/bdev/io.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { doIo, type IoRequest, PendingIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

const compiled = <T>(path: string): Promise<T> => import(new URL(`../../dist/${path}`, import.meta.url).href)
const { drivers } = await compiled<typeof import('../../src/bdev/drivers/index.ts')>('bdev/drivers/index.js')
const { pluginMethods, classifyPlugins, createPluginDisks, loadUserDriver } =
  await compiled<typeof import('../../src/bdev/drivers/plugin.ts')>('bdev/drivers/plugin.js')
const { logSettings } = await compiled<typeof import('../../src/core/log.ts')>('core/log.js')

/** The smallest whole disk, with everything that can be left out. */
const MEMORY = `
  const memory = new Uint8Array(64 * 1024)
  export const size = memory.length
  export async function read(offset, length) { return memory.subarray(offset, offset + length) }
  export function write(offset, data) { memory.set(data, offset) }
  export function trim() {}
  export async function zero(offset, length) { memory.fill(0, offset, offset + length) }
  export async function flush() {}
`

let reactors: LocalReactorGroup
let bdevs: BdevRegistry
let local: ReactorBdevs
let directory: string
let lines: string[]

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-plugin-'))
  reactors = new LocalReactorGroup({ ring: true, time: 'real' })
  bdevs = new BdevRegistry(reactors, drivers)
  local = new ReactorBdevs(reactors.reactors[0]!, drivers)
  lines = []
  logSettings.write = line => void lines.push(line)
})

afterEach(async () => {
  for (const { name } of bdevs.list()) await reactors.run(bdevs.remove(name))
  reactors.close()
  rmSync(directory, { recursive: true })
})

function module(text: string, name = 'my-disk.mjs'): string {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}

async function open(text: string, params: object = {}): Promise<Channel> {
  await reactors.run(bdevs.create('plugin', 'p0', { filename: module(text), ...params }))
  return local.open('p0')
}

const run = (channel: Channel, request: IoRequest) => doIo(reactors, channel, request)
const readStatus = async (text: string, params: object = {}): Promise<number> =>
  (await run(await open(text, params), { type: IoType.READ, blockCount: 8 })).status

/** Waits for a line of the log, which the thread sends by message. */
async function line(part: string): Promise<string> {
  await reactors.until(() => lines.some(text => text.includes(part)))
  return lines.find(text => text.includes(part))!
}

describe('a disk written by a user', () => {
  it('reads what was written, in one segment and in many', async () => {
    const channel = await open(MEMORY)
    const data = new Uint8Array(8192).map((_, i) => i * 7)
    const at = { firstBlock: 16, blockCount: 16 }
    expect((await run(channel, { type: IoType.WRITE, ...at, data, segments: 5, fua: true })).status).toBe(0)
    expect((await run(channel, { type: IoType.READ, ...at, segments: 3 })).data).toEqual(data)
    expect((await run(channel, { type: IoType.READ, ...at })).data).toEqual(data)
  })

  it('keeps many requests apart that are outstanding at once', async () => {
    const channel = await open(`
      export const size = 1 << 20
      export async function read(offset, length) {
        if (offset % 1024 === 0) await new Promise(setImmediate)
        return new Uint8Array(length).fill(offset / 512)
      }`)
    const all = Array.from(
      { length: 500 },
      (_, i) => new PendingIo(channel, { type: IoType.READ, firstBlock: i % 200, blockCount: 1 }),
    )
    await reactors.until(() => all.every(one => one.isDone))
    expect(all.every(one => one.statuses.length === 1 && one.status === 0)).toBe(true)
    expect(all.map(one => one.data[511])).toEqual(all.map((_, i) => i % 200))
  })

  it('is what its functions are: read only without write, a cache with flush', async () => {
    await open(
      'export default options => ({ size: options.size, blockSize: 4096, read: (_, n) => new Uint8Array(n) })',
      {
        options: { size: 40960 },
      },
    )
    expect(bdevs.get('p0')).toMatchObject({
      readOnly: true,
      writeCache: false,
      blockSize: 4096,
      blockCount: 10,
    })
    const write = { type: IoType.WRITE, blockCount: 1 }
    expect((await run(local.open('p0'), write)).status).toBe(Status.NAMESPACE_WRITE_PROTECTED)
  })

  it.each([
    ['an exception', 'throw new TypeError("oh")', 'read(0, 4096) TypeError: oh'],
    ['an exception that is no Error', 'throw null', 'read(0, 4096) object null'],
    ['a rejection', 'return Promise.reject(new Error("no"))', 'read(0, 4096) Error: no'],
    ['a wrong length', 'return new Uint8Array(length - 1)', 'returned 4095 bytes instead of 4096'],
    ['a wrong type', 'return "text"', 'returned text, not a Uint8Array'],
    ['nothing', '', 'returned undefined, not a Uint8Array'],
  ])('fails only the I/O on %s, and names the file', async (_, body, message) => {
    const channel = await open(`let calls = 0
      export const size = 65536
      export function read(offset, length) { if (calls++ > 0) return new Uint8Array(length); ${body} }`)
    const read = { type: IoType.READ, blockCount: 8 }
    expect((await run(channel, read)).status).toBe(Status.INTERNAL_ERROR)
    expect(await line(message)).toContain(join(directory, 'my-disk.mjs'))
    expect((await run(channel, read)).status).toBe(Status.SUCCESS)
  })

  it('ends an I/O with the status of the errno that its function threw', async () => {
    const body = "throw Object.assign(new Error('full'), { code: 'ENOSPC' })"
    const channel = await open(
      `${MEMORY.replace(/export function write[^}]*}/, `export function write() { ${body} }`)}`,
    )
    expect((await run(channel, { type: IoType.WRITE, blockCount: 1 })).status).toBe(Status.CAPACITY_EXCEEDED)
  })

  it('fails an I/O that is not answered in time, and drops the late answer', async () => {
    const channel = await open(
      `let late, calls = 0
       export const size = 65536
       export function read(offset, length) {
         if (calls++ === 0) return new Promise(resolve => { late = () => resolve(new Uint8Array(length).fill(0xee)) })
         late()
         return new Uint8Array(length).fill(1)
       }`,
      { timeout_ms: 40 },
    )
    const first = new PendingIo(channel, { type: IoType.READ, blockCount: 8 })
    await reactors.until(() => first.isDone)
    expect(first.status).toBe(Status.INTERNAL_ERROR)
    expect(await line('did not answer within 40 ms')).toContain('my-disk.mjs')
    expect((await run(channel, { type: IoType.READ, blockCount: 8 })).data).toEqual(
      new Uint8Array(4096).fill(1),
    )
    await line('answered too late')
    expect(first.data.every(byte => byte === 0)).toBe(true)
    expect(first.statuses).toHaveLength(1)
  })

  it('stalls nobody else while user code loops', async () => {
    await bdevs.create('malloc', 'm0', { block_size: 512, num_blocks: 64 })
    const looping = 'export const size = 65536\nexport function read() { for (;;); }'
    expect(await readStatus(looping, { timeout_ms: 40 })).toBe(Status.INTERNAL_ERROR)
    expect((await run(local.open('m0'), { type: IoType.READ, blockCount: 1 })).status).toBe(Status.SUCCESS)
  })

  it('fails every I/O when its thread ends, and can still be removed', async () => {
    const text = 'export const size = 65536\nexport function read() { process.exit(3) }'
    expect(await readStatus(text)).toBe(Status.INTERNAL_ERROR)
    expect(await line('its thread ended with code 3')).toContain('my-disk.mjs')
    expect((await run(local.open('p0'), { type: IoType.READ, blockCount: 1 })).status).toBe(
      Status.INTERNAL_ERROR,
    )
    await reactors.run(bdevs.remove('p0'))
  })

  it('ends what is outstanding when it is removed', async () => {
    const channel = await open('export const size = 65536\nexport const read = () => new Promise(() => {})')
    const all = Array.from(
      { length: 300 },
      () => new PendingIo(channel, { type: IoType.READ, blockCount: 1 }),
    )
    await reactors.run(bdevs.remove('p0'))
    reactors.settle()
    expect(all.every(one => one.statuses.length === 1 && one.status === Status.ABORTED_BY_REQUEST)).toBe(true)
  })

  it.each([
    ['export const size = 65536', 'it exports no function read(offset, length)'],
    ['export const read = () => {}', 'its size is undefined, not a number of bytes'],
    [
      'export const size = 1000; export const read = () => {}',
      'its size of 1000 bytes is no whole number of blocks of 512 bytes',
    ],
    ['export const size = 600, blockSize = 600; export const read = () => {}', 'use a power of two from 512'],
    ['const a =', 'SyntaxError'],
    ['throw new Error("not today")', 'not today'],
    ['import "./nothing.js"', 'Cannot find module'],
    ['process.exit(1)', 'ended with code 1'],
  ])('refuses a module that is no disk: %s', async (text, message) => {
    await expect(open(text)).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining(message),
    })
    expect(bdevs.list()).toEqual([])
    expect(lines.join('')).not.toContain('every I/O fails')
  })

  it('refuses a path that leads nowhere, and says where paths begin', async () => {
    const filename = join(directory, 'nothing.mjs')
    await expect(reactors.run(bdevs.create('plugin', 'p0', { filename }))).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringMatching(
        `^the plugin ${filename} cannot be used: there is no such file; ./NAME is`,
      ),
    })
  })

  it('is named by the module, or after its file, and is made only once', async () => {
    const named = module(`export const name = 'web0'\n${MEMORY}`, 'named.mjs')
    const plain = module(MEMORY, 'my disk.mjs')
    const { disks } = await classifyPlugins([named, plain])
    await createPluginDisks({ bdevs }, disks)
    await createPluginDisks({ bdevs }, disks)
    expect(bdevs.list().map(({ name }) => name)).toEqual(['web0', 'my_disk'])
  })

  it('is saved with what it was made of', async () => {
    const filename = module(MEMORY)
    const create = pluginMethods.find(one => one.name === 'bdev_plugin_create')!
    const params = { filename, options: { url: 'x' }, timeout_ms: 500 }
    const run = create.run as (params: unknown, context: object) => Promise<string>
    expect(await run(params, { bdevs })).toBe('my-disk')
    expect(bdevs.config()).toEqual([
      {
        method: 'bdev_plugin_create',
        params: { name: 'my-disk', ...params, uuid: bdevs.get('my-disk').uuid },
      },
    ])
  })
})

describe('the guide', () => {
  const guide = readFileSync(new URL('../../docs/guides/write-a-driver.md', import.meta.url), 'utf8')
  /** The code block that begins with its file's name; the package is not installed where the test writes it. */
  const block = (name: string): string => {
    const code = guide
      .split('```')
      .find(text => text.startsWith(`js\n// ${name}\n`))!
      .slice(2)
    return code.replace('qpair/driver', new URL('../../dist/driver.js', import.meta.url).href)
  }

  it('begins with a whole disk', async () => {
    const channel = await open(block('my-disk.js'))
    const data = new Uint8Array(4096).fill(9)
    expect((await run(channel, { type: IoType.WRITE, firstBlock: 8, blockCount: 8, data })).status).toBe(0)
    expect((await run(channel, { type: IoType.READ, firstBlock: 8, blockCount: 8 })).data).toEqual(data)
  })

  it('has a whole driver', async () => {
    const all = [...drivers, await loadUserDriver(module(block('zero.js')))]
    bdevs = new BdevRegistry(reactors, all)
    local = new ReactorBdevs(reactors.reactors[0]!, all)
    await bdevs.create('zero', 'z0', { num_blocks: 8 })
    expect((await run(local.open('z0'), { type: IoType.READ, blockCount: 8 })).status).toBe(Status.SUCCESS)
  })
})

describe('a driver written by a user', () => {
  it('runs on the reactors, with the contract of the built-in ones', async () => {
    const path = module(
      `import { defineDriver, deriveUuid, IoType, memset, Status, z } from '${new URL('../../dist/driver.js', import.meta.url).href}'
       export default defineDriver({
         name: 'ones',
         summary: 'Reads ones.',
         params: z.object({ blocks: z.int() }),
         create: (name, { blocks }) => ({
           name, aliases: [], driver: 'ones', product: 'Ones', uuid: deriveUuid('ones', name), blockSize: 512,
           physicalBlockSize: 512, blockCount: blocks, supports: new Set([IoType.READ]), writeCache: false,
           readOnly: true, bases: [], device: 0xff, driverSpecific: {},
         }),
         openChannel: info => ({
           lends: false,
           submit(io) {
             for (let i = 0; i < io.segments.count; i++) memset(io.segments.addresses[i], info.device, io.segments.lengths[i])
             io.complete(Status.SUCCESS)
           },
           abort() {},
           close() {},
         }),
       })`,
    )
    expect(await classifyPlugins([path])).toEqual({ drivers: [path], disks: [] })
    const all = [...drivers, await loadUserDriver(path)]
    bdevs = new BdevRegistry(reactors, all)
    local = new ReactorBdevs(reactors.reactors[0]!, all)
    await bdevs.create('ones', 'o0', { blocks: 8 })
    const { data } = await run(local.open('o0'), { type: IoType.READ, blockCount: 8, segments: 2 })
    expect(data.every(byte => byte === 0xff)).toBe(true)
    expect(bdevs.config()).toEqual([
      { method: 'bdev_driver_create', params: { driver: 'ones', name: 'o0', params: { blocks: 8 } } },
    ])
  })
})
