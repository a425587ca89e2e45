import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { nvmeMethods } from '../../src/nvme/methods.ts'
import { Dispatcher } from '../../src/rpc/dispatcher.ts'
import type { FakeController } from '../support/fake-controller.ts'
import { Host, namespace, SUBNQN } from './support.ts'

logSettings.write = () => {}

let host: Host
let dispatcher: Dispatcher<{ nvme: Host['nvme']; rpc: { state: 'runtime'; methods: typeof nvmeMethods } }>
beforeEach(() => start(1))
afterEach(() => host.close())

function start(reactors: number): void {
  host = new Host({ reactors })
  const { nvme } = host
  dispatcher = new Dispatcher({
    methods: nvmeMethods,
    context: { nvme, rpc: { state: 'runtime', methods: nvmeMethods } },
    afterMutation: async () => {},
  })
}

const call = (method: string, params: object = {}): Promise<unknown> =>
  host.run(dispatcher.call(method, params))

const address = (fake: FakeController): object => ({
  trtype: 'tcp',
  adrfam: 'ipv4',
  traddr: fake.host,
  trsvcid: String(fake.port),
  subnqn: SUBNQN,
})

const attach = (fake: FakeController, more: object = {}): Promise<unknown> =>
  call('bdev_nvme_attach_controller', { name: 'Nvme0', ...address(fake), ...more })

const trid = (port: number): object => ({
  trtype: 'TCP',
  adrfam: 'IPv4',
  traddr: '10.0.0.1',
  trsvcid: String(port),
  subnqn: SUBNQN,
})

/** Two ports of one subsystem with one namespace. */
function gateways(): [FakeController, FakeController] {
  const shared = namespace()
  return [host.fake({ port: 4420, cntlid: 1 }, [shared]), host.fake({ port: 4421, cntlid: 100 }, [shared])]
}

