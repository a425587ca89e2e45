/** What `qpair vhost qemu-args` and `qpair nbd qemu-args` print, handed to QEMU as a shell would. */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { startVhost, type VhostTarget } from './lab/vhost.ts'

const QPAIR = fileURLToPath(new URL('../../bin/qpair.js', import.meta.url))
const MIB = 1 << 20
const SIZE = 64 * MIB

await describeWith(GUEST_PROGRAMS, "the arguments that qpair prints, in QEMU's hands", () => {
  let target: VhostTarget
  let guest: Guest
  let host: LinuxHost

  /** The words of a command's output, as `$(qpair …)` has them. */
  async function words(command: string): Promise<string[]> {
    const args = [QPAIR, '-r', target.daemon.socket, ...command.split(' ')]
    const { stdout } = await promisify(execFile)(process.execPath, args)
    return stdout.trim().split(/\s+/)
  }

  beforeAll(async () => {
    target = await startVhost({ args: ['--reactors', '2'] })
    const { daemon } = target
    for (const name of ['blk', 'scsi', 'nvme']) {
      await daemon.rpc('bdev_malloc_create', { name, block_size: 512, num_blocks: SIZE / 512 })
    }
    await target.serveBlk('disk0', 'blk', { packed_ring: true })
    await target.serveScsi('bus0', ['scsi'])
    await daemon.rpc('nbd_export_start', { bdev_name: 'nvme', unix: join(daemon.directory, 'nbd.sock') })
    guest = await bootGuest({
      nics: 0,
      modules: ['nvme', 'virtio_scsi', 'sd_mod'],
      extraArgs: [
        ...(await words('vhost qemu-args disk0 --memory 512M --queues 2')),
        // An old QEMU does not start with a SCSI controller that reconnects.
        ...(await words('vhost qemu-args bus0 --disk-only --qemu 7.2')),
        ...(await words('nbd qemu-args nvme')),
        ...['-trace', 'pci_nvme_dbbuf_config', '-D', join(daemon.directory, 'trace')],
      ],
    })
    host = new LinuxHost(guest)
  })
  afterAll(async () => {
    await guest?.stop()
    await target?.stop()
  })

  it.each(['/dev/vdb', '/dev/sda', '/dev/nvme0n1'])(
    '%s is a disk of the right size that keeps what is written',
    async device => {
      expect(await host.text(`blockdev --getsize64 ${device}`)).toBe(`${SIZE}`)
      const load = `--filename=${device} --rw=randwrite --bs=4k --size=8m --iodepth=32 --ioengine=io_uring --direct=1`
      await guest.run(`fio --name=verify ${load} --verify=crc32c --verify_fatal=1 --verify_state_save=0`)
    },
  )

  it("has shadow doorbells turned on by Linux in QEMU's NVMe controller, which nobody asked for", () => {
    const trace = readFileSync(join(target.daemon.directory, 'trace'), 'utf8')
    expect(trace.match(/pci_nvme_dbbuf_config/g)).toHaveLength(1)
  })
})
