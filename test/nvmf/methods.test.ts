import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { address, DISK_UUID, FakeConnection, HOST, NQN, OTHER_HOST, TargetRig } from './support.ts'

let rig: TargetRig
beforeEach(async () => {
  rig = await TargetRig.ready()
  await rig.run(rig.bdevs.create('null', 'disk1', { block_size: 512, num_blocks: 8 }))
})
afterEach(() => rig.close())

const OTHER = 'nqn.2016-06.io.spdk:other'
const create = (params: object) => rig.rpc('nvmf_create_subsystem', params)
const addNs = (namespace: object, nqn = NQN) => rig.rpc('nvmf_subsystem_add_ns', { nqn, namespace })

/** A refusal: its code, and every part that the message must name. */
async function refused(call: Promise<unknown>, code: string, ...parts: string[]): Promise<void> {
  const error = await call.then(
    () => expect.unreachable('it is refused'),
    (reason: Error & { code: string }) => reason,
  )
  for (const part of parts) expect(error.message).toContain(part)
  expect(error.code).toBe(code)
}

describe('a bdev with a cache that only this daemon has', () => {
  const CACHED_UUID = '2d2d3f0a-9a2b-4c55-8b1e-6a7f1c3c9d11'
  const CACHE = { what: 'a cache', remedy: 'switch the cache off' }
  const SHARED = [
    [{ ana_reporting: true }, 'it reports ANA states'],
    [{ min_cntlid: 1, max_cntlid: 32760 }, 'its controller identifiers are only 1 to 32760'],
    [{ min_cntlid: 32761 }, 'its controller identifiers are only 32761 to 65519'],
  ] as const

  const makeCached = async (heldBytesMax: number): Promise<void> => {
    const privateCache = { ...CACHE, heldBytesMax }
    const info = { ...rig.bdevs.get('disk1'), name: 'cached', uuid: CACHED_UUID, privateCache }
    await rig.run(rig.bdevs.add(info))
  }

  it.each(SHARED)(
    'is no namespace of a subsystem that several gateways may serve: %j',
    async (params, why) => {
      await makeCached(24 << 20)
      await create({ nqn: OTHER, ...params })
      const parts = ['bdev cached', '(a cache)', OTHER, why, 'up to 24 MiB', 'switch the cache off']
      await refused(addNs({ bdev_name: 'cached' }, OTHER), 'EINVAL', ...parts)
      // Nothing of the refusal is left: the device is free, and so is the nsid.
      expect(await addNs({ bdev_name: 'disk1' }, OTHER)).toBe(1)
      expect(rig.bdevs.ownersOf('cached')).toBe('')
    },
  )

  it('is refused there when it writes through, too: it answers reads', async () => {
    await makeCached(0)
    await create({ nqn: OTHER, ana_reporting: true })
    const harm = 'hosts would read from it what was replaced through another gateway'
    await refused(addNs({ bdev_name: 'cached' }, OTHER), 'EINVAL', harm)
  })

  it.each([{}, { min_cntlid: 1, max_cntlid: 65519, ana_reporting: false }])(
    'is one of a subsystem that nothing says others serve: %j',
    async params => {
      await makeCached(24 << 20)
      await create({ nqn: OTHER, ...params })
      expect(await addNs({ bdev_name: 'cached' }, OTHER)).toBe(1)
    },
  )
})

