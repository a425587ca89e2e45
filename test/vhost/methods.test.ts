import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { render } from '../../src/cli/output.ts'
import { logSettings } from '../../src/core/log.ts'
import { vhostMethods } from '../../src/vhost/methods.ts'
import { RecordingTerminal } from '../cli/support.ts'
import { queue, VhostService } from './support.ts'

let service: VhostService
const { write } = logSettings

beforeEach(async () => {
  logSettings.write = () => {}
  service = await VhostService.start()
})

afterEach(() => {
  service.close()
  logSettings.write = write
})

const blk = (params: object = {}): Promise<unknown> =>
  service.call('vhost_create_blk_controller', { ctrlr: 'disk0', dev_name: 'm0', ...params })
const scsi = (params: object = {}): Promise<unknown> =>
  service.call('vhost_create_scsi_controller', { ctrlr: 'bus0', ...params })
const addTarget = (scsi_target_num: number, bdev_name: string): Promise<unknown> =>
  service.call('vhost_scsi_controller_add_target', { ctrlr: 'bus0', scsi_target_num, bdev_name })

describe('vhost_get_controllers', () => {
  it("answers in SPDK's shape", async () => {
    await blk({ readonly: true })
    await scsi()
    await addTarget(2, 'm1')
    const session = service.connect('disk0')
    session.queues = [queue(0, { outstanding: 2 }), queue(1, { outstanding: 3 })]

    expect(await service.call('vhost_get_controllers')).toEqual([
      {
        ctrlr: 'bus0',
        cpumask: '0x1',
        delay_base_us: 0,
        iops_threshold: 60000,
        socket: '/run/vhost/bus0',
        sessions: [],
        backend_specific: {
          scsi: [{ scsi_dev_num: 2, id: 0, target_name: 'Target 2', luns: [{ id: 0, bdev_name: 'm1' }] }],
        },
      },
      {
        ctrlr: 'disk0',
        cpumask: '0x1',
        delay_base_us: 0,
        iops_threshold: 60000,
        socket: '/run/vhost/disk0',
        sessions: [{ vid: 0, id: 0, name: 'disk0s0', started: true, max_queues: 2, inflight_task_cnt: 5 }],
        backend_specific: { block: { readonly: true, bdev: 'm0', transport: 'vhost_user_blk' } },
      },
    ])
  })

  it('answers with one controller that is named', async () => {
    await blk()
    await blk({ ctrlr: 'disk1' })
    expect(await service.call('vhost_get_controllers', { name: 'disk1' })).toMatchObject([{ ctrlr: 'disk1' }])
  })
})

