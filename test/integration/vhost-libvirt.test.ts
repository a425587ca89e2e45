/** What `qpair vhost libvirt-xml` prints, in the domain of a libvirt daemon that an ordinary user runs. */
import { execFile } from 'node:child_process'
import { chmodSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { LIBVIRT_USER, type Libvirt, startLibvirt } from './lab/libvirt.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { startVhost, type VhostTarget } from './lab/vhost.ts'

const QPAIR = fileURLToPath(new URL('../../bin/qpair.js', import.meta.url))
const MIB = 1 << 20
const SIZE = 64 * MIB

await describeWith(
  [...GUEST_PROGRAMS, 'libvirtd', 'virsh'],
  'a libvirt domain with a vhost-user disk',
  () => {
    let target: VhostTarget
    let libvirt: Libvirt

    /** An element of what the command prints. */
    async function element(name: string, ...args: readonly string[]): Promise<string> {
      const command = [QPAIR, '-r', target.daemon.socket, 'vhost', 'libvirt-xml', ...args]
      const { stdout } = await promisify(execFile)(process.execPath, command)
      const found = new RegExp(`<${name}[ >][\\s\\S]*</${name}>`).exec(stdout)
      expect(found, stdout).not.toBeNull()
      return found![0]
    }

    beforeAll(async () => {
      const owner = `${LIBVIRT_USER}:${LIBVIRT_USER}`
      target = await startVhost({ args: ['--vhost-owner', owner, '--vhost-mode', '0600'] })
      // A temporary directory is its maker's alone.
      chmodSync(target.sockets, 0o755)
      const filename = target.image('disk', SIZE)
      await target.daemon.rpc('bdev_uring_create', { name: 'disk', filename, block_size: 512 })
      await target.serveBlk('disk0', 'disk')
      // Its guest boots behind a reset, as one that hangs would.
      libvirt = await startLibvirt(1)
      const args = ['disk0', '--target', 'vdb', '--queues', '2']
      await libvirt.boot(await element('memoryBacking', ...args), await element('disk', ...args))
    })
    afterAll(async () => {
      await libvirt?.stop()
      await target?.stop()
    })

    it('has the disk, with the queues that were asked for', async () => {
      expect(await libvirt.run('blockdev --getsize64 /dev/vdb')).toBe(`${SIZE}`)
      expect(await libvirt.run('ls /sys/block/vdb/mq | wc -l')).toBe('2')
      expect(await libvirt.virsh('domblklist', 'lab')).toMatch(/vdb/)
    })

    it('writes and reads back, also when the daemon is killed and started again', async () => {
      const load =
        '--filename=/dev/vdb --rw=randwrite --bs=4k --size=16m --iodepth=16 --ioengine=libaio --direct=1'
      const check = '--verify=crc32c --verify_fatal=1 --verify_state_save=0 --loops=4'
      const fio = libvirt.run(`fio --name=verify --output-format=terse ${load} ${check}`)
      fio.catch(() => {})
      await libvirt.run('until [ $(awk "{ print \\$5 }" /sys/block/vdb/stat) -gt 500 ]; do sleep 0.05; done')
      await target.daemon.restart('SIGKILL')
      await fio
    })
  },
)
