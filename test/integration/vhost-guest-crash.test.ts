/**
 * A daemon that is killed again and again while its guest writes, and takes the guest back each time: what was in flight is
 * noted in memory that QEMU keeps, and is started once more. The guest sees a pause and nothing else.
 *
 *   fio ── /dev/vdX ── virtqueue ── daemon (killed, started) ── delay ── file
 *               QEMU keeps: guest memory, inflight region
 */
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { eventually, LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { blkArgs, startVhost, type VhostTarget } from './lab/vhost.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
const KILLS = 10
/** Where random data lies that no load touches. */
const KEPT_MIB = 32

const DISKS = [
  { name: 'split', device: '/dev/vdb', queues: 1, packed: false },
  { name: 'split-queues', device: '/dev/vdc', queues: 2, packed: false },
  { name: 'packed', device: '/dev/vdd', queues: 1, packed: true },
  { name: 'packed-queues', device: '/dev/vde', queues: 2, packed: true },
] as const

/** Every request takes as long as this, some longer: so some are in flight, out of order, whenever the daemon is killed. */
const LATENCY_US = 20_000

await describeWith(GUEST_PROGRAMS, 'a guest whose daemon is killed', () => {
  let target: VhostTarget
  let guest: Guest
  let host: LinuxHost

  beforeAll(async () => {
    target = await startVhost({ args: ['--reactors', '2'] })
    const extraArgs: string[] = []
    for (const { name, queues, packed } of DISKS) {
      const filename = target.image(name, SIZE)
      const base = `${name}-file`
      await target.daemon.rpc('bdev_uring_create', { name: base, filename, block_size: 512 })
      await target.daemon.rpc('bdev_delay_create', {
        name,
        base_bdev_name: base,
        avg_read_latency: LATENCY_US,
        p99_read_latency: 3 * LATENCY_US,
        avg_write_latency: LATENCY_US,
        p99_write_latency: 3 * LATENCY_US,
      })
      const socket = await target.serveBlk(name, name, { packed_ring: packed })
      extraArgs.push(...blkArgs({ id: name, socket, queues, packed }))
    }
    guest = await bootGuest({ nics: 0, sharedMemory: true, extraArgs })
    host = new LinuxHost(guest)
    await guest.run('dd if=/dev/urandom of=/tmp/kept bs=1M count=4')
    for (const { device } of DISKS)
      await guest.run(`dd if=/tmp/kept of=${device} bs=1M seek=${KEPT_MIB} oflag=direct`)
  })
  afterAll(async () => {
    await guest?.stop()
    await target?.stop()
  })

  it(`loses, doubles and fails no I/O when the daemon is killed ${KILLS} times`, async () => {
    // Small and deep: each block is written over and over, so that a write done twice would undo a later one.
    const loads = DISKS.map(({ device }) => host.startLoad(device, '--size=1m'))
    for (const load of loads) await load.progress()
    for (let kill = 0; kill < KILLS; kill++) {
      for (const { name } of DISKS) await eventually(() => target.inflight(name)).toBeGreaterThan(0)
      await target.daemon.restart('SIGKILL')
      for (const load of loads) await load.progress()
    }
    for (const load of loads) await load.stop()
    for (const { device } of DISKS) {
      await guest.run(`dd if=${device} of=/tmp/back bs=1M skip=${KEPT_MIB} count=4 iflag=direct`)
      await guest.run('cmp /tmp/kept /tmp/back')
    }
    expect(await host.ioErrors()).toBe('')
  })

  it('ends and starts again as it should, under load', async () => {
    const loads = DISKS.map(({ device }) => host.startLoad(device, '--size=1m'))
    for (const load of loads) await load.progress()
    await target.daemon.restart('SIGTERM')
    for (const load of loads) await load.progress()
    for (const load of loads) await load.stop()
    expect(await host.ioErrors()).toBe('')
  })

  it('takes back a guest that was reset while no daemon was there', async () => {
    await target.daemon.kill()
    // Before version 8.2 QEMU loses a disk for good when it finds the daemon gone while it stops that disk.
    const filenames = async (): Promise<string[]> => {
      const chardevs = await guest.qmp.execute<{ filename: string }[]>('query-chardev')
      return chardevs.map(({ filename }) => filename).filter(name => name.startsWith('disconnected:'))
    }
    await eventually(filenames).toHaveLength(DISKS.length)
    const booted = guest.reset()
    await target.daemon.start()
    await booted
    await guest.run('dd if=/dev/urandom of=/tmp/fresh bs=1M count=4')
    for (const { device } of DISKS) {
      await guest.run(`dd if=/tmp/fresh of=${device} bs=1M oflag=direct`)
      await guest.run(`dd if=${device} of=/tmp/back bs=1M count=4 iflag=direct && cmp /tmp/fresh /tmp/back`)
    }
    expect(await host.ioErrors()).toBe('')
  })
})