describe('the methods', () => {
  it.each([
    [
      'vhost_create_blk_controller',
      { ctrlr: 'disk0', dev_name: 'm0' },
      'EEXIST',
      'disk0 already, at /run/vhost/disk0: choose',
    ],
    [
      'vhost_create_blk_controller',
      { ctrlr: 'a', dev_name: 'm9' },
      'ENODEV',
      'there is no bdev m9: there are m0, m1',
    ],
    [
      'vhost_create_blk_controller',
      { ctrlr: 'a/b', dev_name: 'm0' },
      'EINVAL',
      'a file of that name in /run/vhost (-S)',
    ],
    ['vhost_create_blk_controller', { ctrlr: '..', dev_name: 'm0' }, 'EINVAL', 'cannot be named ".."'],
    ['vhost_create_blk_controller', { ctrlr: '', dev_name: 'm0' }, 'EINVAL', 'cannot be named ""'],
    [
      'vhost_create_blk_controller',
      { ctrlr: 'a\nb', dev_name: 'm0' },
      'EINVAL',
      'cannot be named "a\\nb": it has control characters',
    ],
    [
      'vhost_create_scsi_controller',
      { ctrlr: '\x1b[31m' },
      'EINVAL',
      'cannot be named "\\u001b[31m": it has',
    ],
    [
      'vhost_create_scsi_controller',
      { ctrlr: 'a\x7f\x9bb' },
      'EINVAL',
      'cannot be named "a\\u007f\\u009bb": it',
    ],
    [
      'vhost_create_blk_controller',
      { ctrlr: 'é'.repeat(50), dev_name: 'm0' },
      'EINVAL',
      "111 bytes, and a Unix socket's has at most 107",
    ],
    [
      'vhost_create_blk_controller',
      { ctrlr: 'a', dev_name: 'm0', cpumask: '0x6' },
      'EINVAL',
      'it names 1, 2, and there are reactors on 0',
    ],
    [
      'vhost_create_blk_controller',
      { ctrlr: 'a', dev_name: 'm0', cpumask: 'x' },
      'EINVAL',
      'core mask "x" (cpumask) is no number',
    ],
    [
      'vhost_create_blk_controller',
      { ctrlr: 'a', dev_name: 'm0', transport: 'vfio_user_blk' },
      'EINVAL',
      'vfio_user_blk of a: there is only vhost_user_blk',
    ],
    [
      'vhost_create_blk_controller',
      { ctrlr: 'a', dev_name: 'm0', socket_mode: '999' },
      'EINVAL',
      '"999" is no octal mode',
    ],
    [
      'vhost_create_scsi_controller',
      { ctrlr: 'a', socket_owner: 'no-such-user-here' },
      'EINVAL',
      'there is no user "no-such-user-here"',
    ],
    ['vhost_create_scsi_controller', { ctrlr: 'bus0' }, 'EEXIST', 'bus0 already'],
    ['vhost_start_scsi_controller', { ctrlr: 'x' }, 'ENODEV', 'no vhost controller x: there are bus0, disk0'],
    [
      'vhost_start_scsi_controller',
      { ctrlr: 'disk0' },
      'EINVAL',
      'disk0 is a blk controller, with one disk and no targets',
    ],
    [
      'vhost_scsi_controller_add_target',
      { ctrlr: 'disk0', scsi_target_num: 0, bdev_name: 'm0' },
      'EINVAL',
      'is a blk controller',
    ],
    [
      'vhost_scsi_controller_add_target',
      { ctrlr: 'bus0', scsi_target_num: 8, bdev_name: 'm0' },
      'EINVAL',
      'target 8 of bus0: there are 0 to 7',
    ],
    [
      'vhost_scsi_controller_add_target',
      { ctrlr: 'bus0', scsi_target_num: 3, bdev_name: 'm0' },
      'EEXIST',
      'target 3 of bus0 is m1 already',
    ],
    [
      'vhost_scsi_controller_add_target',
      { ctrlr: 'bus0', scsi_target_num: 0, bdev_name: 'm9' },
      'ENODEV',
      'there is no bdev m9',
    ],
    [
      'vhost_scsi_controller_remove_target',
      { ctrlr: 'bus0', scsi_target_num: 0 },
      'ENODEV',
      'bus0 has no target 0: it has 3',
    ],
    ['vhost_get_controllers', { name: 'x' }, 'ENODEV', 'no vhost controller x'],
    ['vhost_delete_controller', { ctrlr: 'x' }, 'ENODEV', 'no vhost controller x'],
    [
      'vhost_controller_set_coalescing',
      { ctrlr: 'disk0', delay_base_us: 2_000_000, iops_threshold: 1000 },
      'EINVAL',
      '2000000 of disk0 is more than 1000000',
    ],
    [
      'vhost_controller_set_coalescing',
      { ctrlr: 'disk0', delay_base_us: 1, iops_threshold: 99 },
      'EINVAL',
      '99 of disk0 is less than 100',
    ],
    ['vhost_controller_set_polling', { ctrlr: 'x', quiet_us: 1 }, 'ENODEV', 'no vhost controller x'],
    [
      'vhost_controller_set_polling',
      { ctrlr: 'disk0', quiet_us: 1e30 },
      'INVALID_PARAMS',
      'vhost_controller_set_polling: quiet_us must be at most 1000000, not 1e+30',
    ],
    ['virtio_blk_create_transport', { name: 'vhost_user_blk' }, 'EEXIST', 'there from the start'],
    ['virtio_blk_create_transport', { name: 'vfio_user' }, 'ENOENT', 'there is no transport vfio_user'],
    ['virtio_blk_get_transports', { name: 'vfio_user' }, 'ENODEV', 'there is no transport vfio_user'],
    [
      'vhost_qemu_args',
      { ctrlr: 'disk0', memory: '4096' },
      'INVALID_PARAMS',
      'a size with its unit, such as 4G',
    ],
  ])('%s refuses %j', async (method, params, code, message) => {
    await blk()
    await scsi()
    await addTarget(3, 'm1')
    const before = await service.call('vhost_get_controllers')
    await expect(service.call(method, params)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
    expect(await service.call('vhost_get_controllers')).toEqual(before)
  })

  it('ignore what they do not know where SPDK does', async () => {
    expect(await blk({ packed: true })).toBe(true)
    await expect(scsi({ packed: true })).rejects.toMatchObject({ code: 'INVALID_PARAMS' })
  })

  it('know the one transport that there is', async () => {
    expect(await service.call('virtio_blk_get_transports')).toEqual([{ name: 'vhost_user_blk' }])
    expect(await service.call('virtio_blk_get_transports', { name: 'VHOST_USER_BLK' })).toEqual([
      { name: 'vhost_user_blk' },
    ])
  })
})

describe('vhost_scsi_controller_add_target', () => {
  it('chooses the first number that is free for -1, until there is none', async () => {
    await scsi()
    await addTarget(1, 'm1')
    const chosen: unknown[] = []
    for (let i = 0; i < 7; i++) chosen.push(await addTarget(-1, 'm0'))
    expect(chosen).toEqual([0, 2, 3, 4, 5, 6, 7])
    await expect(addTarget(-1, 'm0')).rejects.toMatchObject({
      code: 'ENOSPC',
      message: expect.stringContaining('bus0 has 8 targets and no room for m0'),
    })
  })
})

describe('vhost_get_stats', () => {
  it('tells what each queue did', async () => {
    await blk()
    await service.call('vhost_controller_set_polling', { ctrlr: 'disk0', quiet_us: 7 })
    const session = service.connect('disk0')
    session.queues = [queue(0, { requests: 9, outstanding: 1, calls: 4, kicks: 2, isPolled: true })]

    expect(await service.call('vhost_get_stats', { ctrlr: 'disk0' })).toEqual([
      {
        ctrlr: 'disk0',
        quiet_us: 7,
        sessions: [
          {
            id: 0,
            name: 'disk0s0',
            queues: [
              { index: 0, polled: true, requests: 9, outstanding: 1, interrupts: 4, notifications: 2 },
            ],
          },
        ],
      },
    ])
  })
  it('is a table on a terminal, with the sums over the queues of each controller', async () => {
    await blk()
    await scsi()
    const [first, second] = [service.connect('disk0'), service.connect('disk0')]
    first.queues = [
      queue(0, { requests: 9, outstanding: 1, calls: 4, kicks: 2, isPolled: true }),
      queue(1, { requests: 100 }),
    ]
    second.queues = [queue(0, { requests: 1, outstanding: 2, calls: 10, kicks: 20, isPolled: true })]

    const terminal = new RecordingTerminal({ isTerminal: true, env: { NO_COLOR: '1' } })
    const method = vhostMethods.find(({ name }) => name === 'vhost_get_stats')!
    expect(render(terminal, method, await service.call('vhost_get_stats')).split('\n')).toEqual([
      'CTRLR  QUIET US  SESSIONS  QUEUES  POLLED  REQUESTS  OUTSTANDING  INTERRUPTS  NOTIFICATIONS',
      'bus0         50         0       0       0         0            0           0              0',
      'disk0        50         2       3       2       110            3          14             22',
      '',
    ])
  })
})