describe('the commands of a gateway, as SPDK clients send them', () => {
  it('build two gateways of one subsystem that agree on the namespace', async () => {
    const build = async (gateway: TargetRig, min: number, max: number) => {
      const nqn = 'nqn.2021-06.io.spdk:ctc_rbd0'
      await gateway.rpc('nvmf_create_transport', {
        trtype: 'tcp',
        max_io_qpairs_per_ctrlr: 64,
        no_srq: false,
        c2h_success: true,
      })
      await gateway.run(
        gateway.bdevs.create('null', 'rbd0', { block_size: 4096, num_blocks: 8, uuid: DISK_UUID }),
      )
      await gateway.rpc('nvmf_create_subsystem', {
        nqn,
        allow_any_host: true,
        serial_number: 'SPDK_BDEV_0',
        min_cntlid: min,
        max_cntlid: max,
      })
      expect(await gateway.rpc('nvmf_subsystem_add_ns', { nqn, namespace: { bdev_name: 'rbd0' } })).toBe(1)
      await gateway.rpc('nvmf_subsystem_add_listener', {
        nqn,
        listen_address: { trtype: 'tcp', traddr: '127.0.0.1', trsvcid: '4420' },
      })
      return gateway.rpc<{ namespaces: object[] }[]>('nvmf_get_subsystems', { nqn })
    }
    const [a, b] = [new TargetRig(1), new TargetRig(1)]
    const [first] = await build(a, 1, 32760)
    const [second] = await build(b, 32761, 65519)
    expect(first).toMatchObject({
      nqn: 'nqn.2021-06.io.spdk:ctc_rbd0',
      subtype: 'NVMe',
      listen_addresses: [{ trtype: 'TCP', adrfam: 'IPv4', traddr: '127.0.0.1', trsvcid: '4420' }],
      allow_any_host: true,
      hosts: [],
      serial_number: 'SPDK_BDEV_0',
      max_namespaces: 32,
      passthrough: false,
      min_cntlid: 1,
      max_cntlid: 32760,
    })
    expect(first!.namespaces).toEqual([
      {
        nsid: 1,
        bdev_name: 'rbd0',
        name: 'rbd0',
        uuid: DISK_UUID,
        nguid: '2D2D3F0A9A2B4C558B1E6A7F1C3C9D10',
        eui64: expect.stringMatching(/^[0-9A-F]{16}$/),
      },
    ])
    expect(second!.namespaces).toEqual(first!.namespaces)
    a.close()
    b.close()
  })

  it('list the discovery subsystem first, and the transport with its defaults', async () => {
    const subsystems = await rig.rpc<{ nqn: string; subtype: string }[]>('nvmf_get_subsystems')
    expect(subsystems[0]).toEqual({
      nqn: 'nqn.2014-08.org.nvmexpress.discovery',
      subtype: 'Discovery',
      listen_addresses: [],
      allow_any_host: true,
      hosts: [],
    })
    expect(await rig.rpc('nvmf_get_transports', { trtype: 'tcp' })).toMatchObject([
      {
        trtype: 'TCP',
        max_queue_depth: 128,
        max_io_qpairs_per_ctrlr: 127,
        in_capsule_data_size: 4096,
        max_io_size: 131072,
        max_aq_depth: 128,
        c2h_success: true,
        kas: 10,
        min_kato: 10000,
      },
    ])
  })
})

describe('a transport', () => {
  it('of RDMA is refused with what to use instead', async () => {
    const empty = new TargetRig(1)
    await refused(empty.rpc('nvmf_create_transport', { trtype: 'RDMA' }), 'INVALID_PARAMS', 'RDMA', '-t TCP')
    await refused(empty.rpc('nvmf_create_transport', { trtype: 'PCIE' }), 'INVALID_PARAMS', "'PCIE'", 'TCP')
    await refused(
      empty.rpc('nvmf_get_transports', { trtype: 'TCP' }),
      'ENODEV',
      'TCP',
      'nvmf_create_transport',
    )
    empty.close()
  })

  it('exists once', () =>
    refused(rig.rpc('nvmf_create_transport', { trtype: 'TCP' }), 'INTERNAL', "'TCP' already exists"))

  it.each([
    ['max_io_size', 3 << 16, '196608'],
    ['max_io_size', 1 << 21, '1048576'],
    ['max_queue_depth', 1, '2 to 4096'],
    ['in_capsule_data_size', 100, 'multiple of 16'],
    ['max_io_qpairs_per_ctrlr', 0, '1 to 65534'],
    ['masked_oncs', 'compare', 'nvmcmps'],
  ])('is refused with %s %s', async (option, value, part) => {
    const empty = new TargetRig(1)
    const params = { trtype: 'TCP', [option]: value }
    await refused(empty.rpc('nvmf_create_transport', params), 'INVALID_PARAMS', option, String(value), part)
    empty.close()
  })

  it('hides what is masked from hosts', async () => {
    const masked = new TargetRig(1)
    await masked.rpc('nvmf_create_transport', {
      trtype: 'TCP',
      masked_oncs: 'nvmcmps,nvmwzsv',
      masked_fuses: 'all',
    })
    await masked.rpc('nvmf_create_subsystem', { nqn: NQN, allow_any_host: true })
    await masked.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: address('4420') })
    const data = await (await masked.host()).identify('01')
    expect(data.getUint16(520, true)).toBe(0x0014)
    expect(data.getUint16(522, true)).toBe(0)
    masked.close()
  })
})

