import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { TimerHeap } from '../../../src/core/clock.ts'
import { RpcError } from '../../../src/core/errors.ts'
import type { PoolBackend, PoolBackendType, Progress, VolumeFacts } from '../../../src/volume/pool.ts'
import { directoryXml, Storage } from '../support.ts'

const GIB = 2 ** 30
const OVER_A = `<volume><name>over</name><capacity>${GIB}</capacity><target><format type='qcow2'/></target>
  <backingStore><path>/slow/a</path><format type='raw'/></backingStore></volume>`

/** Storage that changes a volume when a test lets it, and tells how far it is. */
class Slow {
  readonly volumes = new Map<string, VolumeFacts>()
  /** What is being changed, with how that ends. */
  readonly underWay = new Map<string, { progress: Progress; end: (error?: Error) => void }>()

  readonly type: PoolBackendType = { type: 'dir', summary: 'Slow.', create: () => this.#backend() }

  put(name: string, identity: string | undefined): void {
    const rest = identity === undefined ? {} : { identity }
    this.volumes.set(name, {
      ...{ name, key: `/slow/${name}`, path: `/slow/${name}`, type: 'network', format: 'raw' },
      ...{ capacityBytes: 4 * GIB, allocationBytes: GIB, ...rest },
    })
  }

  async #change({ name }: { readonly name: string }, progress: Progress): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      progress.signal.addEventListener('abort', () => reject(progress.signal.reason))
      const end = (error?: Error): void => (error === undefined ? resolve() : reject(error))
      this.underWay.set(name, { progress, end })
    }).finally(() => this.underWay.delete(name))
  }

  #backend(): PoolBackend {
    return {
      start: async () => {},
      stop: async () => {},
      refresh: async () => ({
        ...{ capacityBytes: GIB, allocationBytes: 0, availableBytes: GIB },
        volumes: [...this.volumes.values()],
      }),
      opening: () => ({ method: 'bdev_null_create' }),
      volumes: {
        areChangesLong: true,
        create: async (volume, progress) => {
          await this.#change(volume, progress)
          this.put(volume.name, undefined)
        },
        delete: async (volume, progress) => {
          await this.#change(volume, progress)
          this.volumes.delete(volume.name)
        },
        resize: async (volume, capacityBytes, options) => {
          await this.#change(volume, options)
          this.volumes.set(volume.name, { ...volume, capacityBytes })
        },
        rename: async (volume, name) => {
          this.volumes.delete(volume.name)
          this.volumes.set(name, { ...volume, name, key: name, path: name })
        },
        clone: async () => {},
      },
    }
  }
}

