import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import { VhostService, type VhostServiceOptions } from './support.ts'

// Written by hand from the specification: LUN 0 of target 3, `virtio_scsi_event` and SPC's additional sense codes.
const TARGET_3 = [1, 3, 0, 0, 0, 0, 0, 0]
const RESCAN = { event: 1, lun: TARGET_3, reason: 1 }
const REMOVED = { event: 1, lun: TARGET_3, reason: 2 }
const CAPACITY_CHANGED = { event: 3, lun: TARGET_3, reason: 0x092a }

let service: VhostService
const lines: string[] = []
const { write } = logSettings

async function start(options: VhostServiceOptions = {}): Promise<void> {
  service?.close()
  service = await VhostService.start(options)
}

beforeEach(async () => {
  lines.length = 0
  logSettings.write = line => void lines.push(line)
  await start()
})

afterEach(() => {
  service.close()
  logSettings.write = write
})

const blk = (params: object = {}): Promise<unknown> =>
  service.call('vhost_create_blk_controller', { ctrlr: 'disk0', dev_name: 'm0', ...params })
const scsi = (params: object = {}): Promise<unknown> =>
  service.call('vhost_create_scsi_controller', { ctrlr: 'bus0', ...params })
const addTarget = (): Promise<unknown> =>
  service.call('vhost_scsi_controller_add_target', { ctrlr: 'bus0', scsi_target_num: 3, bdev_name: 'm0' })
const removeTarget = (): Promise<unknown> =>
  service.call('vhost_scsi_controller_remove_target', { ctrlr: 'bus0', scsi_target_num: 3 })
const remove = (name: string): Promise<void> => service.run(service.bdevs.remove(name))

describe('a controller', () => {
  it('listens in the directory, under its name', async () => {
    await blk()
    expect([...service.sockets.keys()]).toEqual(['/run/vhost/disk0'])
  })

  it('starts a session for each front end, with what it was made with', async () => {
    await blk({ packed_ring: true })
    const [first, second] = [service.connect('disk0'), service.connect('disk0')]

    expect(first.options).toMatchObject({
      controllerName: 'disk0',
      reactorIndexes: [0],
      tuning: { quietUs: 50, delayBaseUs: 0, iopsThreshold: 60000 },
      offerPacked: true,
      options: { requireSealedMemory: false },
    })
    expect(first.options.model.deviceId).toBe(2)
    expect(second.options.model).toBe(first.options.model)
  })

  it('writes few lines about front ends that come and go all the time', async () => {
    await blk()
    const before = lines.length
    for (let i = 0; i < 200; i++) await service.run(service.connect('disk0').close())
    expect(lines.length - before).toBeLessThan(200)
  })

  it('turns front ends away while it has 32, and says so once', async () => {
    await blk()
    const sessions = Array.from({ length: 32 }, () => service.connect('disk0'))
    const before = lines.length
    expect([service.connect('disk0'), service.connect('disk0')]).toEqual([undefined, undefined])
    expect(lines.slice(before)).toHaveLength(1)
    expect(lines.at(-1)).toContain('WARNING vhost: disk0 has 32 front ends, and turns further ones away')
    await service.run(sessions[0]!.close())
    expect(service.connect('disk0')).toBeDefined()
  })

  it('spreads the first queues of its front ends over its reactors', async () => {
    await start({ cpus: [4, 5, 6, 7] })
    await blk({ cpumask: '[5-7]' })
    const indexes = [0, 1, 2].map(() => service.connect('disk0').options.reactorIndexes)
    expect(indexes).toEqual([
      [1, 2, 3],
      [2, 3, 1],
      [3, 1, 2],
    ])
    expect(service.vhost.cpumaskOf(service.vhost.get('disk0'))).toBe('0xe0')
  })

  it('takes the reactors that a mask has, and says which processors have none', async () => {
    await start({ cpus: [-1, -1] })
    await blk({ cpumask: '0x6' })
    expect(service.connect('disk0').options.reactorIndexes).toEqual([1])
    expect(lines.join()).toContain('cpumask 0x6 also names 2, where no reactor is')
  })

  it('tells its front ends how to poll and when to interrupt', async () => {
    await blk()
    const session = service.connect('disk0')
    await service.call('vhost_controller_set_coalescing', {
      ctrlr: 'disk0',
      delay_base_us: 20,
      iops_threshold: 1000,
    })
    await service.call('vhost_controller_set_polling', { ctrlr: 'disk0', quiet_us: 0 })

    const tuning = { quietUs: 0, delayBaseUs: 20, iopsThreshold: 1000 }
    expect(session.heard).toEqual([{ ...tuning, quietUs: 50 }, tuning])
    expect(service.connect('disk0').options.tuning).toEqual(tuning)
  })

  it('is not deleted while a front end is connected', async () => {
    await blk()
    const session = service.connect('disk0')
    await expect(service.call('vhost_delete_controller', { ctrlr: 'disk0' })).rejects.toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining('disk0 has 1 connected front end: shut the guest down'),
    })

    session.options.onEnd()
    expect(await service.call('vhost_delete_controller', { ctrlr: 'disk0' })).toBe(true)
    expect(service.sockets.size).toBe(0)
    // Nobody has the bdev any more.
    service.bdevs.claim('m0', 'a filter', 'exclusive_write')
  })

  it('leaves nothing behind when its socket cannot be', async () => {
    service.refusal = new RpcError('EACCES', 'no')
    await expect(blk()).rejects.toMatchObject({ code: 'EACCES' })
    expect(service.vhost.list()).toEqual([])
    service.bdevs.claim('m0', 'a filter', 'exclusive_write')
  })

  it('ends its sessions and gives its bdevs back when the daemon stops', async () => {
    await blk()
    await scsi()
    await addTarget()
    const session = service.connect('disk0')
    await service.vhost.stop()

    expect(session.heard).toEqual(['closed'])
    expect(service.sockets.size).toBe(0)
    service.bdevs.claim('m0', 'a filter', 'exclusive_write')
  })

  it('hands on what memory it wants from the next front end on', async () => {
    await blk()
    const before = service.connect('disk0')
    await service.call('vhost_set_options', { require_sealed_memory: true })
    expect(before.options.options).toEqual({ requireSealedMemory: false })
    expect(service.connect('disk0').options.options).toEqual({ requireSealedMemory: true })
  })
})

