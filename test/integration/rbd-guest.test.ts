/**
 * An image of a real Ceph cluster as strangers see it: Linux's multipath and ext4 over two gateways, and fio over NBD.
 * What they wrote is compared with what Ceph's own `rbd export` gives.
 *
 *   ext4 ── /dev/nvme0n1 ─┬─ nvme0 ── eth0 ── daemon A (optimized) ──────┬─ volumes/shared
 *                         └─ nvme1 ── eth1 ── daemon B (non-optimized) ──┘
 *   fio, nbdcopy ── NBD ── daemon B ── volumes/exported
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { describeWith } from './lab/describe-with.ts'
import { type Gateway, startGateway } from './lab/gateway.ts'
import { bootGuest, type Guest, type GuestJob } from './lab/guest.ts'
import { eventually, LinuxHost } from './lab/linux-host.ts'
import { findProgram, GUEST_PROGRAMS, type Program } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.qpair:rbd'
const SIZE_MIB = 64
const RANGES = [
  { min_cntlid: 1, max_cntlid: 32760 },
  { min_cntlid: 32761, max_cntlid: 65519 },
]
const ANA_STATES = ['optimized', 'non_optimized'] as const

/** Each of its writes is read back; file system metadata and flushes go between them. */
const GUEST_FIO = [
  '--name=load --filename=/mnt/load --size=8m --rw=randwrite --bs=4k --fsync=64',
  '--ioengine=libaio --direct=1 --iodepth=16 --thread',
  '--verify=crc32c --verify_fatal=1 --verify_backlog=64 --verify_state_save=0',
].join(' ')

const NBD_FIO = [
  '--name=verify --thread --ioengine=nbd --output-format=json',
  `--rw=randwrite --bsrange=4k-256k --blockalign=4k --iodepth=32 --size=${SIZE_MIB}m --randseed=7`,
  '--verify=crc32c --verify_fatal=1 --verify_state_save=0',
].join(' ')

const run = async (program: Program, ...args: string[]): Promise<string> =>
  (await promisify(execFile)(findProgram(program)!, args)).stdout

await describeWith([...CEPH_PROGRAMS, ...GUEST_PROGRAMS, 'nbdcopy'], 'RBD images and their clients', () => {
  const gateways: Gateway[] = []
  let ceph: Ceph
  let guest: Guest
  let host: LinuxHost

  /** Makes an image and opens it on gateways, as a bdev of the same name. */
  async function image(name: string, on: readonly Gateway[]): Promise<void> {
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', String(SIZE_MIB), name)
    const params = { name, pool_name: 'volumes', rbd_name: name, block_size: 4096, cluster_name: 'c' }
    for (const { daemon } of on) await daemon.rpc('bdev_rbd_create', params)
  }

  /** The whole image, as Ceph itself reads it. */
  async function exported(name: string): Promise<Buffer> {
    const file = join(ceph.directory, `${name}.raw`)
    await ceph.run('rbd', 'export', '--no-progress', `volumes/${name}`, file)
    return readFileSync(file)
  }

  /** The whole image as the host reads it, from the device and not from its memory. */
  async function sumOnHost(): Promise<string> {
    const sum = await host.text('blockdev --flushbufs /dev/nvme0n1 && sha256sum /dev/nvme0n1')
    return sum.split(' ')[0]!
  }

  /** Waits until a good number of I/Os to the shared image have passed through a gateway after now. */
  async function progress(gateway: Gateway, load: GuestJob): Promise<void> {
    const before = await gateway.completed('shared')
    const enough = eventually(() => gateway.completed('shared')).toBeGreaterThan(before + 500)
    // A load that ends early says why.
    await Promise.race([enough, load.done])
  }

  beforeAll(async () => {
    const booting = bootGuest({ nics: RANGES.length, modules: ['nvme-tcp'] })
    // If Ceph does not start, that is what is told.
    booting.catch(() => {})
    ceph = await startCeph()
    for (const _ of RANGES) {
      const gateway = await startGateway()
      gateways.push(gateway)
      await gateway.daemon.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
    }
    guest = await booting
    host = new LinuxHost(guest)
  })
  afterAll(async () => {
    await guest?.stop()
    for (const { daemon } of gateways) await daemon.stop()
    await ceph?.stop()
  })

  it('keeps a file system of Linux whole when the gateway in use is killed', async () => {
    await image('shared', gateways)
    for (const [nic, gateway] of gateways.entries()) {
      const params = { serial_number: 'RBD', ana_reporting: true, ...RANGES[nic] }
      const port = await gateway.serve(NQN, ['shared'], params)
      await gateway.setAnaState(NQN, port, ANA_STATES[nic]!)
      await host.connect({ nqn: NQN, port, nic, args: '-k 5' })
    }
    await guest.waitFor('test -b /dev/nvme0n1')
    for (const [index, state] of ['optimized', 'non-optimized'].entries())
      await host.waitForText(`/sys/class/nvme/nvme${index}/nvme0c${index}n1/ana_state`, state)
    expect(await host.text('ls /sys/block | grep nvme')).toBe('nvme0c0n1\nnvme0c1n1\nnvme0n1')

    await guest.run('mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt')
    const load = guest.start(`until [ -e /tmp/enough ]; do fio ${GUEST_FIO} || exit 9; done`)
    await progress(gateways[0]!, load)
    await gateways[0]!.daemon.kill()
    await host.waitForText('/sys/class/nvme/nvme0/state', 'connecting')
    await progress(gateways[1]!, load)
    await guest.run('touch /tmp/enough')
    await load.done
    await guest.run('umount /mnt && e2fsck -fn /dev/nvme0n1')

    // By the path that is left, and then by the one that is back.
    const sum = createHash('sha256')
      .update(await exported('shared'))
      .digest('hex')
    expect(await sumOnHost()).toBe(sum)
    await gateways[0]!.daemon.start()
    await host.waitForText('/sys/class/nvme/nvme0/state', 'live')
    await host.waitForText('/sys/class/nvme/nvme0/nvme0c0n1/ana_state', 'optimized')
    expect(await sumOnHost()).toBe(sum)
    expect(await gateways[0]!.completed('shared')).toBeGreaterThan(100)
    expect(await host.ioErrors()).toBe('')
  })

  it('passes fio --verify over NBD, and is the same for nbdcopy and for rbd export', async () => {
    const { daemon } = gateways[1]!
    await image('exported', [gateways[1]!])
    const { uri } = await daemon.rpc<{ uri: string }>('nbd_export_start', {
      bdev_name: 'exported',
      unix: join(daemon.directory, 'nbd.sock'),
    })
    const report = await run('fio', ...NBD_FIO.split(' '), `--uri=${uri}`)
    const { jobs } = JSON.parse(report.slice(report.indexOf('{')))
    expect(jobs[0].error).toBe(0)
    expect(jobs[0].read.total_ios).toBeGreaterThan(0)
    expect(jobs[0].read.total_ios).toBe(jobs[0].write.total_ios)
    const copy = join(daemon.directory, 'copy')
    await run('nbdcopy', '--connections=4', '--flush', uri, copy)
    expect(readFileSync(copy).equals(await exported('exported'))).toBe(true)
    await daemon.rpc('nbd_export_stop', { name: 'exported' })
  })
})
