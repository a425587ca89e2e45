/** Pools on file systems that are mounted, with the kernel, mkfs, QEMU and virsh as witnesses. */
import { chmodSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Child } from './lab/child.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { startLibvirt } from './lab/libvirt.ts'
import { CAN_MOUNT, MountNamespace } from './lab/namespace.ts'
import { qpair } from './lab/qpair.ts'

const MIB = 1 << 20
const PROGRAMS = [
  'setpriv',
  'unshare',
  'nsenter',
  'mount',
  'umount',
  'blkid',
  'losetup',
  'mkfs.btrfs',
  'mkfs.xfs',
  'mkfs.ext4',
  'qemu-img',
  'qemu-io',
] as const

interface Row {
  readonly name: string
  readonly state: string
  readonly used_percent?: number
  readonly watermark: number
}

await describeWith(PROGRAMS, 'pools', () => {
  describe.skipIf(!CAN_MOUNT)('on a file system (needs root, to mount it)', () => {
    let space: MountNamespace
    let daemon: Daemon
    const path = (name: string): string => join(daemon.directory, name)
    const pools = (): Promise<Row[]> => daemon.rpc('pool_list')
    const mounts = (): Promise<string> => space.run('cat', '/proc/self/mountinfo')

    beforeEach(async () => {
      space = await MountNamespace.open()
      daemon = await startDaemon({ within: space.enter })
      writeFileSync(path('medium'), '')
      truncateSync(path('medium'), 400 * MIB)
    })
    afterEach(async () => {
      try {
        await daemon.stop()
      } finally {
        await space.close()
      }
    })

    /** The words of `pool-define-as` for a file system on the medium. */
    const define = (format: string, medium = path('medium')): Promise<string> =>
      qpair(
        daemon,
        'pool',
        'define-as',
        'fast',
        'fs',
        '-',
        '-',
        medium,
        '-',
        path('target'),
        '--source-format',
        format,
      )

    async function start(format = 'xfs'): Promise<void> {
      await define(format)
      await qpair(daemon, 'pool', 'build', 'fast', '--no-overwrite')
      await qpair(daemon, 'pool', 'start', 'fast')
    }

    it.each(['xfs', 'ext4'])('makes, mounts and unmounts %s', async format => {
      await define(format)
      await expect(qpair(daemon, 'pool', 'start', 'fast')).rejects.toThrow('qpair pool build fast makes it')
      await qpair(daemon, 'pool', 'build', 'fast')
      await expect(qpair(daemon, 'pool', 'start', 'fast')).rejects.toThrow(/cannot be mounted/)
      await qpair(daemon, 'pool', 'build', 'fast', '--no-overwrite')
      await qpair(daemon, 'pool', 'start', 'fast')
      const line = (await mounts()).split('\n').find(each => each.includes(` ${path('target')} `))
      expect(line).toMatch(new RegExp(`nosuid,nodev,noexec.* - ${format} /dev/loop`))
      await qpair(daemon, 'pool', 'destroy', 'fast')
      expect(await mounts()).not.toContain(path('target'))
      expect(await space.run('blkid', '-p', path('medium'))).toContain(`TYPE="${format}"`)
    })

    it('formats what has something on it only when told to', async () => {
      await start('ext4')
      await qpair(daemon, 'pool', 'destroy', 'fast')
      await expect(qpair(daemon, 'pool', 'build', 'fast', '--no-overwrite')).rejects.toThrow(
        'has ext4 on it already. --overwrite',
      )
      expect(await space.run('blkid', '-p', path('medium'))).toContain('TYPE="ext4"')
      await define('xfs')
      await qpair(daemon, 'pool', 'build', 'fast', '--overwrite')
      expect(await space.run('blkid', '-p', path('medium'))).toContain('TYPE="xfs"')
    })

    it('knows what is mounted after it was killed, and mounts what starts with it', async () => {
      await start()
      await qpair(daemon, 'volume', 'create', 'fast', 'a', '64M')
      await daemon.restart('SIGKILL')
      expect(await pools()).toMatchObject([{ name: 'fast', state: 'running' }])
      expect(await daemon.rpc('volume_list')).toMatchObject([{ name: 'a' }])
      await qpair(daemon, 'pool', 'destroy', 'fast')
      await daemon.restart('SIGKILL')
      expect(await pools()).toMatchObject([{ name: 'fast', state: 'inactive' }])
      await qpair(daemon, 'pool', 'autostart', 'fast')
      await daemon.restart()
      expect(await pools()).toMatchObject([{ name: 'fast', state: 'running' }])
      expect(await mounts()).toContain(path('target'))
    })

    it('knows a loop device that it was given as what is mounted', async () => {
      const device = (await space.run('losetup', '--find', '--show', path('medium'))).trim()
      try {
        await define('xfs', device)
        await qpair(daemon, 'pool', 'build', 'fast', '--no-overwrite')
        await qpair(daemon, 'pool', 'start', 'fast')
        await daemon.restart('SIGKILL')
        expect(await pools()).toMatchObject([{ name: 'fast', state: 'running' }])
        await qpair(daemon, 'pool', 'destroy', 'fast')
        expect(await mounts()).not.toContain(path('target'))
      } finally {
        await space.run('losetup', '--detach', device)
      }
    })

    it('starts without a pool whose medium has gone, keeps it, and says why', async () => {
      await start()
      await qpair(daemon, 'pool', 'autostart', 'fast')
      await qpair(daemon, 'pool', 'destroy', 'fast')
      rmSync(path('medium'))
      await daemon.restart('SIGKILL')
      expect(await pools()).toMatchObject([{ name: 'fast', state: 'inactive', autostart: true }])
      expect(daemon.output).toMatch(/pool fast could not be started: .*cannot be mounted/)
    })

    it('says who is in the way when it cannot unmount, and stays as it was', async () => {
      await start()
      const user = await Child.start(space.enter[0]!, [
        ...space.enter.slice(1),
        'sh',
        '-c',
        `cd ${path('target')} && echo there && exec sleep 10000`,
      ])
      while (!user.output.includes('there')) await new Promise(setImmediate)
      await expect(qpair(daemon, 'pool', 'destroy', 'fast')).rejects.toThrow(/busy.*fuser -vm/)
      expect(await pools()).toMatchObject([{ state: 'running' }])
      await user.end('SIGKILL')
      await qpair(daemon, 'pool', 'destroy', 'fast')
    })

    it('does not hide what is mounted on its target already', async () => {
      await define('xfs')
      await qpair(daemon, 'pool', 'build', 'fast', '--no-overwrite')
      await space.run('mount', '-t', 'tmpfs', 'other', path('target'))
      await expect(qpair(daemon, 'pool', 'start', 'fast')).rejects.toThrow(
        `has other mounted on it, not ${path('medium')}`,
      )
    })

    it.each(['xfs', 'btrfs'])(
      'shares blocks of %s between a raw volume, its snapshots and its clones',
      async format => {
        if (format === 'xfs') await start()
        else {
          // libvirt's fs pools have no btrfs to make; what is there is mounted.
          await space.run('mkfs.btrfs', '-q', path('medium'))
          await define('auto')
          await qpair(daemon, 'pool', 'build', 'fast')
          await qpair(daemon, 'pool', 'start', 'fast')
        }
        await qpair(daemon, 'volume', 'create', 'fast', 'a', '1G')
        await qpair(daemon, 'volume', 'export', 'a', '--nbd', '--unix', path('nbd'))
        const uri = `nbd+unix:///fast-a?socket=${path('nbd')}`
        const io = (...commands: string[]) =>
          space.run('qemu-io', '-f', 'raw', ...commands.flatMap(each => ['-c', each]), uri)
        await io('write -P 0x11 0 100M', 'flush')
        await qpair(daemon, 'pool', 'refresh', 'fast')
        const before = (await pools())[0]!.used_percent!
        await qpair(daemon, 'volume', 'snapshot', 'create', 'a', 'monday')
        await qpair(daemon, 'volume', 'unexport', 'a')
        await qpair(daemon, 'volume', 'clone', 'a', 'b')
        await qpair(daemon, 'pool', 'refresh', 'fast')
        // A copy of 100 MiB would be a quarter of the pool.
        expect((await pools())[0]!.used_percent! - before).toBeLessThan(10)
        await space.run('qemu-io', '-f', 'raw', '-c', 'write -P 0x22 0 50M', path('target/a'))
        await space.run('qemu-io', '-f', 'raw', '-c', 'read -P 0x11 0 100M', path('target/b'))
        await qpair(daemon, 'volume', 'snapshot', 'revert', 'a', 'monday')
        await space.run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', path('target/a'), path('target/b'))
        await expect(qpair(daemon, 'volume', 'delete', 'a')).rejects.toThrow('--delete-snapshots')
        await qpair(daemon, 'volume', 'delete', 'a', '--delete-snapshots')
        expect((await space.run('ls', '-A', path('target'))).trim()).toBe('b')
      },
    )

    it.each(['raw', 'qcow2'])(
      'fails writes to %s cleanly when it is full, warns before, and goes on when there is room',
      async format => {
        await start()
        await qpair(daemon, 'pool', 'set-watermarks', 'fast', '60,80')
        await qpair(daemon, 'volume', 'create', 'fast', 'thin', '1G', '--format', format)
        await qpair(daemon, 'volume', 'create', 'fast', 'filler', '250M', '--preallocation', 'full')
        expect(await pools()).toMatchObject([{ watermark: 80 }])
        expect(daemon.output).toMatch(/ERROR volume: pool fast is \d\d % full/)
        expect(await daemon.rpc('notify_get_notifications')).toContainEqual(
          expect.objectContaining({ type: 'pool_usage', ctx: expect.stringMatching(/^fast \d\d$/) }),
        )
        await qpair(daemon, 'volume', 'export', 'thin', '--nbd', '--unix', path('nbd'))
        const uri = `nbd+unix:///fast-thin?socket=${path('nbd')}`
        const io = (command: string) => space.run('qemu-io', '-f', 'raw', '-c', command, uri)
        await io('write -P 0x11 0 5M')
        await expect(io('write -P 0x22 100M 60M')).rejects.toMatchObject({
          stdout: expect.stringContaining('No space left on device'),
        })
        await io('read -P 0x11 0 5M')
        await qpair(daemon, 'volume', 'delete', 'filler')
        await io('write -P 0x22 100M 60M')
        await io('read -P 0x22 100M 60M')
        await qpair(daemon, 'volume', 'unexport', 'thin')
        await space.run('qemu-io', '-f', format, '-c', 'read -P 0x11 0 5M', path('target/thin'))
        if (format === 'qcow2') {
          expect(await space.run('qemu-img', 'check', path('target/thin'))).toContain('No errors')
        }
      },
    )

    it('does not preallocate what it has no room for', async () => {
      await start()
      const made = qpair(daemon, 'volume', 'create', 'fast', 'big', '500M', '--preallocation', 'full')
      await expect(made).rejects.toThrow(/500 MiB are to be reserved and .* left/)
      expect((await space.run('ls', '-A', path('target'))).trim()).toBe('')
    })
  })
})

