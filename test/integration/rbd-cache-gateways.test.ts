/**
 * RBD's cache and several gateways on one image: without the cache a host that goes on through the next gateway finds
 * everything that was acknowledged; with it no gateway serves the image so.
 *
 *   client: Nvme0n1 ─┬─ gateway A ─┬─ volumes/IMAGE
 *                    └─ gateway B ─┘
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { eventually } from './lab/linux-host.ts'
import { NbdClient } from './lab/nbd-client.ts'

const NQN = 'nqn.2021-06.io.spdk:ctc_rbd0'
const ALONE = {}
const WINDOWS = [
  { min_cntlid: 1, max_cntlid: 32760 },
  { min_cntlid: 32761, max_cntlid: 65519 },
]
/** If there is a cache, it is written out only when it is flushed. */
const LAZY = { rbd_cache_policy: 'writeback', rbd_cache_max_dirty_age: '3600' }

interface Call {
  readonly method: string
  readonly params?: Record<string, unknown>
}
interface State {
  readonly subsystems: readonly { readonly subsystem: string; readonly config: readonly Call[] }[]
}

await describeWith([...CEPH_PROGRAMS, 'qemu-io'], 'the RBD cache behind gateways', () => {
  const daemons: Daemon[] = []
  let ceph: Ceph
  let image: string
  let count = 0

  async function startGateway(options: Readonly<Record<string, string>>): Promise<Daemon> {
    const daemon = await startDaemon()
    daemons.push(daemon)
    const config_param = {
      mon_host: ceph.monitorAddress,
      auth_client_required: 'none',
      ...LAZY,
      ...options,
    }
    await daemon.rpc('nvmf_create_transport', { trtype: 'TCP' })
    await daemon.rpc('bdev_rbd_register_cluster', { name: 'c', user_id: 'admin', config_param })
    const params = { name: 'rbd0', pool_name: 'volumes', rbd_name: image, block_size: 4096 }
    await daemon.rpc('bdev_rbd_create', { ...params, cluster_name: 'c' })
    return daemon
  }

  async function serve(daemon: Daemon, subsystem: object): Promise<void> {
    await daemon.rpc('nvmf_create_subsystem', { nqn: NQN, allow_any_host: true, ...subsystem })
    await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'rbd0' } })
  }

  async function listen(daemon: Daemon): Promise<string> {
    const listen_address = { trtype: 'TCP', traddr: '127.0.0.1', trsvcid: '0' }
    await daemon.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address })
    const [subsystem] = await daemon.rpc<{ listen_addresses: { trsvcid: string }[] }[]>(
      'nvmf_get_subsystems',
      { nqn: NQN },
    )
    return subsystem!.listen_addresses[0]!.trsvcid
  }

  const stateOf = (daemon: Daemon): State =>
    JSON.parse(readFileSync(join(daemon.state, 'config.json'), 'utf8')) as State
  const callsOf = (daemon: Daemon): string[] =>
    stateOf(daemon).subsystems.flatMap(({ config }) => config.map(({ method }) => method))

  beforeAll(async () => {
    ceph = await startCeph()
  })
  afterAll(() => ceph?.stop())
  beforeEach(async () => {
    image = `image${count++}`
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '16', image)
  })
  afterEach(async () => {
    for (const daemon of daemons.splice(0)) await daemon.discard()
  })

  it('loses nothing that was acknowledged when the gateway in use is killed, flushed or not', async () => {
    const gateways: Daemon[] = []
    const client = await startDaemon()
    daemons.push(client)
    for (const window of WINDOWS) {
      const gateway = await startGateway({})
      gateways.push(gateway)
      await serve(gateway, window)
      const address = { trtype: 'TCP', traddr: '127.0.0.1', adrfam: 'IPv4', trsvcid: await listen(gateway) }
      const options = { multipath: 'multipath', ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 1 }
      await client.rpc('bdev_nvme_attach_controller', { name: 'Nvme0', subnqn: NQN, ...address, ...options })
    }
    const host = new NbdClient(client, 'Nvme0n1')
    await host.start()
    // A cache would keep back what comes behind the first flush.
    await host.run('write -P 1 0 64k', 'flush', 'write -P 2 1M 64k', 'abort')
    await gateways[0]!.kill('SIGKILL')
    expect(await host.run('flush')).toBe(0)
    expect(await host.run('read -P 1 0 64k', 'read -P 2 1M 64k')).toBe(0)
  })

  it.each([
    ['has no cache', {}, 2],
    // The reason why that is refused below: librbd reads without the lock, and nobody tells it to forget.
    ['writes through', { rbd_cache: 'true', rbd_cache_policy: 'writethrough' }, 1],
  ])(
    'reads through one gateway what was written through the other, if it %s',
    async (_what, options, seen) => {
      const [a, b] = await Promise.all(
        [0, 1].map(async () => {
          const client = new NbdClient(await startGateway(options), 'rbd0')
          await client.start()
          return client
        }),
      )
      expect(await b!.run('write -P 1 0 64k')).toBe(0)
      // Whoever flushes takes the lock, and forgets when it has to give that away.
      await a!.run('read -P 1 0 64k', 'abort')
      expect(await b!.run('write -P 2 0 64k')).toBe(0)
      expect(await a!.run(`read -P ${seen} 0 64k`)).toBe(0)
    },
  )

  it.each([
    ['an option', { rbd_cache: 'true' }, undefined, 'by the option rbd_cache'],
    ['its pool', {}, 'pool', 'rbd config pool set volumes'],
    ['its own setting', {}, 'image', 'rbd config image set volumes/image'],
    [
      'an option, and writes through',
      { rbd_cache: 'true', rbd_cache_policy: 'writethrough' },
      undefined,
      'what was replaced',
    ],
  ] as const)('is refused when the image has it by %s', async (_what, options, kind, by) => {
    const subject = kind === 'pool' ? 'volumes' : `volumes/${image}`
    if (kind !== undefined) await ceph.run('rbd', 'config', kind, 'set', subject, 'rbd_cache', 'true')
    try {
      const daemon = await startGateway(options)
      for (const subsystem of [...WINDOWS, { ana_reporting: true }]) {
        const error = await serve(daemon, subsystem).then(
          () => expect.unreachable('it is refused'),
          (reason: Error) => reason,
        )
        for (const part of ['bdev rbd0', NQN, by, 'rbd_cache']) expect(error.message).toContain(part)
        await daemon.rpc('nvmf_delete_subsystem', { nqn: NQN })
      }
      // One gateway may, and says what that means.
      await serve(daemon, ALONE)
      const isWarned = daemon.output.includes('bdev rbd0 keeps acknowledged writes in this daemon')
      expect(isWarned).toBe(!('rbd_cache_policy' in options))
    } finally {
      if (kind !== undefined) await ceph.run('rbd', 'config', kind, 'rm', subject, 'rbd_cache')
    }
  })

  it.each([
    ['keeps nothing', { rbd_cache: 'true', rbd_cache_policy: 'writearound', rbd_cache_max_dirty: '0' }],
    ['is off', { rbd_cache: 'false' }],
  ])('is no hindrance when it %s', async (_what, options) => {
    const daemon = await startGateway(options)
    await serve(daemon, { ana_reporting: true, ...WINDOWS[0] })
  })

  it('does not keep a daemon from starting whose saved state has both', async () => {
    const daemon = await startGateway({ rbd_cache: 'true' })
    await serve(daemon, ALONE)
    const port = await listen(daemon)
    await daemon.kill()
    const { subsystems } = stateOf(daemon)
    for (const { config } of subsystems) {
      for (const { method, params } of config) {
        if (method === 'nvmf_create_subsystem') params!['ana_reporting'] = true
      }
    }
    writeFileSync(join(daemon.state, 'config.json'), JSON.stringify({ subsystems }))
    await daemon.start()
    expect(daemon.output).toContain("bdev rbd0 has a cache in this daemon's memory")
    const shown = await daemon.rpc('nvmf_get_subsystems', { nqn: NQN })
    expect(shown).toMatchObject([{ namespaces: [], listen_addresses: [{ trsvcid: port }] }])
    // The call stays, for a start with another configuration of the cache.
    await daemon.rpc('bdev_null_create', { name: 'n0', num_blocks: 8, block_size: 512 })
    await eventually(() => callsOf(daemon)).toContain('bdev_null_create')
    expect(callsOf(daemon)).toContain('nvmf_subsystem_add_ns')
  })
})