describe('bdev_nvme_attach_controller', () => {
  it('answers with the new devices: those of the first path, none for the second', async () => {
    const [a, b] = gateways()
    expect(
      await attach(a, { multipath: 'multipath', ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 20 }),
    ).toEqual(['Nvme0n1'])
    expect(await attach(b)).toEqual([])
    const host0 = { addr: '', svcid: '', no_shn_notification: false }
    expect(await call('bdev_nvme_get_controllers', { name: 'Nvme0' })).toMatchObject([
      {
        name: 'Nvme0',
        ctrlrs: [
          { state: 'enabled', trid: trid(4420), cntlid: 1, host: host0 },
          { state: 'enabled', trid: trid(4421), cntlid: 100, host: host0 },
        ],
      },
    ])
  })

  it('tells the controller who this host is, the same each time', async () => {
    const [a, b] = gateways()
    await attach(a)
    await attach(b)
    const hostOf = (fake: FakeController): string =>
      Buffer.from(fake.admin!.connectData.subarray(512, 768)).toString().replaceAll('\0', '')
    expect(hostOf(a)).toMatch(/^nqn\.2014-08\.org\.nvmexpress:uuid:[0-9a-f-]{36}$/)
    expect(hostOf(a)).toBe(hostOf(b))
    const uuid = hostOf(a).slice(-36).replaceAll('-', '')
    expect(Buffer.from(a.admin!.connectData.subarray(0, 16)).toString('hex')).toBe(uuid)
    expect(a.admin!.keepAliveMs).toBe(10_000)
  })

  it.each([
    ['another transport', { trtype: 'rdma' }, 'ENOTSUP', /trtype rdma is not supported: use TCP/],
    ['a local device', { trtype: 'pcie', traddr: '0000:01:00.0' }, 'ENOTSUP', /bdev_uring_create/],
    ['a host name', { traddr: 'gateway-a' }, 'INVALID_PARAMS', /traddr gateway-a is not an IP address/],
    [
      'the wrong family',
      { adrfam: 'ipv6' },
      'INVALID_PARAMS',
      /10\.0\.0\.1 is no address of the family ipv6/,
    ],
    ['no port', { trsvcid: '99999' }, 'INVALID_PARAMS', /trsvcid 99999 is not a port/],
    ['no subsystem', { subnqn: undefined }, 'INVALID_PARAMS', /subnqn is missing/],
    ['no NQN', { subnqn: 'cnode1' }, 'INVALID_PARAMS', /"cnode1" is not an NQN/],
    ['digests', { hdgst: true }, 'ENOTSUP', /digests are not supported/],
    ['TLS', { psk: 'key0' }, 'ENOTSUP', /TLS is not supported/],
    ['authentication', { dhchap_key: 'key0' }, 'ENOTSUP', /authentication is not supported/],
    [
      'a loss time-out without delay',
      { ctrlr_loss_timeout_sec: 5 },
      'INVALID_PARAMS',
      /needs reconnect_delay_sec/,
    ],
    [
      'a loss time-out below the delay',
      { ctrlr_loss_timeout_sec: 5, reconnect_delay_sec: 6 },
      'INVALID_PARAMS',
      /-1 or at least reconnect_delay_sec \(ctrlr_loss_timeout_sec 5, reconnect_delay_sec 6/,
    ],
    [
      'a fast failure that is not fast',
      { ctrlr_loss_timeout_sec: 5, reconnect_delay_sec: 2, fast_io_fail_timeout_sec: 5 },
      'INVALID_PARAMS',
      /fast_io_fail_timeout_sec is less than/,
    ],
    ['a selector without a use', { multipath_opts: { selector: 'round_robin' } }, 'EINVAL', /active_active/],
  ])('refuses %s', async (_, more, code, message) => {
    const fake = host.fake()
    const refusal = attach(fake, more)
    await expect(refusal).rejects.toMatchObject({ code, message: expect.stringMatching(message) })
    expect(fake.accepted).toBe(0)
    expect(host.nvme.isEmpty).toBe(true)
  })

  it('refuses a second path with the words of SPDK', async () => {
    const [a, b] = gateways()
    await attach(a, { hostnqn: 'nqn.2014-08.org:host1' })
    const refusal = async (fake: FakeController, more: object): Promise<object> => {
      const error = (await attach(fake, more).catch((caught: unknown) => caught)) as {
        number: number
        message: string
      }
      return [error.number, error.message]
    }
    const exists = 'A controller named Nvme0 already exists'
    expect(await refusal(b, { multipath: 'disable' })).toEqual([
      -114,
      expect.stringContaining(`${exists} and multipath is disabled`),
    ])
    expect(await refusal(a, {})).toEqual([
      -114,
      expect.stringContaining(`${exists} with the specified network path`),
    ])
    expect(await refusal(b, { subnqn: 'nqn.2016-06.io.spdk:other' })).toEqual([
      -22,
      expect.stringContaining(`${exists} but uses a different subnqn (${SUBNQN})`),
    ])
    expect(await refusal(b, { hostnqn: 'nqn.2014-08.org:host2' })).toEqual([
      -22,
      expect.stringContaining(`${exists} but uses a different hostnqn`),
    ])
  })

  it('refuses a path to another namespace, and leaves the first path alone', async () => {
    const a = host.fake({ cntlid: 1 })
    const b = host.fake({ port: 4421, cntlid: 100 }, [namespace({ uuid: 'cd'.repeat(16) })])
    await attach(a)
    await expect(attach(b)).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringMatching(
        /namespace 1 at 10\.0\.0\.1 port 4421 is not the one of the other paths: uuid cdcd/,
      ),
    })
    expect(host.nvme.get('Nvme0').paths).toHaveLength(1)
    expect(b.connections).toEqual([])
  })

  it('refuses a path whose controller id is taken, and names the remedy', async () => {
    const shared = namespace()
    const a = host.fake({ cntlid: 1 }, [shared])
    const b = host.fake({ port: 4421, cntlid: 1 }, [shared])
    await attach(a)
    await expect(attach(b)).rejects.toThrow(/both have the controller id 1: .*min_cntlid, max_cntlid/)
  })

  it('says why a controller cannot be reached, and keeps nothing of it', async () => {
    const fake = host.fake()
    fake.down()
    const refusal = attach(fake, { ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 2 })
    await expect(refusal).rejects.toMatchObject({
      code: 'EIO',
      message: 'Nvme0: 10.0.0.1 port 4420: connecting to 10.0.0.1 port 4420: ECONNREFUSED',
    })
    expect(host.nvme.isEmpty).toBe(true)
  })

  it('passes on why a controller refuses this host', async () => {
    const fake = host.fake()
    // Connect Invalid Host, with Do Not Retry.
    fake.intercept = ({ opcode }) => (opcode === 0x7f ? 0x4184 : undefined)
    await expect(attach(fake)).rejects.toThrow(/Connect was refused: the host is not allowed to connect/)
  })

  it('leaves out a namespace that cannot be used, and says what is wrong when there is no other', async () => {
    const odd = namespace({ nsid: 2, blockSize: 256, uuid: 'ef'.repeat(16) })
    const mixed = host.fake({ port: 4430 }, [namespace(), odd])
    expect(await attach(mixed)).toEqual(['Nvme0n1'])
    await call('bdev_nvme_detach_controller', { name: 'Nvme0' })
    await expect(attach(host.fake({ port: 4431 }, [odd]))).rejects.toThrow(
      /Nvme0: namespace 2 has blocks of 2\^8 bytes: format it/,
    )
  })

  it('keeps a path that is down when a saved configuration is replayed', async () => {
    const fake = host.fake()
    fake.down()
    host.nvme.isRestoring = true
    expect(await attach(fake, { ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 2 })).toEqual([])
    host.nvme.isRestoring = false
    expect(host.bdevs.find('Nvme0n1')).toBeUndefined()
    fake.up()
    await host.advance(2500)
    expect(host.bdevs.find('Nvme0n1')).toBeDefined()
  })

  it('turns to the other address in failover mode, where only one is connected', async () => {
    const [a, b] = gateways()
    await attach(a, { multipath: 'failover', ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 2 })
    await attach(b, { multipath: 'failover' })
    expect(b.accepted).toBe(0)
    a.down()
    await host.settle()
    const [{ ctrlrs }] = (await call('bdev_nvme_get_controllers')) as [{ ctrlrs: unknown[] }]
    expect(ctrlrs).toMatchObject([
      { state: 'enabled', trid: trid(4421), alternate_trids: [trid(4420)], cntlid: 100 },
    ])
  })
})