describe('a subsystem', () => {
  it.each([
    ['nqn.2016-06.io.spdk', 'has no ":"'],
    ['nqn.16-06.io.spdk:x', 'year and month'],
    ['iqn.2016-06.io.spdk:x', 'year and month'],
    ['nqn.2016-06.io.-spdk:x', '"-spdk"'],
    ['nqn.2016-06.io..spdk:x', '""'],
    ['nqn.2016-06.io.spdk:', 'has no ":" followed'],
    ['nqn.2014-08.org.nvmexpress:uuid:1234', 'no UUID'],
    [`nqn.2016-06.io.spdk:${'x'.repeat(210)}`, 'has 230 bytes, more than 223'],
  ])('is not called %s', (nqn, part) => refused(create({ nqn }), 'INVALID_PARAMS', nqn, part))

  it.each([
    [
      'a serial number of 21 characters',
      { serial_number: 's'.repeat(21) },
      'has 21 characters, more than 20',
    ],
    ['a serial number beyond ASCII', { serial_number: 'S\u001f' }, 'printable ASCII'],
    ['a model of 41 characters', { model_number: 'm'.repeat(41) }, 'has 41 characters, more than 40'],
    ['controller ids from 0', { min_cntlid: 0 }, 'Invalid cntlid range [0-65519]'],
    ['controller ids beyond 65519', { max_cntlid: 65520 }, 'Invalid cntlid range [1-65520]'],
    ['controller ids upside down', { min_cntlid: 6, max_cntlid: 5 }, 'Invalid cntlid range [6-5]'],
    ['too many namespaces', { max_namespaces: 9000 }, '8192'],
    ['a label of three characters', { admin_label: 'abc' }, 'Invalid admin_label'],
    ['passthrough', { passthrough: true }, 'passthrough'],
  ])('does not have %s', (_, options, part) =>
    refused(create({ nqn: OTHER, ...options }), 'INVALID_PARAMS', part),
  )

  it('has an NQN of its own', () =>
    refused(create({ nqn: NQN }), 'INTERNAL', `Unable to create subsystem ${NQN}`, 'exists already'))

  it('finds its place, or the limit', async () => {
    rig.rpcInfo.state = 'startup'
    await rig.rpc('nvmf_set_max_subsystems', { max_subsystems: 2 })
    rig.rpcInfo.state = 'runtime'
    await refused(create({ nqn: OTHER }), 'INTERNAL', OTHER, '2 of at most 2', 'nvmf_set_max_subsystems')
  })

  it('is named when it is not found, as is another target', async () => {
    await refused(
      rig.rpc('nvmf_get_subsystems', { nqn: OTHER }),
      'INVALID_PARAMS',
      `Subsystem with NQN '${OTHER}' not found`,
    )
    await refused(create({ nqn: OTHER, tgt_name: 'foo' }), 'INVALID_PARAMS', 'Unable to find target')
    expect(await create({ nqn: OTHER, tgt_name: 'nvmf_tgt' })).toBe(true)
  })

  it('ends its hosts and frees device and address when it is deleted', async () => {
    const host = await rig.host()
    host.listen()
    const queue = await rig.ioQueue(host, 1, 1)
    await rig.rpc('nvmf_delete_subsystem', { nqn: NQN })
    expect([host.connection.isClosed, queue.isClosed]).toEqual([true, true])
    expect(rig.sockets.open.size).toBe(0)
    await create({ nqn: NQN })
    expect(await addNs({ bdev_name: 'disk0' })).toBe(1)
  })
})