await describeWith(['setpriv', 'virsh', 'libvirtd'], 'a directory pool', () => {
  it('is the same to libvirt, by its document and by its volumes', async () => {
    const daemon = await startDaemon()
    const libvirt = await startLibvirt()
    try {
      // libvirt's daemon is another user here.
      chmodSync(daemon.directory, 0o755)
      const target = join(daemon.directory, 'vms')
      await qpair(daemon, 'pool', 'define-as', 'vms', 'dir', '--target', target)
      await qpair(daemon, 'pool', 'start', 'vms', '--build')
      chmodSync(target, 0o755)
      await qpair(daemon, 'volume', 'create', 'vms', 'a.raw', '1G', '--mode', '0644')
      await qpair(daemon, 'volume', 'create', 'vms', 'b.qcow2', '2G', '--format', 'qcow2', '--mode', '0644')
      const xml = await daemon.rpc<string>('pool_dumpxml', { pool: 'vms' })
      await libvirt.virsh('pool-define', libvirt.file('pool.xml', xml))
      await libvirt.virsh('pool-start', 'vms')
      const list = await libvirt.virsh('vol-list', 'vms', '--details')
      expect(list).toMatch(/a\.raw +\S+\/a\.raw +file +1\.00 GiB/)
      expect(list).toMatch(/b\.qcow2 +\S+\/b\.qcow2 +file +2\.00 GiB/)
      const shown = await libvirt.virsh('vol-dumpxml', 'b.qcow2', '--pool', 'vms')
      const ours = await daemon.rpc<string>('volume_dumpxml', { volume: 'b.qcow2' })
      for (const element of [
        /<capacity.*/,
        /<key>.*/,
        /<path>.*/,
        /<format.*/,
        /<mode>.*/,
        /<compat.*/,
        /<clusterS.*/,
      ]) {
        expect(element.exec(ours)?.[0].replaceAll('"', "'")).toBe(
          element.exec(shown)?.[0].replaceAll('"', "'"),
        )
      }
    } finally {
      await libvirt.stop()
      await daemon.stop()
    }
  })
})
