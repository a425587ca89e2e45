/** Images of a real Ceph cluster that guests' QEMU opens by itself, over librbd: nothing but the daemon keeps two of them apart. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type LabImage, labImage } from '../../src/vm/lab/lab-image.ts'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { labKernel } from './lab/image.ts'
import { eventually } from './lab/linux-host.ts'
import { qpair } from './lab/qpair.ts'

const PROGRAMS = [
  ...CEPH_PROGRAMS,
  ...(['qemu-system-x86_64', 'block-rbd.so', 'busybox', 'nvme', 'lspci', 'fdisk', 'xz'] as const),
] as const

await describeWith(PROGRAMS, 'an image that a guest opens by itself', () => {
  let ceph: Ceph
  let daemon: Daemon
  let image: LabImage

  /** Resolves to why there is no such guest, or to nothing. */
  const start = (name: string, disk: string): Promise<string> =>
    daemon
      .rpc('vm_run', {
        ...{ name, disks: [`${disk},means=direct`], memory: '256M', cpus: 1, accel: 'tcg' },
        ...{ ...image, initrd: image.initrd, append: 'console=ttyS0 quiet panic=-1' },
      })
      .then(
        () => '',
        (error: Error) => error.message,
      )
  const stop = (name: string): Promise<unknown> => daemon.rpc('vm_stop', { name, force: true })
  const owned = (guest: string): string => `images/disk is in use by guest ${guest}, disk vda`

  beforeAll(async () => {
    ceph = await startCeph()
    daemon = await startDaemon()
    const directory = join(daemon.directory, 'lab')
    mkdirSync(directory)
    image = await labImage({
      ...{ kernel: await labKernel(), isEmulated: true, directory, cache: directory },
      say: () => {},
    })
    const [, host, port] = /v1:([\d.]+):(\d+)/.exec(ceph.monitorAddress)!
    const path = join(daemon.directory, 'pool.xml')
    const source = `<source><name>volumes</name><host name='${host}' port='${port}'/></source>`
    writeFileSync(path, `<pool type='rbd'><name>images</name>${source}</pool>`)
    await qpair(daemon, 'pool', 'define', path)
    for (const command of ['start', 'autostart']) await qpair(daemon, 'pool', command, 'images')
    await qpair(daemon, 'volume', 'create', 'images', 'disk', '64M')
  })
  afterAll(async () => {
    for (const { name } of (await daemon?.rpc<{ name: string }[]>('vm_list')) ?? []) await stop(name)
    await daemon?.stop()
    await ceph?.stop()
  })

  it('is given to one of two that are started at the same moment, and to nobody else by any means', async () => {
    const results = await Promise.all(['a', 'b'].map(name => start(name, 'images/disk')))
    const winner = results[0] === '' ? 'a' : 'b'
    expect([...results].sort()).toEqual(['', expect.stringContaining(owned(winner))])
    expect(await start('c', 'images/disk')).toContain(owned(winner))
    const exported = { volume: 'images/disk', nbd: true, listen: ['127.0.0.1:0'] }
    await expect(daemon.rpc('volume_export', exported)).rejects.toThrow(
      `volume disk is used by guest ${winner}, disk vda already`,
    )
    await daemon.restart('SIGKILL')
    await eventually(() => daemon.rpc('pool_info', { pool: 'images' })).toMatchObject({ state: 'running' })
    expect(await start('c', 'images/disk')).toContain(owned(winner))
    await expect(daemon.rpc('volume_export', exported)).rejects.toThrow(`by guest ${winner}, disk vda`)
    // It has really been QEMU's: Ceph knows of a client that has it open.
    expect(await ceph.run('rbd', 'status', 'volumes/disk')).toContain('watcher=')
    await stop(winner)
    await daemon.rpc('volume_export', exported)
    expect(await start('c', 'images/disk')).toContain('NBD export')
  })
})