describe('a host that still sets its controller up when that is ended', () => {
  it('hears so by the answer to its next command, which lets it try again', async () => {
    const host = await rig.host()
    const queue = await rig.ioQueue(host, 1, 1)
    await rig.rpc('nvmf_delete_subsystem', { nqn: NQN })
    expect([host.connection.isClosed, queue.isClosed]).toEqual([false, true])
    // Internal Path Error, without Do Not Retry, to a Property Get.
    expect(await host.admin({ 0: '7f 00 0000 04' })).toEqual({ status: 0x300 })
    expect(host.connection.isClosed).toBe(true)
  })

  it('is waited for no longer than a second', async () => {
    const host = await rig.host()
    await rig.rpc('nvmf_delete_subsystem', { nqn: NQN })
    await rig.advance(900)
    expect(host.connection.isClosed).toBe(false)
    await rig.advance(200)
    expect(host.connection.isClosed).toBe(true)
  })
})

describe('a namespace', () => {
  it('gets the lowest free number, or the one asked for', async () => {
    expect(await addNs({ bdev_name: 'disk1', nsid: 7 })).toBe(7)
    await rig.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid: 1 })
    expect(await addNs({ bdev_name: 'disk0' })).toBe(1)
  })

  it('is refused where it cannot be, with both names', async () => {
    await refused(
      addNs({ bdev_name: 'disk1', nsid: 1 }),
      'INVALID_PARAMS',
      'namespace id 1',
      'disk0',
      'disk1',
      'choose 2',
    )
    await refused(
      addNs({ bdev_name: 'disk1', nsid: 33 }),
      'INVALID_PARAMS',
      '33',
      'above the 32',
      'max_namespaces',
    )
    await refused(addNs({ bdev_name: 'disk1', anagrpid: 33 }), 'INVALID_PARAMS', 'ANA group 33', '1 to 32')
    await refused(addNs({ bdev_name: 'nodisk' }), 'ENODEV', 'nodisk', 'disk0, disk1')
    await refused(
      addNs({ bdev_name: 'disk1', nguid: '12' }),
      'INVALID_PARAMS',
      'namespace.nguid',
      '32 hexadecimal',
    )
    await refused(
      rig.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid: 9 }),
      'INVALID_PARAMS',
      'no namespace 9',
      'it has 1',
    )
    await create({ nqn: OTHER })
    await refused(addNs({ bdev_name: 'disk0' }, OTHER), 'EPERM', 'disk0', OTHER, NQN)
  })

  it('keeps the identifiers it was given', async () => {
    const uuid = 'CECCF520-691E-4B46-9546-34AF789907C5'
    await addNs({ bdev_name: 'disk1', uuid, nguid: 'ab'.repeat(16), eui64: '0123456789abcdef' })
    const [subsystem] = await rig.rpc<{ namespaces: object[] }[]>('nvmf_get_subsystems', { nqn: NQN })
    expect(subsystem!.namespaces[1]).toMatchObject({
      uuid: uuid.toLowerCase(),
      nguid: 'AB'.repeat(16),
      eui64: '0123456789ABCDEF',
    })
  })

  it('is shown to hosts one by one only when it was added so', () =>
    refused(
      rig.rpc('nvmf_ns_add_host', { nqn: NQN, nsid: 1, host: HOST }),
      'INVALID_PARAMS',
      'visible to every host',
      'no_auto_visible',
    ))

  it('goes with its device', async () => {
    await rig.run(rig.bdevs.remove('disk0'))
    const [subsystem] = await rig.rpc<{ namespaces: object[] }[]>('nvmf_get_subsystems', { nqn: NQN })
    expect(subsystem!.namespaces).toEqual([])
  })
})