describe('claims', () => {
  it('let two controllers write to one bdev, as a migration needs, but nobody who wants it alone', async () => {
    await blk()
    await blk({ ctrlr: 'disk1' })
    expect(service.vhost.list().map(({ name }) => name)).toEqual(['disk0', 'disk1'])

    service.bdevs.claim('m1', 'subsystem a', 'exclusive_write')
    await expect(blk({ ctrlr: 'disk2', dev_name: 'm1' })).rejects.toMatchObject({ code: 'EPERM' })
    expect(await blk({ ctrlr: 'disk2', dev_name: 'm1', readonly: true })).toBe(true)
  })
})

describe('a bdev that is removed', () => {
  it('leaves its blk controller without a disk, once no request uses it', async () => {
    await blk()
    const session = service.connect('disk0')
    let drain = (): void => {}
    session.drained = new Promise(resolve => {
      drain = resolve
    })
    const removal = remove('m0')
    await service.reactors.until(() => session.heard.length > 0)
    expect(service.bdevs.find('m0')).toBeDefined()

    drain()
    await removal
    expect(session.heard).toEqual(['device changed'])
    expect(session.options.model.describe(0n, { writeback: true })).toMatchObject({ bdev: null })
    expect(await service.call('vhost_get_controllers')).toMatchObject([
      { backend_specific: { block: { bdev: null } } },
    ])
    expect(service.config()).toEqual([])
  })

  it('takes its SCSI targets away', async () => {
    await scsi()
    await addTarget()
    const session = service.connect('bus0')
    await remove('m0')

    expect(session.heard).toEqual([REMOVED])
    expect(await service.call('vhost_get_controllers')).toMatchObject([{ backend_specific: { scsi: [] } }])
  })

  it('means nothing to other controllers', async () => {
    await blk()
    const session = service.connect('disk0')
    await remove('m1')
    expect(session.heard).toEqual([])
  })
})

describe('a bdev that grows', () => {
  it('is told to the front ends of both kinds', async () => {
    await blk()
    await scsi()
    await addTarget()
    const [disk, bus] = [service.connect('disk0'), service.connect('bus0')]
    await service.run(service.bdevs.resize('m0', 16))

    expect(disk.heard).toEqual(['device changed'])
    await service.reactors.until(() => bus.heard.length > 0)
    expect(bus.heard).toEqual([CAPACITY_CHANGED])
  })
})