describe('a change that takes long', () => {
  let nowUs: number
  let clock: TimerHeap
  let slow: Slow
  let storage: Storage

  beforeEach(async () => {
    nowUs = 0
    clock = new TimerHeap(() => nowUs)
    slow = new Slow()
    for (const name of ['a', 'b']) slow.put(name, `first ${name}`)
    storage = new Storage({ types: [slow.type], clock })
    await storage.call('pool_create', { xml: directoryXml('far', '/nowhere') })
  })
  afterEach(() => storage.close())

  const isUnderWay = (name: string): Promise<unknown> => expect.poll(() => slow.underWay.has(name)).toBe(true)

  /** Asks for it, and lets it take longer than is waited for. */
  async function begin<T>(method: string, params: { readonly volume: string } & object): Promise<T> {
    const asked = storage.call<T>(method, params)
    await isUnderWay(params.volume)
    nowUs += 5_000_000
    clock.fireDue()
    return asked
  }
  const end = async (job_id: number): Promise<object> => storage.call('job_wait', { id: job_id })

  it('is answered when it is done, if that is soon', async () => {
    const deleted = storage.call('volume_delete', { volume: 'a' })
    await isUnderWay('a')
    slow.underWay.get('a')!.end()
    expect(await deleted).toBe(true)
    expect(await storage.names()).toEqual(['b'])
  })

  it('is refused as soon as it fails', async () => {
    const deleted = storage.call('volume_delete', { volume: 'a' })
    await isUnderWay('a')
    slow.underWay.get('a')!.end(new RpcError('EBUSY', 'clones stand on it'))
    await expect(deleted).rejects.toMatchObject({ code: 'EBUSY', message: 'clones stand on it' })
    expect(storage.jobs.config()).toEqual([])
  })

  it('is a job that tells how far it is, and nobody else has the volume meanwhile', async () => {
    const { job_id } = await begin<{ job_id: number }>('volume_delete', { volume: 'a' })
    slow.underWay.get('a')!.progress.report(GIB, 4 * GIB)
    expect(await storage.call('job_get', { id: job_id })).toMatchObject({
      ...{ kind: 'volume_delete', name: 'far/a', state: 'running', percent: 25, cancellable: false },
    })
    for (const [method, params] of [
      ['volume_delete', { volume: 'a' }],
      ['volume_rename', { volume: 'a', name: 'c' }],
      ['volume_resize', { volume: 'a', capacity: '8G' }],
      ['volume_clone', { volume: 'a', name: 'c' }],
      ['volume_export', { volume: 'a', nbd: true }],
      ['volume_create', { pool: 'far', name: 'c', backing: 'a' }],
      ['volume_create_xml', { pool: 'far', xml: OVER_A }],
    ] as const) {
      await expect(storage.call(method, params), method).rejects.toThrow(
        'volume far/a is used by volume_delete of a, a job that qpair job list shows: wait for its end',
      )
    }
    await expect(storage.call('pool_destroy', { pool: 'far' })).rejects.toThrow('during volume_delete of a')
    await storage.call('volume_rename', { volume: 'b', name: 'c' })
    expect(await storage.names()).toEqual(['a', 'c'])
    slow.underWay.get('a')!.end()
    expect(await end(job_id)).toMatchObject({ state: 'completed' })
    expect(await storage.names({ refresh: false })).toEqual(['c'])
  })

  it('is refused while something is made over the volume', async () => {
    const { job_id } = await storage.call<{ job_id: number }>('volume_create', {
      ...{ pool: 'far', name: 'over', backing: 'a', format: 'qcow2', preallocation: 'metadata' },
    })
    await isUnderWay('over')
    await expect(storage.call('volume_delete', { volume: 'a' })).rejects.toThrow(
      'volume far/a is used by volume_create of over, a job that qpair job list shows: wait for its end',
    )
    slow.underWay.get('over')!.end()
    await end(job_id)
    expect(await storage.names()).toEqual(['a', 'b', 'over'])
  })

  it('goes on with the same volume after an interruption, and with no other', async () => {
    const { job_id } = await begin<{ job_id: number }>('volume_delete', { volume: 'a' })
    const [saved] = storage.jobs.config()
    expect(saved).toMatchObject({
      ...{ method: 'volume_delete' },
      params: { volume: 'a', pool: 'far', identity: 'first a', resume: true },
    })
    const again = (): Promise<unknown> => storage.call('volume_delete', saved!.params)
    slow.underWay.get('a')!.end()
    await end(job_id)
    expect(await again()).toBe(true)
    slow.put('a', 'second a')
    await storage.call('pool_refresh', { pool: 'far' })
    await expect(again()).rejects.toMatchObject({ code: 'EINVAL' })
    slow.put('a', 'first a')
    await storage.call('pool_refresh', { pool: 'far' })
    const next = (await again()) as { job_id: number }
    await isUnderWay('a')
    slow.underWay.get('a')!.end()
    expect(await end(next.job_id)).toMatchObject({ state: 'completed' })
    expect(await storage.names()).toEqual(['b'])
  })

  it('does not go on where nothing tells the volume from another of its name', async () => {
    slow.put('n', undefined)
    await storage.call('pool_refresh', { pool: 'far' })
    const { job_id } = await begin<{ job_id: number }>('volume_delete', { volume: 'n' })
    expect(storage.jobs.config()).toEqual([])
    slow.underWay.get('n')!.end()
    await end(job_id)
  })

  it('gives another size when it has ended, and none when it is cancelled', async () => {
    const wanted = { volume: 'a', capacity: '8G', allocate: true }
    const first = await begin<{ job_id: number }>('volume_resize', wanted)
    expect(first).toEqual({ capacity: 8 * GIB, job_id: first.job_id })
    expect(await storage.call('job_cancel', { id: first.job_id })).toMatchObject({ state: 'cancelled' })
    expect(slow.volumes.get('a')!.capacityBytes).toBe(4 * GIB)
    const second = await begin<{ job_id: number }>('volume_resize', wanted)
    slow.underWay.get('a')!.end()
    await end(second.job_id)
    expect(slow.volumes.get('a')!.capacityBytes).toBe(8 * GIB)
  })
})