describe('a listener', () => {
  const add = (listen_address: object, rest: object = {}) =>
    rig.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address, ...rest })

  it('shares its socket with other subsystems, and closes it with the last', async () => {
    await create({ nqn: OTHER })
    await rig.rpc('nvmf_subsystem_add_listener', { nqn: OTHER, listen_address: address('4420') })
    await rig.rpc('nvmf_subsystem_add_listener', { nqn: 'discovery', listen_address: address('4420') })
    expect(rig.sockets.open.size).toBe(1)
    for (const nqn of [NQN, OTHER, 'discovery']) {
      expect(rig.sockets.open.size).toBe(1)
      await rig.rpc('nvmf_subsystem_remove_listener', { nqn, listen_address: address('4420') })
    }
    expect(rig.sockets.open.size).toBe(0)
    expect(rig.unlistened).toEqual([1, 1])
  })

  it('ends the hosts that came by it when it is removed, and no others', async () => {
    await add(address('4421'))
    const stays = await rig.host({}, { connection: new FakeConnection(2) })
    const goes = await rig.host()
    goes.listen()
    await rig.rpc('nvmf_subsystem_remove_listener', { nqn: NQN, listen_address: address('4420') })
    expect([stays.connection.isClosed, goes.connection.isClosed]).toEqual([false, true])
  })

  it('takes a free port for 0, and IPv6 in any spelling', async () => {
    await add({ trtype: 'TCP', adrfam: 'ipv6', traddr: '0:0::1', trsvcid: '0' })
    const listeners = await rig.rpc<{ address: object }[]>('nvmf_subsystem_get_listeners', { nqn: NQN })
    expect(listeners[1]).toEqual({
      address: { trtype: 'TCP', adrfam: 'IPv6', traddr: '::1', trsvcid: '40002' },
    })
  })

  it.each<[string, object, object, string[]]>([
    [
      'a name',
      { trtype: 'TCP', traddr: 'localhost', trsvcid: '4420' },
      {},
      ['"localhost"', 'address itself'],
    ],
    [
      'another family',
      { trtype: 'TCP', adrfam: 'ipv6', traddr: '127.0.0.1', trsvcid: '1' },
      {},
      ['ipv6', 'IPv4'],
    ],
    ['no port', { trtype: 'TCP', traddr: '127.0.0.1' }, {}, ['Service ID is required']],
    ['a port beyond 65535', { trtype: 'TCP', traddr: '127.0.0.1', trsvcid: '65536' }, {}, ['"65536"']],
    ['RDMA', { trtype: 'rdma', traddr: '127.0.0.1', trsvcid: '4420' }, {}, ['rdma', 'TCP']],
    ['itself', address('4420'), {}, ['Listener already exists', NQN, '127.0.0.1:4420']],
    ['TLS', address('4429'), { secure_channel: true }, ['TLS']],
  ])('is refused with %s', (_, listen_address, rest, parts) =>
    refused(add(listen_address, rest), 'INVALID_PARAMS', ...parts),
  )

  it('needs a transport', async () => {
    const empty = new TargetRig(1)
    await empty.rpc('nvmf_create_subsystem', { nqn: NQN })
    await refused(
      empty.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: address('4420') }),
      'INVALID_PARAMS',
      'no TCP transport',
      'nvmf_create_transport',
    )
    empty.close()
  })

  it('has an ANA state only where hosts are told of it', async () => {
    const state = { nqn: NQN, listen_address: address('4420'), ana_state: 'inaccessible' }
    await refused(
      rig.rpc('nvmf_subsystem_listener_set_ana_state', state),
      'INVALID_PARAMS',
      NQN,
      'ana_reporting',
    )
    await create({ nqn: OTHER, ana_reporting: true, max_namespaces: 3 })
    await rig.rpc('nvmf_subsystem_add_listener', {
      nqn: OTHER,
      listen_address: address('4420'),
      ana_state: 'non_optimized',
    })
    await rig.rpc('nvmf_subsystem_listener_set_ana_state', { ...state, nqn: OTHER, anagrpid: 2 })
    expect(await rig.rpc('nvmf_subsystem_get_listeners', { nqn: OTHER })).toEqual([
      {
        address: address('4420'),
        ana_states: [
          { ana_group: 1, ana_state: 'non_optimized' },
          { ana_group: 2, ana_state: 'inaccessible' },
          { ana_group: 3, ana_state: 'non_optimized' },
        ],
      },
    ])
    await refused(
      rig.rpc('nvmf_subsystem_listener_set_ana_state', { ...state, nqn: OTHER, anagrpid: 4 }),
      'INVALID_PARAMS',
      'ANA group 4',
      '1 to 3',
    )
    await refused(
      rig.rpc('nvmf_subsystem_listener_set_ana_state', {
        ...state,
        nqn: OTHER,
        listen_address: address('9'),
      }),
      'INVALID_PARAMS',
      '127.0.0.1:9',
      'it has 127.0.0.1:4420',
    )
  })
})

