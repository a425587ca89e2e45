import { beforeEach, describe, expect, it, vi } from 'vitest'
import { KeptCalls } from '../../src/app/kept-calls.ts'
import { TimerHeap } from '../../src/core/clock.ts'
import { type RpcCode, RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import type { MethodCall } from '../../src/rpc/config.ts'

const cluster: MethodCall = { method: 'cluster_register', params: { name: 'c' } }
const image: MethodCall = { method: 'image_open', params: { name: 'r0', cluster: 'c' } }
const namespace: MethodCall = { method: 'namespace_add', params: { bdev: 'r0' } }
const host: MethodCall = { method: 'namespace_allow', params: { host: 'h' } }

let lines: string[]
let nowUs: number
let clock: TimerHeap
/** The methods that were tried, in order, and what each fails with as things are. */
let tried: string[]
let failures: Map<string, RpcError>
let saves: number
let kept: KeptCalls

beforeEach(() => {
  lines = []
  logSettings.write = line => void lines.push(line)
  nowUs = 0
  clock = new TimerHeap(() => nowUs)
  tried = []
  failures = new Map()
  saves = 0
  kept = new KeptCalls({
    clock,
    isSlow: ({ method }) => method === 'cluster_register',
    run: async ({ method }) => {
      tried.push(method)
      const failure = failures.get(method)
      if (failure !== undefined) throw failure
    },
    save: async () => void saves++,
  })
})

/** What the call fails with until `works`. */
function fails(call: MethodCall, code: RpcCode, message: string = code): void {
  const error = new RpcError(code, message)
  failures.set(call.method, error)
  kept.keep('bdev', call, error)
}
const works = (call: MethodCall): void => void failures.delete(call.method)

const settle = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

/** Lets the time pass, and what is due be done. */
async function pass(seconds: number): Promise<void> {
  const endUs = nowUs + seconds * 1e6
  for (let dueUs = clock.nextDueUs(); dueUs <= endUs; dueUs = clock.nextDueUs()) {
    nowUs = dueUs
    clock.fireDue()
    await settle()
  }
  nowUs = endUs
}

describe('calls that failed at start', () => {
  it('are tried again with a growing delay, with a line at the begin and one at the end', async () => {
    fails(image, 'ETIMEDOUT', 'no monitor answers')
    kept.start()
    await pass(0.9)
    expect(tried).toHaveLength(0)
    await pass(0.1)
    expect(tried).toHaveLength(1)
    // After 1, 2, 4, 8, 16, 30, 30 … seconds.
    await pass(2 + 4 + 8 + 16)
    expect(tried).toHaveLength(5)
    await pass(60)
    expect(tried).toHaveLength(7)
    expect(kept.list()).toMatchObject([{ tries: 8, isWaiting: true, reason: 'no monitor answers' }])
    expect(saves).toBe(0)
    works(image)
    await pass(30)
    expect(kept.list()).toEqual([])
    expect(saves).toBe(1)
    await pass(1000)
    expect(tried).toHaveLength(8)
    expect(lines.map(line => line.split('app: ')[1]?.slice(0, 42))).toEqual([
      'could not restore image_open {"name":"r0",',
      'restored image_open {"name":"r0","cluster"',
    ])
  })

  it('are told without the keys that they have', () => {
    fails({ method: 'image_open', params: { filename: 'rbd:p/i:key=AQ==:id=u' } }, 'ENOENT')
    fails({ method: 'cluster_register', params: { config_param: { key: 'AQ==' } } }, 'ENOENT')
    expect(lines).toEqual([
      expect.stringContaining('image_open {"filename":"rbd:p/i:key=(hidden):id=u"}'),
      expect.stringContaining('cluster_register {"config_param":{"key":"(hidden)"}}'),
    ])
  })

  it('come back in the order of need, as soon as what the first needs is there', async () => {
    fails(cluster, 'ETIMEDOUT')
    fails(image, 'ENOENT', 'there is no cluster c')
    fails(namespace, 'ENODEV', 'there is no bdev r0')
    fails(host, 'INVALID_PARAMS', 'there is no namespace 1')
    kept.start()
    await pass(7)
    // What fails for its own parameters is not tried as long as nothing has come.
    expect(tried).not.toContain('namespace_allow')
    for (const call of [cluster, image, namespace, host]) works(call)
    failures.set(host.method, new RpcError('INVALID_PARAMS', 'not yet'))
    const { length } = tried
    await pass(8)
    works(host)
    expect(tried.slice(length)).toContain('namespace_allow')
    expect(kept.list().map(({ call }) => call)).toEqual([host])
    expect(kept.list()).toMatchObject([{ isWaiting: false, reason: 'not yet' }])
    kept.deviceCame()
    await pass(0)
    expect(kept.list()).toEqual([])
  })

  it('stay and are not tried again when nothing outside can mend them', async () => {
    fails(image, 'EINVAL', 'a bad size')
    kept.start()
    await pass(1000)
    expect(tried).toEqual([])
    expect(kept.callsOf('bdev')).toEqual([image])
    expect(lines.join('')).toContain('stays in the saved configuration and is tried again at the next start')
  })

  it('are not kept when they would go on with work that there is no more', async () => {
    const flatten: MethodCall = { method: 'image_flatten', params: { image: 'r0' } }
    kept.keep('job', flatten, new RpcError('EINVAL', 'r0 is no clone'))
    expect(kept.callsOf('job')).toEqual([])
    kept.keep('job', flatten, new RpcError('ENODEV', 'there is no bdev r0'))
    expect(kept.callsOf('job')).toEqual([flatten])
    failures.set(flatten.method, new RpcError('EINVAL', 'r0 is no clone'))
    kept.start()
    await pass(1)
    expect(kept.callsOf('job')).toEqual([])
    expect(lines.join('')).toContain('not going on with image_flatten {"image":"r0"}: r0 is no clone')
  })

  describe('of a subsystem with namespaces that are late', () => {
    const params = { nqn: 'n' }
    const late: MethodCall = {
      method: 'nvmf_subsystem_add_ns',
      params: { ...params, namespace: { bdev_name: 'r0', nsid: 1 } },
    }
    const listener: MethodCall = { method: 'nvmf_subsystem_add_listener', params }
    const open: MethodCall = { method: 'bdev_rbd_create', params: { name: 'r0', cluster_name: 'c' } }

    it('let hosts in when the last of them is there', async () => {
      fails(late, 'ENODEV')
      expect(kept.holdBack('nvmf', listener)).toBe(true)
      expect(kept.holdBack('nvmf', { ...listener, params: { nqn: 'other' } })).toBe(false)
      expect(kept.list()[1]).toMatchObject({ isWaiting: true, reason: expect.stringContaining('r0') })
      kept.start()
      await pass(100)
      expect(tried).not.toContain('nvmf_subsystem_add_listener')
      works(late)
      kept.deviceCame()
      await pass(0)
      expect(tried.slice(-2)).toEqual(['nvmf_subsystem_add_ns', 'nvmf_subsystem_add_listener'])
    })

    it('let hosts in after ten minutes all the same', async () => {
      fails(late, 'ENODEV')
      kept.holdBack('nvmf', listener)
      kept.start()
      await pass(590)
      expect(tried).not.toContain('nvmf_subsystem_add_listener')
      await pass(50)
      expect(kept.callsOf('nvmf')).toEqual([])
    })

    it('do not wait for an image that a cluster, which answers, does not have', () => {
      fails(late, 'ENODEV')
      fails(open, 'ENOENT', 'volumes/r0 does not exist')
      expect(kept.holdBack('nvmf', listener)).toBe(false)
      fails({ method: 'bdev_rbd_register_cluster', params: { name: 'c' } }, 'ETIMEDOUT')
      expect(kept.holdBack('nvmf', listener)).toBe(true)
    })
  })

  it('are tried at once when a device has come', async () => {
    fails(namespace, 'ENODEV')
    kept.start()
    await pass(100)
    works(namespace)
    kept.deviceCame()
    await pass(0)
    expect(kept.list()).toEqual([])
  })

  it('are not held up by one that takes long', async () => {
    let finish = (): void => {}
    const slow = new KeptCalls({
      clock,
      isSlow: ({ method }) => method === 'cluster_register',
      run: ({ method }) => {
        tried.push(method)
        if (method === 'namespace_add') return Promise.resolve()
        return new Promise<void>(resolve => {
          finish = resolve
        })
      },
      save: async () => {},
    })
    slow.keep('bdev', cluster, new RpcError('ETIMEDOUT', 'no monitor answers'))
    slow.keep('nvmf', namespace, new RpcError('ENODEV', 'there is no bdev'))
    slow.start()
    await pass(1)
    expect(slow.list().map(({ call }) => call)).toEqual([cluster])
    await pass(100)
    expect(tried.filter(method => method === 'cluster_register')).toHaveLength(1)
    finish()
    await settle()
    expect(slow.list()).toEqual([])
  })

  it('are forgotten when the operator says so', async () => {
    fails(image, 'ENOENT')
    const [{ id } = { id: 0 }] = kept.list()
    await expect(kept.forget(id + 1)).rejects.toThrow(`no call ${id + 1} is kept: there are ${id}`)
    await kept.forget(id)
    kept.start()
    await pass(100)
    expect(tried).toEqual([])
    expect(kept.callsOf('bdev')).toEqual([])
  })

  it('are not forgotten under a try that succeeds', async () => {
    let finish = (): void => {}
    const attempt = new Promise<void>(resolve => {
      finish = resolve
    })
    kept.keepRunning('bdev', cluster, attempt)
    const forgotten = kept.forget(kept.list()[0]!.id)
    finish()
    await expect(forgotten).rejects.toThrow('has succeeded in this moment')
  })

  it('rest when the daemon ends', async () => {
    fails(image, 'ENOENT')
    kept.start()
    await kept.stop()
    await pass(100)
    expect(tried).toEqual([])
  })

  it('are waited for by the end of the daemon while one is under way, and no other is begun', async () => {
    let open = (): void => {}
    const opened = new Promise<void>(resolve => {
      open = resolve
    })
    const run = vi.fn(() => opened)
    const busy = new KeptCalls({ clock, isSlow: () => false, run, save: async () => {} })
    for (const call of [image, namespace]) busy.keep('bdev', call, new RpcError('ENOENT', 'not there yet'))
    busy.start()
    await pass(1)
    let isStopped = false
    const stopped = busy.stop().then(() => {
      isStopped = true
    })
    await settle()
    expect(isStopped).toBe(false)
    open()
    await stopped
    expect(run).toHaveBeenCalledTimes(1)
    expect(busy.list().map(({ call }) => call)).toEqual([namespace])
  })

  it('go on when their success cannot be saved', async () => {
    const save = vi.fn(async () => {
      throw new RpcError('ENOSPC', 'the change is in force but not saved')
    })
    const full = new KeptCalls({ clock, isSlow: () => false, run: async () => {}, save })
    full.keep('bdev', image, new RpcError('ENOENT', 'there is no image'))
    full.keep('bdev', namespace, new RpcError('ENODEV', 'there is no bdev'))
    full.start()
    await pass(1)
    expect(save).toHaveBeenCalledTimes(2)
    expect(full.list()).toEqual([])
    expect(lines.join('')).toContain('the change is in force but not saved')
  })
})

it('keeps work on a volume when work on one of the same name in another pool begins', () => {
  const into = (pool: string): MethodCall => ({ method: 'volume_import', params: { pool, name: 'web' } })
  kept.keep('job', into('a'), new RpcError('EAGAIN', 'pool a is not active'))
  kept.dropMade('job', [into('b')])
  expect(kept.callsOf('job')).toEqual([into('a')])
  kept.dropMade('job', [into('a')])
  expect(kept.callsOf('job')).toEqual([])
})