describe('other methods', () => {
  it('detach one path by its address, then the controller', async () => {
    const [a, b] = gateways()
    await attach(a)
    await attach(b)
    const one = { name: 'Nvme0', trtype: 'TCP', traddr: '10.0.0.1', trsvcid: '4420' }
    expect(await call('bdev_nvme_detach_controller', one)).toBe(true)
    expect(host.nvme.get('Nvme0').paths).toHaveLength(1)
    await expect(call('bdev_nvme_detach_controller', one)).rejects.toMatchObject({
      code: 'ENXIO',
      message: expect.stringContaining('there is 10.0.0.1:4421'),
    })
    expect(await call('bdev_nvme_detach_controller', { name: 'Nvme0' })).toBe(true)
    expect(host.bdevs.list()).toEqual([])
    await expect(call('bdev_nvme_detach_controller', { name: 'Nvme0' })).rejects.toMatchObject({
      code: 'ENODEV',
    })
  })

  it('reset connects anew; disable and enable hold in between', async () => {
    const [a] = gateways()
    await attach(a)
    const before = a.accepted
    expect(await call('bdev_nvme_reset_controller', { name: 'Nvme0' })).toBe(true)
    expect(a.accepted).toBeGreaterThan(before)
    expect(await call('bdev_nvme_disable_controller', { name: 'Nvme0', cntlid: 2 })).toBe(true)
    expect(await call('bdev_nvme_get_controllers')).toMatchObject([{ ctrlrs: [{ state: 'disabled' }] }])
    await host.advance(60_000, 1000)
    expect(a.connections).toEqual([])
    await expect(call('bdev_nvme_disable_controller', { name: 'Nvme0' })).rejects.toMatchObject({
      code: 'EALREADY',
    })
    expect(await call('bdev_nvme_enable_controller', { name: 'Nvme0' })).toBe(true)
    expect(await call('bdev_nvme_get_controllers')).toMatchObject([{ ctrlrs: [{ state: 'enabled' }] }])
  })

  it('reset refuses a path that is being detached', async () => {
    const [a] = gateways()
    await attach(a)
    const detached = host.nvme.detachPath(host.nvme.get('Nvme0').paths[0]!)
    await expect(call('bdev_nvme_reset_controller', { name: 'Nvme0' })).rejects.toMatchObject({
      code: 'ENODEV',
      message: expect.stringContaining('10.0.0.1 port 4420 is being detached'),
    })
    await host.run(detached)
  })

  it('show the paths of each reactor, and which one is in use', async () => {
    host.close()
    start(2)
    const [a, b] = gateways()
    await attach(a)
    await attach(b)
    const channels = [host.open('Nvme0n1', 0), host.open('Nvme0n1', 1)]
    expect(channels).toHaveLength(2)
    await host.settle()
    await call('bdev_nvme_set_preferred_path', { name: 'Nvme0n1', cntlid: 100 })
    const paths = [
      { bdev_name: 'Nvme0n1', cntlid: 1, current: false, connected: true, accessible: true },
      { bdev_name: 'Nvme0n1', cntlid: 100, current: true, connected: true, accessible: true },
    ]
    expect(await call('bdev_nvme_get_io_paths', { name: 'Nvme0n1' })).toMatchObject({
      poll_groups: [
        { thread: 'reactor_0', io_paths: paths },
        { thread: 'reactor_1', io_paths: paths },
      ],
    })
  })

  it('read the SMART log', async () => {
    await attach(host.fake())
    const health = await call('bdev_nvme_get_controller_health_info', { name: 'Nvme0' })
    expect(health).toMatchObject({ model_number: 'a model', temperature_celsius: 27 })
  })

  it('count the I/O of each path only when asked to', async () => {
    await attach(host.fake())
    await expect(call('bdev_nvme_get_path_iostat', { name: 'Nvme0n1' })).rejects.toMatchObject({
      code: 'EPERM',
    })
    await expect(call('bdev_nvme_set_options', { io_path_stat: true })).rejects.toMatchObject({
      code: 'EPERM',
      message: expect.stringContaining('RPC not permitted with nvme controllers already attached'),
    })
    await call('bdev_nvme_detach_controller', { name: 'Nvme0' })
    await call('bdev_nvme_set_options', { io_path_stat: true })
    await attach(host.fake({ port: 4421 }))
    expect(await call('bdev_nvme_get_path_iostat', { name: 'Nvme0n1' })).toMatchObject({
      name: 'Nvme0n1',
      stats: [{ trid: trid(4421), unfenced_writes: 0 }],
    })
  })

  it('are saved as the calls that bring everything back', async () => {
    const [a, b] = gateways()
    await call('bdev_nvme_set_options', { keep_alive_timeout_ms: 4000 })
    await attach(a, { hostnqn: 'nqn.2014-08.org:host1', ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 20 })
    await attach(b)
    const policy = { name: 'Nvme0n1', policy: 'active_active', selector: 'round_robin', rr_min_io: 4 }
    await call('bdev_nvme_set_multipath_policy', policy)
    const saved = host.bdevs.config()
    expect(saved.map(({ method }) => method)).toEqual([
      'bdev_nvme_set_options',
      'bdev_nvme_attach_controller',
      'bdev_nvme_attach_controller',
      'bdev_nvme_set_multipath_policy',
    ])
    expect(saved[1]!.params).toMatchObject({ trsvcid: '4420', hostnqn: 'nqn.2014-08.org:host1' })
    expect(saved[3]!.params).toEqual(policy)

    await call('bdev_nvme_detach_controller', { name: 'Nvme0' })
    host.nvme.isRestoring = true
    for (const { method, params } of saved) await call(method, params)
    expect(host.bdevs.config()).toEqual(saved)
    expect(host.bdevs.get('Nvme0n1').driverSpecific).toMatchObject({
      mp_policy: 'active_active',
      nvme: [{ trid: trid(4420) }, { trid: trid(4421) }],
    })
  })
})