describe('a host', () => {
  beforeEach(async () => {
    await rig.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: false })
    await rig.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: HOST })
    await rig.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: OTHER_HOST })
  })

  it('is disconnected when it is removed, and others are not', async () => {
    const [goes, stays] = [await rig.host(), await rig.host({ hostnqn: OTHER_HOST }, { reactor: 1 })]
    goes.listen()
    await rig.rpc('nvmf_subsystem_remove_host', { nqn: NQN, host: HOST })
    expect([goes.connection.isClosed, stays.connection.isClosed]).toEqual([true, false])
  })

  it('is waited for only as long as asked', async () => {
    const host = await rig.host()
    host.listen()
    host.connection.isSlow = true
    const removal = rig.rpc('nvmf_subsystem_remove_host', { nqn: NQN, host: HOST, timeout_ms: 200 })
    const outcome = refused(removal, 'INTERNAL', 'Timeout reached during host removal', HOST)
    await rig.advance(300)
    await outcome
    host.connection.close()
  })

  it('is refused twice, without being there, and with keys', async () => {
    await refused(
      rig.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: HOST }),
      'INVALID_PARAMS',
      HOST,
      'already',
    )
    await refused(
      rig.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: 'me' }),
      'INVALID_PARAMS',
      'host NQN "me"',
    )
    await refused(
      rig.rpc('nvmf_subsystem_remove_host', { nqn: NQN, host: `${HOST.slice(0, -1)}0` }),
      'INVALID_PARAMS',
      'not in the list',
    )
    const keys = { nqn: NQN, host: `${HOST.slice(0, -1)}0`, dhchap_key: 'key0' }
    await refused(rig.rpc('nvmf_subsystem_add_host', keys), 'INVALID_PARAMS', 'authentication')
  })
})

describe('what hosts have open', () => {
  it('is listed with addresses and reactors', async () => {
    const host = await rig.host()
    await rig.ioQueue(host, 1, 1)
    expect(await rig.rpc('nvmf_subsystem_get_controllers', { nqn: NQN })).toEqual([
      {
        cntlid: 1,
        cntrltype: 'io',
        hostnqn: HOST,
        hostid: '00112233-4455-6677-8899-aabbccddeeff',
        num_io_qpairs: 1,
      },
    ])
    expect(await rig.rpc('nvmf_subsystem_get_qpairs', { nqn: NQN })).toMatchObject([
      { cntlid: 1, qid: 0, state: 'enabled', thread: 'reactor_0', listen_address: { trsvcid: '4420' } },
      { cntlid: 1, qid: 1, thread: 'reactor_1', peer_address: { traddr: '127.0.0.9', trsvcid: '50000' } },
    ])
  })

  it('can be limited to one controller a host and listener', async () => {
    rig.rpcInfo.state = 'startup'
    await rig.rpc('nvmf_set_config', { dup_host_policy: 'restrict_per_listener' })
    rig.rpcInfo.state = 'runtime'
    await rig.host()
    expect((await rig.connect()).completion.status).toBe(0x181)
    expect((await rig.connect({ hostid: 'ab'.repeat(16) })).completion.status).toBe(0)
  })
})
