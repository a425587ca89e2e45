/**
 * A disk that is somewhere else, at full speed in a guest: a vhost-user controller over a multipath NVMe device, in one
 * process. The guest's requests go over whichever path is left.
 *
 *   guest ── vhost-user ── daemon ─┬─ NVMe/TCP ── gateway A ─┬─ image
 *                                  └─ NVMe/TCP ── gateway B ─┘
 */
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { type Gateway, startGateway } from './lab/gateway.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { blkArgs, startVhost, type VhostTarget } from './lab/vhost.ts'

const NQN = 'nqn.2016-06.io.qpair:remote'
const MIB = 1 << 20
const SIZE = 64 * MIB

await describeWith(GUEST_PROGRAMS, 'a guest on a remote disk with two paths', () => {
  let gateways: Gateway[] = []
  let target: VhostTarget
  let guest: Guest
  let host: LinuxHost

  beforeAll(async () => {
    gateways = [await startGateway(), await startGateway()]
    const filename = gateways[0]!.image('shared', SIZE)
    target = await startVhost()
    for (const [index, gateway] of gateways.entries()) {
      await gateway.daemon.rpc('bdev_uring_create', { name: 'disk', filename, block_size: 512 })
      const range =
        index === 0 ? { min_cntlid: 1, max_cntlid: 32760 } : { min_cntlid: 32761, max_cntlid: 65519 }
      const port = await gateway.serve(NQN, ['disk'], {
        serial_number: 'SHARED',
        ana_reporting: true,
        ...range,
      })
      await target.daemon.rpc('bdev_nvme_attach_controller', {
        name: 'remote',
        trtype: 'TCP',
        adrfam: 'IPv4',
        traddr: '127.0.0.1',
        trsvcid: port,
        subnqn: NQN,
        multipath: 'multipath',
        ctrlr_loss_timeout_sec: -1,
        reconnect_delay_sec: 1,
      })
    }
    const split = await target.serveBlk('split', 'remoten1')
    guest = await bootGuest({
      nics: 0,
      sharedMemory: true,
      extraArgs: blkArgs({ id: 'disk', socket: split, queues: 2 }),
    })
    host = new LinuxHost(guest)
  })
  afterAll(async () => {
    await guest?.stop()
    await target?.stop()
    // The image is in the directory of the first.
    for (const { daemon } of gateways.reverse()) await daemon.stop()
  })

  const connected = async (): Promise<number> => {
    const controllers =
      await target.daemon.rpc<{ ctrlrs: { state: string }[] }[]>('bdev_nvme_get_controllers')
    return controllers.flatMap(({ ctrlrs }) => ctrlrs).filter(({ state }) => state === 'enabled').length
  }

  it('writes and reads back while gateways are killed, one after the other', async () => {
    const load = host.startLoad('/dev/vdb')
    await load.progress()
    for (const { daemon } of [...gateways, ...gateways]) {
      await expect.poll(connected, { timeout: 60_000 }).toBe(2)
      await daemon.kill()
      await load.progress(256)
      await daemon.start()
    }
    await load.stop()
    expect(await host.ioErrors()).toBe('')
  })

  it('loses nothing when its own daemon is killed, paths and all', async () => {
    await guest.run('mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && cp /usr/bin/* /mnt/')
    await guest.run(
      'cd /mnt && find . -type f -exec sha256sum {} + >/tmp/sums && sync && cd / && umount /mnt',
    )
    await guest.run('echo 3 >/proc/sys/vm/drop_caches && mount /dev/vdb /mnt')
    const check = guest.start('cd /mnt && sha256sum -c /tmp/sums >/dev/null')
    await target.daemon.restart('SIGKILL')
    await check.done
    await guest.run('umount /mnt && e2fsck -fn /dev/vdb')
    expect(await host.ioErrors()).toBe('')
  })
})