describe('namespaces that change', () => {
  it('are resized, appear and vanish as the controller says', async () => {
    const first = namespace()
    const fake = host.fake({}, [first])
    await attach(fake)
    await host.settle()
    fake.namespaces[0]!.data = new Uint8Array(512 * 2048)
    fake.namespaces.push(namespace({ nsid: 2, uuid: 'ef'.repeat(16) }))
    fake.notify(0, 4)
    await host.settle()
    expect(host.bdevs.list().map(({ name, blockCount }) => [name, blockCount])).toEqual([
      ['Nvme0n1', 2048],
      ['Nvme0n2', 1024],
    ])
    fake.namespaces.shift()
    fake.notify(0, 4)
    await host.settle()
    expect(host.bdevs.list().map(({ name }) => name)).toEqual(['Nvme0n2'])
  })

  it('are new devices when their identifiers are new', async () => {
    const fake = host.fake()
    await attach(fake)
    await host.settle()
    const { uuid } = host.bdevs.get('Nvme0n1')
    fake.namespaces[0]!.uuid = 'ab'.repeat(16)
    fake.notify(0, 4)
    await host.settle()
    expect(host.bdevs.get('Nvme0n1').uuid).not.toBe(uuid)
  })

  it('keep all their paths when each hears of the change in its turn', async () => {
    const [a, b] = gateways()
    await attach(a)
    await attach(b)
    await host.settle()
    a.namespaces[0]!.uuid = 'ab'.repeat(16)
    for (const fake of [a, b]) {
      fake.notify(0, 4)
      await host.settle()
    }
    expect(host.bdevs.get('Nvme0n1').uuid.replaceAll('-', '')).toBe('ab'.repeat(16))
    expect(host.nvme.get('Nvme0').paths.map(({ accepted }) => accepted.length)).toEqual([1, 1])
  })
})

