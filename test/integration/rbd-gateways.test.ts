/**
 * An image of a Ceph cluster that asks for keys, behind two gateways, and our own host as their client: the commands are
 * those that guides to SPDK give, typed through `qpair rpc`, with TCP where they have RDMA.
 *
 *   client: Nvme0n1 ─┬─ gateway A ─┬─ volumes/test-image-10G
 *                    └─ gateway B ─┘
 */
import { execFile } from 'node:child_process'
import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { eventually } from './lab/linux-host.ts'

const QPAIR = fileURLToPath(new URL('../../bin/qpair.js', import.meta.url))
const NQN = 'nqn.2021-06.io.spdk:ctc_rbd0'
const RANGES = ['-i 1 -I 32760', '-i 32761 -I 65519']
const SIZE = 10240 * 2 ** 20

/** Types a command of SPDK's rpc.py for a daemon, and returns what it prints. */
async function rpc(daemon: Daemon, command: string): Promise<string> {
  const args = [QPAIR, 'rpc', '-s', daemon.socket, ...command.split(' ')]
  return (await promisify(execFile)(process.execPath, args)).stdout.trim()
}

interface Workload {
  readonly errors: number
  readonly miscompares: number
  readonly reads: number
  readonly writes: number
}

await describeWith(CEPH_PROGRAMS, 'an image behind two gateways', () => {
  const gateways: Daemon[] = []
  const ports: string[] = []
  let ceph: Ceph
  let client: Daemon
  let keyring: string

  const register = (daemon: Daemon, options: string): Promise<string> =>
    rpc(daemon, `bdev_rbd_register_cluster ${options} --config-file ${ceph.conf} ceph_ssd_cluster`)

  async function startGateway(range: string): Promise<void> {
    const daemon = await startDaemon()
    gateways.push(daemon)
    await rpc(daemon, 'nvmf_create_transport -t TCP -m 64')
    expect(await register(daemon, `--user cinder --config-param keyring=${keyring}`)).toBe('ceph_ssd_cluster')
    const create = 'bdev_rbd_create -b rbd0 volumes test-image-10G 4096 -c ceph_ssd_cluster'
    expect(await rpc(daemon, create)).toBe('rbd0')
    await rpc(daemon, `nvmf_create_subsystem ${NQN} -a -s SPDK_BDEV_0 ${range}`)
    await rpc(daemon, `nvmf_subsystem_add_ns ${NQN} rbd0`)
    await rpc(daemon, `nvmf_subsystem_add_listener ${NQN} -t tcp -a 127.0.0.1 -s 0`)
    const [subsystem] = JSON.parse(await rpc(daemon, `nvmf_get_subsystems ${NQN}`))
    ports.push(subsystem.listen_addresses[0].trsvcid)
  }

  const states = async (): Promise<string[]> => {
    const [controller] = JSON.parse(await rpc(client, 'bdev_nvme_get_controllers -n Nvme0'))
    return controller.ctrlrs.map(({ state }: { state: string }) => state)
  }
  const workload = async (): Promise<Workload> => (await client.rpc<Workload[]>('workload_get'))[0]!

  beforeAll(async () => {
    ceph = await startCeph({ cephx: true })
    keyring = await ceph.addUser('cinder')
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '10240', 'test-image-10G')
    for (const range of RANGES) await startGateway(range)
    client = await startDaemon()
    for (const port of ports) {
      const address = `-t tcp -f ipv4 -a 127.0.0.1 -s ${port} -n ${NQN}`
      await rpc(client, `bdev_nvme_attach_controller -b Nvme0 ${address} -x multipath -l -1 -o 1`)
    }
  })
  afterAll(async () => {
    await client?.stop()
    for (const gateway of gateways) await gateway.stop()
    await ceph?.stop()
  })

  it('is one namespace, with one UUID, over two paths', async () => {
    await eventually(states).toEqual(['enabled', 'enabled'])
    const [bdev] = JSON.parse(await rpc(client, 'bdev_get_bdevs -b Nvme0n1'))
    expect(bdev).toMatchObject({ block_size: 4096, num_blocks: SIZE / 4096 })
    const shown = await Promise.all(
      gateways.map(async daemon => JSON.parse(await rpc(daemon, `nvmf_get_subsystems ${NQN}`))[0]),
    )
    expect(shown[0].namespaces).toEqual(shown[1].namespaces)
    expect(shown[0].namespaces[0].uuid).toBe(bdev.uuid)
  })

  it('loses nothing when the gateway in use is killed, and when it is back and the other is', async () => {
    const id = await client.rpc<number>('workload_start', {
      bdev_name: 'Nvme0n1',
      verify: true,
      read_percent: 50,
      queue_depth: 16,
    })
    const progress = async (): Promise<void> => {
      const before = await workload()
      await eventually(async () => (await workload()).writes).toBeGreaterThan(before.writes + 200)
    }
    await progress()
    for (const gateway of gateways) {
      await gateway.kill('SIGKILL')
      await progress()
      await gateway.start()
      await eventually(states).toEqual(['enabled', 'enabled'])
    }
    await progress()
    expect(await client.rpc('workload_stop', { id })).toMatchObject({ errors: 0, miscompares: 0 })
  })

  it.each([
    ['a key of somebody else', 'cinder', /the key of client\.cinder is not the cluster's/],
    ['a user whom Ceph does not know', 'nobody', /the key of client\.nobody is not the cluster's/],
    ['an empty keyring', 'keyless', /the keyring has none for that user/],
    ['no keyring', 'homeless', /there is no keyring with a key for client\.homeless/],
  ])('is not opened with %s, which is said', async (_what, user, message) => {
    const daemon = await startDaemon()
    try {
      const wrong = join(daemon.directory, 'keyring')
      // The administrator's key, under other names.
      const key = /key = (.*)/.exec(readFileSync(ceph.keyring, 'utf8'))![1]
      if (user !== 'homeless')
        writeFileSync(wrong, user === 'keyless' ? '' : `[client.${user}]\n\tkey = ${key}\n`)
      await expect(register(daemon, `--user ${user} --config-param keyring=${wrong}`)).rejects.toThrow(
        message,
      )
      expect(await rpc(daemon, 'bdev_rbd_get_clusters_info').catch(String)).toContain(
        'no cluster is registered',
      )
    } finally {
      await daemon.stop()
    }
  })

  it.each([
    [
      'no keyring at all',
      [],
      /there is no keyring with a key for client\.cinder: name it with the option keyring/,
    ],
    ['a messenger that would end the daemon', ['ms_type=posix'], /cannot use ms_type = posix/],
    ['a key that is none', ['key=secret'], /or the key is none of Ceph/],
  ])('is not opened with a ceph.conf that says nothing of keys, and %s', async (_what, given, message) => {
    const daemon = await startDaemon()
    try {
      const conf = join(daemon.directory, 'ceph.conf')
      writeFileSync(conf, `[global]\nmon host = ${ceph.monitorAddress}\nkeyring = /nowhere\n`)
      const options = given.map(option => ` --config-param ${option}`).join('')
      const command = `bdev_rbd_register_cluster --user cinder${options} --config-file ${conf} c`
      await expect(rpc(daemon, command)).rejects.toThrow(message)
    } finally {
      await daemon.stop()
    }
  })

  it('keeps a key that it was given to itself', async () => {
    const daemon = await startDaemon()
    try {
      const key = /key = (.*)/.exec(readFileSync(keyring, 'utf8'))![1]!
      await register(daemon, `--user cinder --config-param key=${key}`)
      expect(await rpc(daemon, 'bdev_rbd_get_clusters_info')).not.toContain(key)
      expect(await rpc(daemon, 'save_config')).toContain(key)
    } finally {
      await daemon.stop()
    }
  })

  it('is back when the key is, after a start without it', async () => {
    const [gateway] = gateways
    await gateway!.kill()
    renameSync(keyring, `${keyring}.away`)
    await gateway!.start()
    expect(await rpc(gateway!, 'bdev_get_bdevs')).toBe('[]')
    renameSync(`${keyring}.away`, keyring)
    // What is changed meanwhile does not make the daemon forget what it could not open.
    await rpc(gateway!, 'bdev_null_create n0 8 512')
    await gateway!.restart()
    const blocks = async (): Promise<number> =>
      JSON.parse(await rpc(gateway!, 'bdev_get_bdevs -b rbd0'))[0].num_blocks
    // A start waits a few seconds for Ceph, and then goes on without it.
    await eventually(() => blocks().catch(String)).toBe(SIZE / 4096)
  })
})
