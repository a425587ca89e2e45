/** A pool on a real Gluster volume: its life, its data under load, and what becomes of both when the servers go. */
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { GLUSTER_ADDRESS, GLUSTER_PROGRAMS, Gluster } from './lab/gluster.ts'
import { settled } from './lab/json-rpc.ts'
import { CAN_MOUNT } from './lab/namespace.ts'
import { findProgram } from './lab/packages.ts'

const MIB = 2 ** 20
const XML = `<pool type='gluster'>
  <name>far</name>
  <source><host name='${GLUSTER_ADDRESS}'/><dir path='/'/><name>vms</name></source>
</pool>`

const CAN = CAN_MOUNT && existsSync('/dev/fuse')

await describeWith([...GLUSTER_PROGRAMS, 'fio'], 'a Gluster pool', () => {
  let gluster: Gluster
  let daemon: Daemon
  let brick: string
  const rpc = <T = unknown>(method: string, params?: unknown): Promise<T> => daemon.rpc<T>(method, params)
  const state = async (): Promise<string> =>
    (await rpc<{ state: string }>('pool_info', { pool: 'far' })).state
  const socket = (): string => join(daemon.directory, 'nbd.sock')
  const serve = (bdev: string): Promise<unknown> =>
    rpc('nbd_export_start', { bdev_name: bdev, unix: socket() })
  const fio = (uri: string, ...args: string[]): Promise<string> =>
    gluster.space.run(
      ...[findProgram('fio')!, '--name=it', '--ioengine=nbd', `--uri=${uri}`, '--size=16m', '--iodepth=16'],
      ...args,
    )
  const direct = (): string => `nbd+unix:///direct?socket=${socket()}`

  beforeAll(async () => {
    if (!CAN) return
    gluster = await Gluster.start()
    brick = await gluster.makeVolume('vms')
    daemon = await startDaemon({ within: gluster.space.enter })
  })
  afterAll(async () => {
    await daemon?.stop()
    await gluster?.stop()
  })

  it.skipIf(!CAN)('is found as virsh finds it', async () => {
    expect(await rpc('pool_find_sources', { type: 'gluster', host: GLUSTER_ADDRESS })).toBe(`<sources>
  <source>
    <host name='${GLUSTER_ADDRESS}'/>
    <dir path='/'/>
    <name>vms</name>
  </source>
</sources>
`)
    expect(await rpc('pool_find_sources', { type: 'netfs', host: GLUSTER_ADDRESS })).toBe(`<sources>
  <source>
    <host name='${GLUSTER_ADDRESS}'/>
    <dir path='vms'/>
    <format type='glusterfs'/>
  </source>
</sources>
`)
  })

  it.skipIf(!CAN)('says what to look at when its volume cannot be mounted', async () => {
    await rpc('pool_define', { xml: XML.replace('vms', 'nix') })
    await expect(rpc('pool_start', { pool: 'far' })).rejects.toThrow(
      `Is ${GLUSTER_ADDRESS}:/nix started (gluster volume info), and does its server answer at port 24007? ` +
        '/var/log/glusterfs/run-qpair-pools-far.log says more',
    )
    await rpc('pool_undefine', { pool: 'far' })
  })

  it.skipIf(!CAN)('has raw and qcow2 volumes, which live as in a directory', async () => {
    await rpc('pool_define', { xml: XML })
    await rpc('pool_start', { pool: 'far' })
    await rpc('volume_create', { pool: 'far', name: 'raw.img', capacity: '16M' })
    await rpc('volume_create', { pool: 'far', name: 'disk.qcow2', capacity: '16M', format: 'qcow2' })
    expect(statSync(join(brick, 'raw.img')).size).toBe(16 * MIB)
    for (const volume of ['raw.img', 'disk.qcow2']) {
      const { next } = await rpc<{ next: string }>('volume_export', {
        ...{ volume, nbd: true, listen: ['127.0.0.1:0'] },
      })
      await fio(
        /nbd:\/\/\S+/.exec(next)![0],
        '--rw=randwrite',
        '--bsrange=4k-64k',
        '--verify=crc32c',
        '--verify_fatal=1',
      )
      await rpc('volume_unexport', { volume })
      await settled(daemon.socket, 'volume_resize', { volume, capacity: '32M' })
    }
    await rpc('volume_snapshot_create', { volume: 'disk.qcow2', snapshot: 'one' })
    const { job_id } = await rpc<{ job_id: number }>('volume_clone', { volume: 'raw.img', name: 'copy.img' })
    expect(await rpc('job_wait', { id: job_id, timeout_ms: 60_000 })).toMatchObject({ state: 'completed' })
    await rpc('volume_rename', { volume: 'copy.img', name: 'other.img' })
    await settled(daemon.socket, 'volume_delete', { volume: 'other.img' })
    expect(await rpc('volume_list', { pool: 'far' })).toMatchObject([
      { name: 'disk.qcow2', format: 'qcow2', capacity: 32 * MIB },
      { name: 'raw.img', format: 'raw', capacity: 32 * MIB },
    ])
  })

  it.skipIf(!CAN)('serves a volume without the cache of this machine, also when glusterd goes', async () => {
    const filename = '/run/qpair/pools/far/raw.img'
    await rpc('bdev_uring_create', { name: 'direct', filename, direct: true })
    await serve('direct')
    const load = fio(direct(), '--rw=randwrite', '--bs=4k', '--verify=crc32c', '--verify_fatal=1')
    await gluster.stopServer()
    await load
    await gluster.startServer()
  })

  it.skipIf(!CAN)(
    'fails I/O when its server goes in the middle of it, and goes on when that is back',
    async () => {
      const load = fio(direct(), '--rw=randwrite', '--bs=4k', '--time_based', '--runtime=600')
      load.catch(() => {})
      const writes = async (): Promise<number> => {
        const { bdevs } = await rpc<{ bdevs: { num_write_ops: number }[] }>('bdev_get_iostat', {
          names: ['direct'],
        })
        return bdevs[0]!.num_write_ops
      }
      const before = await writes()
      await expect.poll(writes, { timeout: 60_000 }).toBeGreaterThan(before + 100)
      await gluster.killBrick('vms')
      await expect(load).rejects.toThrow('Input/output error')
      await expect(rpc('pool_refresh', { pool: 'far' })).rejects.toThrow(
        'Transport endpoint is not connected',
      )
      expect(await state()).toBe('inaccessible')
      await gluster.startBrick('vms')
      await expect
        .poll(() => rpc('pool_refresh', { pool: 'far' }).then(state, String), { timeout: 60_000 })
        .toBe('running')
      await fio(direct(), '--rw=randwrite', '--bs=4k', '--verify=crc32c', '--verify_fatal=1')
    },
  )

  it.skipIf(!CAN)('does without the process that starts its programs when that has gone', async () => {
    const children = readFileSync(`/proc/${daemon.pid}/task/${daemon.pid}/children`, 'utf8').trim().split(' ')
    const starter = children.find(pid =>
      readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('program-main'),
    )
    process.kill(Number(starter), 'SIGKILL')
    const refresh = (): Promise<string> => rpc('pool_refresh', { pool: 'far' }).then(state, String)
    await expect.poll(refresh, { timeout: 60_000 }).toBe('running')
  })

  it.skipIf(!CAN)('is stopped when nobody uses it, and by force when its server has gone', async () => {
    await expect(rpc('pool_destroy', { pool: 'far' })).rejects.toThrow('Somebody uses files below')
    await gluster.killBrick('vms')
    // Until the client of Gluster has seen that its server is gone, the pool is only in use.
    const destroyed = (): Promise<string> => rpc('pool_destroy', { pool: 'far' }).then(() => 'done', String)
    await expect.poll(destroyed, { timeout: 60_000 }).toContain('qpair pool destroy far --force')
    await rpc('pool_destroy', { pool: 'far', force: true })
    expect(await gluster.space.run('cat', '/proc/mounts')).not.toContain('pools/far')
    expect(await state()).toBe('inactive')
  })
})
