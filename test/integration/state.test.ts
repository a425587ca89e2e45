/** What a daemon remembers, however it ends. */
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, expect, it } from 'vitest'
import { Prng } from '../../src/core/prng.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'

const NQN = 'nqn.2021-06.io.spdk:ctc_rbd0'

interface Subsystem {
  readonly nqn: string
  readonly namespaces?: readonly { readonly bdev_name: string; readonly uuid: string }[]
}

await describeWith(['setpriv'], 'the state of a daemon', () => {
  const daemons: Daemon[] = []
  const directories: string[] = []
  const start = async (...args: string[]): Promise<Daemon> => {
    const daemon = await startDaemon({ args })
    daemons.push(daemon)
    return daemon
  }
  afterEach(async () => {
    for (const daemon of daemons.splice(0)) await daemon.discard()
    for (const directory of directories.splice(0)) rmSync(directory, { recursive: true })
  })

  /** Everything that a client could see of the configuration. */
  async function visible(daemon: Daemon): Promise<unknown> {
    const parts = await daemon.rpc<{ subsystem: string }[]>('framework_get_subsystems')
    const config: Record<string, unknown> = {}
    for (const { subsystem } of parts)
      config[subsystem] = await daemon.rpc('framework_get_config', { name: subsystem })
    const subsystems = await daemon.rpc<Subsystem[]>('nvmf_get_subsystems')
    return { config, subsystems }
  }

  /** Lists of calls in the order of their text. */
  function sorted(value: unknown): unknown {
    if (Array.isArray(value)) {
      return value.map(sorted).toSorted((a, b) => JSON.stringify(a).localeCompare(JSON.stringify(b)))
    }
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, sorted(inner)]))
  }

  async function populate(daemon: Daemon, image: string): Promise<void> {
    await daemon.rpc('nvmf_create_transport', { trtype: 'TCP' })
    await daemon.rpc('bdev_uring_create', { name: 'file0', filename: image, block_size: 512 })
    await daemon.rpc('bdev_malloc_create', { name: 'm0', num_blocks: 2048, block_size: 512 })
    await daemon.rpc('bdev_malloc_create', { name: 'm1', num_blocks: 2048, block_size: 512 })
    await daemon.rpc('bdev_delay_create', {
      name: 'slow0',
      base_bdev_name: 'm0',
      avg_read_latency: 10,
      p99_read_latency: 20,
      avg_write_latency: 10,
      p99_write_latency: 20,
    })
    await daemon.rpc('nvmf_create_subsystem', {
      nqn: NQN,
      serial_number: 'SPDK_BDEV_0',
      ana_reporting: true,
      min_cntlid: 1,
      max_cntlid: 32760,
    })
    await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'file0' } })
    await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'slow0', nsid: 7 } })
    await daemon.rpc('nvmf_subsystem_add_host', {
      nqn: NQN,
      host: 'nqn.2014-08.org.nvmexpress:uuid:6d0dbc6e-4b29-4a1f-9f0c-8d8e9f2a5f0e',
    })
    const listen_address = { trtype: 'TCP', adrfam: 'IPv4', traddr: '127.0.0.1', trsvcid: '0' }
    await daemon.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address })
    const [listener] = await daemon.rpc<{ address: object }[]>('nvmf_subsystem_get_listeners', { nqn: NQN })
    await daemon.rpc('nvmf_subsystem_listener_set_ana_state', {
      nqn: NQN,
      listen_address: listener!.address,
      ana_state: 'non_optimized',
    })
    await daemon.rpc('nbd_export_start', { bdev_name: 'm1', unix: join(daemon.directory, 'm1.nbd') })
  }

  function makeImage(daemon: Daemon): string {
    const image = join(daemon.directory, 'disk.img')
    writeFileSync(image, '')
    truncateSync(image, 8 << 20)
    return image
  }

  it('is all there after SIGKILL, ANA states and identifiers included', async () => {
    const daemon = await start()
    await populate(daemon, makeImage(daemon))
    const before = await visible(daemon)
    await daemon.restart('SIGKILL')
    expect(await visible(daemon)).toEqual(before)
    await daemon.restart('SIGTERM')
    expect(await visible(daemon)).toEqual(before)
  })

  it('is all there where devices have several users, whoever came first', async () => {
    const sockets = mkdtempSync(join(tmpdir(), 'qpair-state-'))
    directories.push(sockets)
    const daemon = await start('-S', sockets)
    await daemon.rpc('nvmf_create_transport', { trtype: 'TCP' })
    await daemon.rpc('nvmf_create_subsystem', { nqn: NQN })
    for (const name of ['m0', 'm1', 'm2']) {
      await daemon.rpc('bdev_malloc_create', { name, num_blocks: 2048, block_size: 512 })
    }
    // Each has a user that does not want it for itself, and then one that does.
    await daemon.rpc('vhost_create_blk_controller', { ctrlr: 'blk0', dev_name: 'm0' })
    await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'm0' } })
    await daemon.rpc('vhost_create_scsi_controller', { ctrlr: 'scsi0' })
    await daemon.rpc('vhost_scsi_controller_add_target', {
      ctrlr: 'scsi0',
      scsi_target_num: 0,
      bdev_name: 'm1',
    })
    await daemon.rpc('bdev_passthru_create', { name: 'p1', base_bdev_name: 'm1' })
    await daemon.rpc('nbd_export_start', { bdev_name: 'm2', unix: join(daemon.directory, 'm2.nbd') })
    await daemon.rpc('bdev_passthru_create', { name: 'p2', base_bdev_name: 'm2' })
    expect(daemon.output).toContain('m0 is written to by vhost controller blk0 and now by subsystem')
    const before = await visible(daemon)
    await daemon.restart('SIGKILL')
    expect(daemon.output).not.toContain('could not restore')
    expect(daemon.output).toMatch(/m0 is written to by subsystem \S+ and now by vhost controller blk0 too/)
    expect(await visible(daemon)).toEqual(before)
    await expect(
      daemon.rpc('vhost_create_blk_controller', { ctrlr: 'blk1', dev_name: 'm0' }),
    ).rejects.toThrow('has it for itself')
  })

  it('is what was last acknowledged, whenever the daemon is killed', async () => {
    const daemon = await start()
    const prng = new Prng(20_261_121)
    /** Acknowledged devices, and the change that was in flight at the kill: it may or may not have been made. */
    const known = new Set<string>()
    for (let round = 0; round < 6; round++) {
      const changeCount = 3 + prng.below(12)
      let inFlight = ''
      for (let i = 0; i <= changeCount; i++) {
        const isLast = i === changeCount
        const remove = known.size > 3 && prng.oneIn(2) ? prng.pick([...known]) : undefined
        const name = remove ?? `n${round}_${i}`
        const change =
          remove === undefined
            ? daemon.rpc('bdev_null_create', { name, num_blocks: 8, block_size: 512 })
            : daemon.rpc('bdev_null_delete', { name })
        if (isLast) {
          // Somewhere between the request and the answer, or just after it.
          for (let turns = prng.below(60); turns > 0; turns--) await new Promise(setImmediate)
          void daemon.kill('SIGKILL')
        }
        const isAcknowledged = await change.then(
          () => true,
          error => {
            if (!isLast) throw error
            return false
          },
        )
        if (!isAcknowledged) inFlight = name
        else if (remove === undefined) known.add(name)
        else known.delete(name)
      }
      await daemon.restart('SIGKILL')
      const bdevs = await daemon.rpc<{ name: string }[]>('bdev_get_bdevs')
      const found = new Set(bdevs.map(({ name }) => name))
      if (inFlight !== '') {
        if (found.has(inFlight)) known.add(inFlight)
        else known.delete(inFlight)
      }
      expect(found).toEqual(known)
    }
  })

  it('keeps what cannot be restored, and has it back once its file is there again', async () => {
    const daemon = await start()
    const image = makeImage(daemon)
    await populate(daemon, image)
    const before = await visible(daemon)
    renameSync(image, `${image}.away`)
    await daemon.restart('SIGKILL')
    expect(daemon.output).toContain('could not restore bdev_uring_create')
    expect(daemon.output).toContain(image)
    const bdevs = await daemon.rpc<{ name: string }[]>('bdev_get_bdevs')
    expect(bdevs.map(({ name }) => name)).toEqual(['m0', 'm1', 'slow0'])
    // A change is saved meanwhile.
    await daemon.rpc('bdev_null_create', { name: 'n0', num_blocks: 8, block_size: 512 })
    await daemon.rpc('bdev_null_delete', { name: 'n0' })
    renameSync(`${image}.away`, image)
    await daemon.restart('SIGKILL')
    // What failed comes after what did not, so only the order may differ.
    expect(sorted(await visible(daemon))).toEqual(sorted(before))
  })

  it('belongs to one daemon at a time', async () => {
    const daemon = await start()
    await expect(startDaemon({ args: ['--state', daemon.state] })).rejects.toThrow(
      `the state directory ${daemon.state} (--state) is in use by another daemon`,
    )
  })

  it('of another daemon loads from an SPDK configuration file, and a broken one is refused with its reason', async () => {
    const first = await start()
    const config = join(first.directory, 'spdk.json')
    const file = {
      subsystems: [
        { subsystem: 'keyring', config: [] },
        { subsystem: 'iobuf', config: [{ method: 'iobuf_set_options', params: { small_pool_count: 8192 } }] },
        {
          subsystem: 'bdev',
          config: [
            {
              method: 'bdev_set_options',
              params: { bdev_io_pool_size: 65535, bdev_io_cache_size: 256, bdev_auto_examine: true },
            },
            { method: 'bdev_raid_set_options', params: { process_window_size_kb: 1024 } },
            {
              method: 'bdev_nvme_set_options',
              params: { action_on_timeout: 'none', keep_alive_timeout_ms: 10000 },
            },
            {
              method: 'bdev_malloc_create',
              params: {
                name: 'Malloc0',
                num_blocks: 8192,
                block_size: 512,
                physical_block_size: 512,
                uuid: '0f1bbd4f-0c8c-4a4e-9d6c-0d7b2fb2a1d1',
                optimal_io_boundary: 0,
              },
            },
            { method: 'bdev_wait_for_examine' },
          ],
        },
        {
          subsystem: 'nvmf',
          config: [
            {
              method: 'nvmf_set_config',
              params: { discovery_filter: 'match_any', admin_cmd_passthru: { identify_ctrlr: false } },
            },
            { method: 'nvmf_set_max_subsystems', params: { max_subsystems: 1024 } },
            {
              method: 'nvmf_create_transport',
              params: { trtype: 'TCP', max_queue_depth: 128, io_unit_size: 131072, c2h_success: true },
            },
            {
              method: 'nvmf_create_subsystem',
              params: {
                nqn: NQN,
                allow_any_host: true,
                serial_number: 'SPDK00000000000001',
                max_namespaces: 32,
                min_cntlid: 1,
                max_cntlid: 65519,
                ana_reporting: false,
              },
            },
            {
              method: 'nvmf_subsystem_add_ns',
              params: {
                nqn: NQN,
                namespace: {
                  nsid: 1,
                  bdev_name: 'Malloc0',
                  nguid: '0F1BBD4F0C8C4A4E9D6C0D7B2FB2A1D1',
                  uuid: '0f1bbd4f-0c8c-4a4e-9d6c-0d7b2fb2a1d1',
                  no_auto_visible: false,
                },
              },
            },
          ],
        },
      ],
    }
    writeFileSync(config, JSON.stringify(file))
    const second = await start('-c', config)
    const subsystems = await second.rpc<Subsystem[]>('nvmf_get_subsystems')
    expect(subsystems.find(({ nqn }) => nqn === NQN)?.namespaces).toMatchObject([
      { bdev_name: 'Malloc0', uuid: '0f1bbd4f-0c8c-4a4e-9d6c-0d7b2fb2a1d1' },
    ])
    // What was loaded is saved: the file is not needed again.
    expect(
      JSON.parse(readFileSync(join(second.state, 'config.json'), 'utf8')).subsystems.length,
    ).toBeGreaterThan(0)

    writeFileSync(
      config,
      JSON.stringify({
        subsystems: [
          { subsystem: 'bdev', config: [{ method: 'bdev_malloc_delete', params: { name: 'nope' } }] },
        ],
      }),
    )
    await expect(startDaemon({ args: ['-c', config] })).rejects.toThrow(
      'bdev: bdev_malloc_delete failed: there is no bdev nope',
    )
  })

  it('waits for framework_start_init when it is told to', async () => {
    const daemon = await start('--wait-for-rpc')
    await expect(daemon.rpc('bdev_get_bdevs')).rejects.toMatchObject({ code: -1 })
    const startup = await daemon.rpc<string[]>('rpc_get_methods', { current: true })
    expect(startup).toContain('framework_start_init')
    expect(startup).not.toContain('bdev_get_bdevs')
    await daemon.rpc('framework_start_init')
    await daemon.rpc('framework_wait_init')
    expect(await daemon.rpc('bdev_get_bdevs')).toEqual([])
    await expect(daemon.rpc('framework_start_init')).rejects.toMatchObject({ code: -1 })
  })

  it('cannot be kept in a file, and the daemon says so', async () => {
    const daemon = await start()
    const path = join(daemon.directory, 'occupied')
    mkdirSync(join(path, 'config.json'), { recursive: true })
    await expect(startDaemon({ args: ['--state', path] })).rejects.toThrow(
      `cannot read the configuration ${path}/config.json`,
    )
  })
})