describe('a SCSI controller', () => {
  it('listens only once it is started, when it was made with a delay', async () => {
    await scsi({ delay: true })
    expect(service.sockets.size).toBe(0)
    await service.call('vhost_start_scsi_controller', { ctrlr: 'bus0' })
    await service.call('vhost_start_scsi_controller', { ctrlr: 'bus0' })
    expect([...service.sockets.keys()]).toEqual(['/run/vhost/bus0'])
  })

  it('tells its front ends of targets that come and go', async () => {
    await scsi()
    const session = service.connect('bus0')
    await addTarget()
    await removeTarget()
    expect(session.heard).toEqual([RESCAN, REMOVED])
  })

  it('answers to the removal of a target when its I/O has ended, and not before', async () => {
    await scsi()
    await addTarget()
    const session = service.connect('bus0')
    let drain = (): void => {}
    session.drained = new Promise(resolve => {
      drain = resolve
    })
    const order: string[] = []
    const removed = removeTarget().then(() => order.push('answered'))
    // The guest hears of it before, so that it can let go.
    await service.reactors.until(() => session.heard.length === 1)
    order.push('drained')
    drain()
    await removed
    expect(order).toEqual(['drained', 'answered'])
    service.bdevs.claim('m0', 'a filter', 'exclusive_write')
  })

  it('numbers targets over all controllers', async () => {
    await scsi()
    await scsi({ ctrlr: 'bus1' })
    await addTarget()
    await service.call('vhost_scsi_controller_add_target', {
      ctrlr: 'bus1',
      scsi_target_num: 0,
      bdev_name: 'm1',
    })
    const ids = service.vhost
      .list()
      .flatMap(({ backing }) => (backing.kind === 'scsi' ? [...backing.targets.values()] : []))
      .map(({ id }) => id)
    expect(ids).toEqual([0, 1])
  })
})

describe('the socket', () => {
  it('has the mode and the owner of the daemon, unless the controller has its own', async () => {
    await start({ defaultAccess: { mode: 0o660, uid: 1, gid: 2 } })
    await blk()
    await blk({ ctrlr: 'disk1', socket_mode: '600', socket_owner: ':33' })
    expect(service.sockets.get('/run/vhost/disk0')?.access).toEqual({ mode: 0o660, uid: 1, gid: 2 })
    expect(service.sockets.get('/run/vhost/disk1')?.access).toEqual({ mode: 0o600, uid: 1, gid: 33 })
  })
})

describe('what is saved', () => {
  it('makes the same controllers again', async () => {
    await start({ cpus: [0, 1] })
    await blk({ cpumask: '0x2', packed_ring: true, socket_mode: '0660', socket_owner: '0:0' })
    await scsi({ delay: true })
    await addTarget()
    await scsi({ ctrlr: 'bus1' })
    await service.call('vhost_set_options', { require_sealed_memory: true })
    await service.call('vhost_controller_set_coalescing', {
      ctrlr: 'disk0',
      delay_base_us: 9,
      iops_threshold: 500,
    })
    await service.call('vhost_controller_set_polling', { ctrlr: 'bus1', quiet_us: 200 })
    const saved = service.config()
    const shown = await service.call('vhost_get_controllers')

    await start({ cpus: [0, 1] })
    for (const { method, params } of saved) await service.call(method, params)
    expect(service.config()).toEqual(saved)
    expect(await service.call('vhost_get_controllers')).toEqual(shown)
    expect(saved).toEqual([
      { method: 'vhost_set_options', params: { require_sealed_memory: true } },
      {
        method: 'vhost_create_blk_controller',
        params: {
          ctrlr: 'disk0',
          cpumask: '0x2',
          socket_mode: '0660',
          socket_owner: '0:0',
          dev_name: 'm0',
          readonly: false,
          packed_ring: true,
        },
      },
      {
        method: 'vhost_controller_set_coalescing',
        params: { ctrlr: 'disk0', delay_base_us: 9, iops_threshold: 500 },
      },
      { method: 'vhost_create_scsi_controller', params: { ctrlr: 'bus0', delay: true } },
      {
        method: 'vhost_scsi_controller_add_target',
        params: { ctrlr: 'bus0', scsi_target_num: 3, bdev_name: 'm0' },
      },
      { method: 'vhost_create_scsi_controller', params: { ctrlr: 'bus1', delay: true } },
      { method: 'vhost_start_scsi_controller', params: { ctrlr: 'bus1' } },
      { method: 'vhost_controller_set_polling', params: { ctrlr: 'bus1', quiet_us: 200 } },
    ])
  })
})
