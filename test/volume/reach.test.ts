import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { RpcError } from '../../src/core/errors.ts'
import type { PoolBackend, PoolBackendType, StopOptions } from '../../src/volume/pool.ts'
import { Reach } from '../../src/volume/reach.ts'
import { directoryXml, Storage } from './support.ts'

const GIB = 2 ** 30
const never = new Promise<never>(() => {})

/** A server that a test takes away, by having it answer an error or nothing. */
class Server {
  readonly where = 'store:/vms'
  asked = 0
  answer: Promise<void> = Promise.resolve()
  ask(): Promise<void> {
    this.asked++
    return this.answer
  }
  breakDown(): void {
    this.answer = Promise.reject(new RpcError('EIO', 'Transport endpoint is not connected'))
    this.answer.catch(() => {})
  }
}

describe('whether storage answers', () => {
  let storage: Storage
  beforeEach(() => {
    storage = new Storage()
  })
  afterEach(() => storage.close())

  it('is not asked of storage of this machine', async () => {
    await new Reach('p', undefined).check()
  })

  it('is no when nothing comes, and a program that nobody can end is not started again', async () => {
    const server = new Server()
    const reach = new Reach('p', server, 1)
    server.answer = never
    for (const _ of [1, 2, 3]) {
      await expect(reach.check()).rejects.toMatchObject({
        code: 'ETIMEDOUT',
        message: expect.stringMatching(
          /^pool p is inaccessible: store:\/vms: no answer came within .* qpair pool destroy p --force/,
        ),
      })
    }
    expect(server.asked).toBe(1)
  })

  it('is said once when it goes, and once when it comes back', async () => {
    const server = new Server()
    const reach = new Reach('p', server)
    for (const _ of [1, 2]) expect(await reach.answers()).toBe(true)
    server.breakDown()
    for (const _ of [1, 2]) expect(await reach.answers()).toBe(false)
    expect(reach.trouble?.code).toBe('EIO')
    server.answer = Promise.resolve()
    for (const _ of [1, 2]) expect(await reach.answers()).toBe(true)
    expect(reach.trouble).toBeUndefined()
    expect(storage.logged.map(line => line.replace(/^.*?(ERROR|NOTICE) /, '$1 '))).toEqual([
      expect.stringMatching(/^ERROR volume: pool p is inaccessible/),
      expect.stringMatching(/^NOTICE volume: pool p: store:\/vms answers again/),
    ])
  })

  it('is heard by those who wait for what does not come', async () => {
    const server = new Server()
    const reach = new Reach('p', server)
    const waits = reach.during(never)
    server.breakDown()
    await reach.answers()
    await expect(waits).rejects.toThrow('Transport endpoint is not connected')
  })
})

describe('a pool on a server', () => {
  const server = new Server()
  let storage: Storage
  let refreshing: Promise<void>
  let stopped: StopOptions[]

  const backend: PoolBackend = {
    remote: server,
    start: async () => {},
    stop: async (options = { isForced: false }) => void stopped.push(options),
    refresh: async () => {
      await refreshing
      return { capacityBytes: GIB, allocationBytes: 0, availableBytes: GIB, volumes: [] }
    },
    usage: async () => ({ capacityBytes: GIB, allocationBytes: 0, availableBytes: GIB }),
    opening: () => ({ method: 'bdev_null_create' }),
    volumes: { create: async () => {} },
  }
  const type: PoolBackendType = { type: 'dir', summary: 'A server.', create: () => backend }
  const state = async (): Promise<string> =>
    (await storage.call<{ state: string }>('pool_info', { pool: 'far' })).state

  beforeEach(async () => {
    server.answer = Promise.resolve()
    refreshing = Promise.resolve()
    stopped = []
    storage = new Storage({ types: [type] })
    await storage.call('pool_create', { xml: directoryXml('far', '/nowhere') })
  })
  afterEach(() => storage.close())

  it('is inaccessible while that does not answer, and running when it does', async () => {
    server.breakDown()
    await storage.pools.checkUsage()
    expect(await storage.call('pool_list')).toMatchObject([
      {
        ...{ name: 'far', state: 'inaccessible', capacity: GIB },
        trouble: expect.stringContaining('not connected'),
      },
    ])
    server.answer = Promise.resolve()
    await storage.pools.checkUsage()
    expect(await state()).toBe('running')
  })

  it('refuses at once what would wait for it', async () => {
    server.breakDown()
    for (const [method, params] of [
      ['pool_refresh', { pool: 'far' }],
      ['volume_list', { pool: 'far' }],
      ['volume_create', { pool: 'far', name: 'v', capacity: '1M' }],
    ] as const) {
      await expect(storage.call(method, params), method).rejects.toThrow('pool far is inaccessible')
    }
    expect(await storage.call('volume_list')).toEqual([])
  })

  it('lets those go that wait already, and is given up by force though its turn never ends', async () => {
    refreshing = never
    const refresh = storage.call('pool_refresh', { pool: 'far' })
    refresh.catch(() => {})
    server.breakDown()
    await storage.pools.checkUsage()
    await expect(refresh).rejects.toThrow('pool far is inaccessible')
    await storage.call('pool_destroy', { pool: 'far', force: true })
    expect(stopped).toEqual([{ isForced: true }])
    expect(await storage.call('pool_list')).toEqual([])
  })

  it('is not forced while it answers', async () => {
    await storage.call('pool_destroy', { pool: 'far', force: true })
    expect(stopped).toEqual([{ isForced: false }])
  })
})
