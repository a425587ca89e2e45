/** File systems of Linux on a disk of ours, while the daemon that serves it dies and comes back on its saved state. */
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { type Gateway, startGateway } from './lab/gateway.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.qpair:crash'
const MIB = 1 << 20

/**
 * Writes files without end, each with random bytes; a file's name and checksum reach the list only after it has been
 * synchronised, so that all that the list names must be there after a crash.
 */
const WRITER = `#!/bin/sh
cd /mnt
for i in $(seq 1 100000); do
  dd if=/dev/urandom of=file$i bs=64k count=4 2>/dev/null || exit 1
  sync file$i . || exit 2
  sha256sum file$i >>/tmp/acknowledged || exit 3
  [ $i -le 60 ] || { sed -i 1d /tmp/acknowledged && rm file$((i - 60)); } || exit 4
done
`

const FILE_SYSTEMS = [
  { driver: 'uring', block_size: 512, mkfs: 'mkfs.ext4 -q', check: 'e2fsck -fn' },
  { driver: 'aio', block_size: 4096, mkfs: 'mkfs.xfs -q -f', check: 'xfs_repair -n' },
]

await describeWith(GUEST_PROGRAMS, 'a file system on a daemon that crashes', () => {
  let gateway: Gateway
  let port: string
  let guest: Guest
  let host: LinuxHost

  beforeAll(async () => {
    gateway = await startGateway()
    for (const { driver, block_size } of FILE_SYSTEMS) {
      const filename = gateway.image(`${driver}.raw`, 320 * MIB)
      await gateway.daemon.rpc(`bdev_${driver}_create`, { name: driver, filename, block_size })
    }
    port = await gateway.serve(
      NQN,
      FILE_SYSTEMS.map(({ driver }) => driver),
    )
    guest = await bootGuest({ modules: ['nvme-tcp', 'xfs'], files: { '/opt/writer': WRITER } })
    host = new LinuxHost(guest)
    await host.connect({ nqn: NQN, port })
    await guest.waitFor('test -b /dev/nvme0n2')
  })
  afterAll(async () => {
    await guest?.stop()
    await gateway?.daemon.stop()
  })

  it.each(FILE_SYSTEMS)('keeps what $mkfs has synchronised on a $driver bdev', async fileSystem => {
    const device = `/dev/nvme0n${FILE_SYSTEMS.indexOf(fileSystem) + 1}`
    await host.clearKernelLog()
    await guest.run(`${fileSystem.mkfs} ${device} && mount ${device} /mnt && : >/tmp/acknowledged`)
    const writer = guest.start('/opt/writer')
    const moreFiles = async (): Promise<void> => {
      const last = await host.text('tail -n 1 /tmp/acknowledged')
      await guest.waitFor(`[ "$(tail -n 1 /tmp/acknowledged)" != "${last}" ]`)
    }
    for (let crash = 0; crash < 2; crash++) {
      await moreFiles()
      await gateway.daemon.kill()
      await host.waitForText('/sys/class/nvme/nvme0/state', 'connecting')
      await gateway.daemon.start()
      await host.waitForText('/sys/class/nvme/nvme0/state', 'live')
      await moreFiles()
    }
    await writer.kill()
    await writer.done.catch(() => {})
    // What the writer had started may still be at its last synchronisation.
    await guest.waitFor('umount /mnt')
    // Read from the disk, not from the guest's memory.
    await guest.run(`echo 3 >/proc/sys/vm/drop_caches; mount ${device} /mnt`)
    expect(Number(await host.text('wc -l </tmp/acknowledged'))).toBeGreaterThan(3)
    await guest.run('cd /mnt && sha256sum -c /tmp/acknowledged')
    await guest.run(`umount /mnt && ${fileSystem.check} ${device}`)
    expect(await host.ioErrors()).toBe('')
  })

  it('replays its journal after the guest and the daemon have crashed together', async () => {
    await guest.run('mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt')
    await guest.run('dd if=/dev/urandom of=/mnt/kept bs=1M count=2 && sync /mnt/kept /mnt')
    const { stdout: sum } = await guest.run('sha256sum /mnt/kept')
    guest.start('/opt/writer', { check: false })
    await guest.waitFor('test -e /mnt/file3')
    await gateway.daemon.kill()
    await guest.reset()
    await gateway.daemon.start()
    await host.connect({ nqn: NQN, port })
    await guest.waitFor('test -b /dev/nvme0n1')
    await guest.run('mount /dev/nvme0n1 /mnt')
    expect((await guest.run('sha256sum /mnt/kept')).stdout).toBe(sum)
    await guest.run('umount /mnt && e2fsck -fn /dev/nvme0n1')
  })
})