describe('discovery services', () => {
  const SERVICE = { name: 'disc', trtype: 'tcp', traddr: '10.0.0.1', trsvcid: '8009', wait_for_attach: true }
  const subsystem = ({ host: at, port }: FakeController): FakeController['discovery'][number] => ({
    subtype: 2,
    host: at,
    port,
    subnqn: SUBNQN,
  })

  it('attach what the log names, follow its changes, and detach all in the end', async () => {
    const [a, b] = gateways()
    const discovery = host.fake({ port: 8009 }, [])
    const referral = {
      subtype: 1,
      host: '10.0.0.9',
      port: 8010,
      subnqn: 'nqn.2014-08.org.nvmexpress.discovery',
    }
    discovery.discovery = [subsystem(a), referral]
    expect(await call('bdev_nvme_start_discovery', SERVICE)).toBe(true)
    expect(host.bdevs.list().map(({ name }) => name)).toEqual(['disc0n1'])
    expect(await call('bdev_nvme_get_discovery_info')).toMatchObject([
      {
        name: 'disc',
        trid: { trsvcid: '8009' },
        referrals: [{ trid: { traddr: '10.0.0.9', trsvcid: '8010' } }],
      },
    ])

    const change = async (entries: FakeController['discovery']): Promise<void> => {
      await host.settle()
      discovery.discovery = entries
      discovery.generation++
      discovery.notify(0xf0, 0x70)
      await host.settle()
    }
    await change([subsystem(a), subsystem(b)])
    const portsOf = (): string[] => host.nvme.get('disc0').paths.map(path => path.trid.trsvcid)
    expect(portsOf()).toEqual(['4420', '4421'])
    await change([subsystem(b)])
    expect(portsOf()).toEqual(['4421'])
    expect(host.bdevs.config().map(({ method }) => method)).toEqual(['bdev_nvme_start_discovery'])

    expect(await call('bdev_nvme_stop_discovery', { name: 'disc' })).toBe(true)
    expect(host.bdevs.list()).toEqual([])
    expect(host.network.openStreams).toBe(0)
  })

  it('cannot be started twice, nor at an address where nobody answers', async () => {
    host.fake({ port: 8009 }, [])
    await call('bdev_nvme_start_discovery', SERVICE)
    await expect(call('bdev_nvme_start_discovery', { ...SERVICE, name: 'other' })).rejects.toMatchObject({
      code: 'EEXIST',
      message: expect.stringContaining('disc follows 10.0.0.1 port 8009 already'),
    })
    const nobody = { ...SERVICE, name: 'other', trsvcid: '8010' }
    await expect(call('bdev_nvme_start_discovery', nobody)).rejects.toMatchObject({ code: 'EIO' })
    await expect(call('bdev_nvme_stop_discovery', { name: 'other' })).rejects.toMatchObject({
      code: 'ENOENT',
    })
  })
})
