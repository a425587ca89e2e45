/** Disks of a guest that an unprivileged libvirtd runs. virsh is the witness of every change, the guest that of every disk. */
import { spawnSync } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { LIBVIRT_USER, type Libvirt, startLibvirt } from './lab/libvirt.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { qpair } from './lab/qpair.ts'
import { startVhost, type VhostTarget } from './lab/vhost.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB

const SHARED_MEMORY = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
/** Each takes one device that is plugged in. */
const PORTS = Array.from(
  { length: 12 },
  (_, index) => `<controller type='pci' index='${index + 1}' model='pcie-root-port'/>`,
).join('')
/** What libvirt makes AppArmor's profile of a guest with. */
const PROFILE_HELPER = '/usr/lib/libvirt/virt-aa-helper'
const CDROM = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>"

interface Answer {
  readonly means?: string
  readonly notes?: readonly string[]
  readonly released?: readonly string[]
}

interface Seen {
  readonly threads: readonly { readonly role: string }[]
  readonly disks: readonly { readonly disk: string; readonly served_by: string }[]
  readonly memory: { readonly resident: number }
}

interface Disk {
  readonly type: string
  readonly device: string
  readonly target: string
  readonly source?: string
  readonly bus: string
  readonly live: boolean
  readonly config: boolean
  readonly bdev?: string
}

await describeWith([...GUEST_PROGRAMS, 'libvirtd', 'virsh', 'setpriv'], "a libvirt guest's disks", () => {
  let target: VhostTarget
  let libvirt: Libvirt
  /** Where both the daemon and QEMU's user may read and write. */
  let images: string

  /** What the command answers to a program. */
  const vm = async (...words: readonly string[]): Promise<Answer> =>
    JSON.parse(await qpair(target.daemon, 'vm', ...words, '--uri', libvirt.uri))
  const disks = async (): Promise<string[]> => {
    const rows = await target.daemon.rpc<Disk[]>('vm_disks', { domain: 'lab', uri: libvirt.uri })
    return rows.map(({ type, device, target: name, source = '-', bus, live, config, bdev = '-' }) =>
      [type, device, name, source, bus, ...(live ? ['now'] : []), ...(config ? ['next'] : []), bdev].join(
        ' ',
      ),
    )
  }

  function image(name: string, owner = LIBVIRT_USER): string {
    const path = target.image(join('images', name), SIZE)
    chownSync(path, owner, owner)
    chmodSync(path, 0o600)
    return path
  }

  /** Rows of a table without its head, blanks between columns made one. */
  const rows = (table: string): string[] =>
    table
      .split('\n')
      .slice(2)
      .map(line => line.trim().replaceAll(/\s+/g, ' '))
      .filter(line => line !== '')

  const witness = async (...flags: readonly string[]): Promise<string[]> =>
    rows(await libvirt.virsh('domblklist', 'lab', '--details', ...flags))

  /** Waits until a command in the guest prints this: it learns of a disk when it likes. */
  const guestSays = async (command: string, expected: string): Promise<void> => {
    await expect.poll(() => libvirt.run(`${command} 2>/dev/null || true`), { timeout: 60_000 }).toBe(expected)
  }
  const hasDisk = (name: string): Promise<void> => guestSays(`blockdev --getsize64 /dev/${name}`, `${SIZE}`)

  const controllers = async (): Promise<string[]> =>
    (await target.daemon.rpc<{ ctrlr: string }[]>('vhost_get_controllers')).map(({ ctrlr }) => ctrlr)
  const exportsOf = async (): Promise<string[]> =>
    (await target.daemon.rpc<{ name: string }[]>('nbd_export_list')).map(({ name }) => name)
  const bdevs = async (): Promise<string[]> =>
    (await target.daemon.rpc<{ name: string }[]>('bdev_get_bdevs')).map(({ name }) => name)

  beforeAll(async () => {
    target = await startVhost()
    chmodSync(target.sockets, 0o755)
    chmodSync(target.daemon.directory, 0o755)
    images = join(target.daemon.directory, 'images')
    mkdirSync(images)
    libvirt = await startLibvirt()
    await libvirt.boot(SHARED_MEMORY, PORTS + CDROM)
    await target.daemon.rpc('bdev_malloc_create', { name: 'm0', num_blocks: SIZE / 512, block_size: 512 })
  })
  afterAll(async () => {
    await libvirt?.stop()
    await target?.stop()
  })

  it('are listed as virsh lists them', async () => {
    expect((await disks()).map(row => row.split(' ').slice(0, 4).join(' '))).toEqual(await witness())
    expect((await disks()).map(row => row.split(' ').slice(4).join(' '))).toEqual([
      'virtio now next -',
      'sata now next -',
    ])
  })

  it('are listed with their guest, and shown with the threads of its QEMU', async () => {
    const guests = await target.daemon.rpc<object[]>('vm_list', { uri: libvirt.uri })
    const facts = await libvirt.virsh('dominfo', 'lab')
    expect(guests).toEqual([
      {
        ...{ name: 'lab', owner: 'libvirt', state: 'running', pid: expect.any(Number) },
        cpus: Number(/^CPU\(s\): +(\d+)/m.exec(facts)![1]),
        memory: 1024 * Number(/^Max memory: +(\d+) KiB/m.exec(facts)![1]),
        disks: [expect.stringMatching(/^vda \(\/.*\)$/), 'sda'],
      },
    ])
    const seen = await target.daemon.rpc<Seen>('vm_inspect', {
      domain: 'lab',
      uri: libvirt.uri,
      interval: 0.1,
    })
    const roles = seen.threads.map(({ role }) => role)
    expect(roles.slice(0, 2)).toEqual(['main loop', 'vCPU 0'])
    expect(roles).toContain('monitor')
    expect(seen.disks).toContainEqual(
      expect.objectContaining({ disk: 'virtio-disk0', served_by: 'main loop' }),
    )
    expect(seen.memory.resident).toBeGreaterThan(32 * MIB)
  })

  it('come straight from a file, now and at the next start, and go again', async () => {
    const path = image('dbvm_disk2.img')
    expect(await vm('attach', 'lab', path, 'vdb', '--live', '--config')).toEqual({
      ...{ domain: 'lab', target: 'vdb', bus: 'virtio', means: 'direct', source: path },
      ...{ live: true, config: true, notes: [] },
    })
    const row = `file disk vdb ${path}`
    expect(await witness()).toContain(row)
    expect(await witness('--inactive')).toContain(row)
    await hasDisk('vdb')

    await vm('detach', 'lab', path, '--live', '--config')
    expect(await witness()).not.toContain(row)
    expect(await witness('--inactive')).not.toContain(row)
    await guestSays('ls /dev/vdb', '')
  })

  it('are served over vhost-user where the guest has shared memory', async () => {
    const { notes } = await vm('attach', 'lab', 'm0', '--means', 'vhost')
    expect(notes).toEqual([expect.stringContaining('does not reconnect')])
    expect(await witness()).toContain(`vhostuser disk vdb ${target.sockets}/lab-vdb`)
    expect(await controllers()).toEqual(['lab-vdb'])
    await hasDisk('vdb')
    await libvirt.run('echo qpair | dd of=/dev/vdb bs=512 count=1 conv=sync,fsync status=none')
    expect(await libvirt.run('dd if=/dev/vdb bs=5 count=1 status=none')).toBe('qpair')
    expect(await disks()).toContain(`vhostuser disk vdb ${target.sockets}/lab-vdb virtio now m0`)

    expect(await vm('detach', 'lab', 'm0')).toMatchObject({ released: ['vhost controller lab-vdb'] })
    expect(await controllers()).toEqual([])
    expect(await bdevs()).toEqual(['m0'])
  })

  it('are served over NBD, by a socket for their QEMU alone', async () => {
    await vm('attach', 'lab', 'm0', '--serial', 'S123')
    expect(await witness()).toContain('network disk vdb lab-vdb')
    const socket = statSync(join(target.sockets, 'lab-vdb.nbd'))
    expect([socket.uid, socket.mode & 0o777]).toEqual([LIBVIRT_USER, 0o600])
    await hasDisk('vdb')
    expect(await libvirt.run('cat /sys/block/vdb/serial')).toBe('S123')
    await vm('detach', 'lab', 'vdb')
    expect(await exportsOf()).toEqual([])
  })

  it('are volumes of a pool, found by their names', async () => {
    await qpair(target.daemon, 'pool', 'define-as', 'images', 'dir', '--target', images)
    await qpair(target.daemon, 'pool', 'start', 'images')
    await qpair(target.daemon, 'pool', 'autostart', 'images')
    await qpair(target.daemon, 'volume', 'create', 'images', 'data.raw', '64M')
    await vm('attach', 'lab', 'images/data.raw', '--means', 'vhost', '--live', '--config')
    expect(await witness('--inactive')).toContain(`vhostuser disk vdb ${target.sockets}/lab-vdb`)
    await hasDisk('vdb')
    expect(await bdevs()).toContain('lab-vdb')

    // What the guest still has is served on.
    await vm('detach', 'lab', 'data.raw', '--config')
    expect(await controllers()).toEqual(['lab-vdb'])
    await vm('detach', 'lab', 'data.raw', '--live')
    expect(await controllers()).toEqual([])
    expect(await bdevs()).toEqual(['m0'])
  })

  it('are SCSI disks, on a controller that guests have drivers for', async () => {
    const path = image('scsi.raw')
    await vm('attach', 'lab', path, '--bus', 'scsi', '--live', '--config')
    expect(await witness()).toContain(`file disk sdb ${path}`)
    expect(await libvirt.virsh('dumpxml', 'lab', '--inactive')).toMatch(
      /type='scsi' index='0' model='virtio-scsi'/,
    )
    await vm('detach', 'lab', 'sdb', '--live', '--config')
  })

  it('are NVMe disks in the words of QEMU, which start with the guest', async () => {
    const path = image('nvme.raw')
    await qpair(target.daemon, 'pool', 'refresh', 'images')
    const { notes } = await vm('attach', 'lab', 'nvme.raw', '--bus', 'nvme', '--serial', '1235', '--config')
    expect(notes).toEqual([expect.stringContaining('virsh domblklist does not show it')])
    const xml = await libvirt.virsh('dumpxml', 'lab', '--inactive')
    expect(xml).toContain("xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'")
    expect(xml).toContain(`<qemu:arg value='file=${path},if=none,id=nvme0,format=raw,discard=unmap'/>`)
    expect(xml).toContain("<qemu:arg value='nvme,drive=nvme0,serial=1235,addr=0x1e'/>")
    expect(await disks()).toContain(`file disk nvme0 ${path} nvme next -`)

    await libvirt.restart()
    await libvirt.run('modprobe nvme')
    await hasDisk('nvme0n1')
    expect(await libvirt.run('cat /sys/class/nvme/nvme0/serial')).toBe('1235')
    expect(await libvirt.run('nvme list')).toMatch(/\/dev\/nvme0n1 .*QEMU NVMe Ctrl/)
    expect(await disks()).toContain(`file disk nvme0 ${path} nvme now next -`)
    await expect(vm('detach', 'lab', path, '--live')).rejects.toThrow('has had nvme0 since it started')

    await vm('detach', 'lab', path, '--config')
    expect(await libvirt.virsh('dumpxml', 'lab', '--inactive')).not.toContain('qemu:arg')
    await libvirt.restart()
    await guestSays('ls /sys/class/nvme', '')
  })

  it('are NVMe disks that come and go while the guest runs', async () => {
    await libvirt.run('modprobe nvme')
    const countNvme = 'ls /sys/class/nvme | wc -l'
    await vm('attach', 'lab', 'm0', '--bus', 'nvme', '--live')
    await guestSays(countNvme, '1')
    expect(await disks()).toContain('network disk nvme0 lab-nvme0 nvme now m0')
    const second = image('second.raw')
    await vm('attach', 'lab', second, '--bus', 'nvme', '--live')
    await guestSays(countNvme, '2')

    await vm('detach', 'lab', 'nvme0')
    await vm('detach', 'lab', second)
    await guestSays(countNvme, '0')
    expect(await exportsOf()).toEqual([])
    expect(await libvirt.virsh('dumpxml', 'lab')).not.toContain('urn:qpair')
  })

  it('are not attached where QEMU may not open them, until the cause is removed', async () => {
    const path = image('root.raw', 0)
    const closed = join(images, 'closed')
    mkdirSync(closed)
    chmodSync(closed, 0o700)
    const attach = (...more: readonly string[]): Promise<Answer> =>
      vm('attach', 'lab', path, '--bus', 'nvme', '--live', ...more)
    await expect(attach()).rejects.toThrow(
      new RegExp(
        `user ${LIBVIRT_USER}, as whom QEMU runs, may not read and write \\S+root.raw. As root: .*--fix does that`,
      ),
    )
    expect((await disks()).join()).not.toContain('root.raw')
    await attach('--fix')
    expect((await disks()).join()).toContain('root.raw')
    await vm('detach', 'lab', path)

    const hidden = target.image('images/closed/a.raw', SIZE)
    const attachHidden = (...more: readonly string[]): Promise<Answer> =>
      vm('attach', 'lab', hidden, '--live', ...more)
    await expect(attachHidden()).rejects.toThrow(`may not search the directory ${closed}`)
    await attachHidden('--fix')
    await vm('detach', 'lab', hidden)
  })

  it.skipIf(!existsSync(PROFILE_HELPER))(
    'are in the profiles of libvirt only where they are files of its own (skipped without virt-aa-helper)',
    async () => {
      const own = image('own.raw')
      const foreign = image('foreign.raw')
      await vm('attach', 'lab', own, '--config')
      await vm('attach', 'lab', foreign, '--bus', 'nvme', '--config')
      await vm('attach', 'lab', 'm0', '--config')
      const xml = await libvirt.virsh('dumpxml', 'lab', '--inactive')
      const uuid = /<uuid>(.*)<\/uuid>/.exec(xml)![1]!
      const { stderr: profile } = spawnSync(
        PROFILE_HELPER,
        ['--dryrun', '--create', '--uuid', `libvirt-${uuid}`],
        {
          input: xml,
          encoding: 'utf8',
        },
      )
      expect(profile).toContain(`"${own}" rwk,`)
      expect(profile).not.toContain(foreign)
      expect(xml).toContain(target.sockets)
      expect(profile).not.toContain(target.sockets)
      for (const disk of [own, foreign, 'm0']) await vm('detach', 'lab', disk, '--config')
    },
  )

  it('leave nothing behind when libvirt refuses a later step', async () => {
    // Nothing is plugged into a SATA controller of a guest that runs, which QEMU says when all is prepared.
    const attach = vm('attach', 'lab', 'm0', '--bus', 'sata', '--live')
    await expect(attach).rejects.toThrow('A SATA bus takes no disk while the guest runs')
    expect(await exportsOf()).toEqual([])

    const before = await libvirt.virsh('dumpxml', 'lab', '--inactive')
    await expect(
      vm('attach', 'lab', 'images/data.raw', '--bus', 'sata', '--means', 'nbd', '--live', '--config'),
    ).rejects.toThrow('A SATA bus takes no disk')
    expect(await libvirt.virsh('dumpxml', 'lab', '--inactive')).toBe(before)
    expect(await bdevs()).toEqual(['m0'])
  })

  it('are refused with what is there instead', async () => {
    await expect(vm('attach', 'lab', 'nothing')).rejects.toThrow(
      'neither a volume, nor a bdev, nor a path (/DIR/FILE, or ./FILE where you are)',
    )
    await expect(vm('attach', 'nolab', 'm0')).rejects.toThrow("failed to get domain 'nolab'")
    await expect(vm('attach', 'lab', 'm0', 'vda')).rejects.toThrow('domain lab has a disk vda already')
    await expect(vm('attach', 'lab', 'm0', 'hda')).rejects.toThrow('hda is no name of a disk')
    await expect(vm('detach', 'lab', 'vdz')).rejects.toThrow(/has no disk vdz: there are vda/)
    await expect(
      qpair(target.daemon, 'vm', 'disks', 'lab', '--uri', 'qemu+unix:///session?socket=/nowhere'),
    ).rejects.toThrow('libvirt does not answer at')
  })

  it('share memory only when that is asked for', async () => {
    const xml = await libvirt.virsh('dumpxml', 'lab', '--inactive')
    const plain = xml
      .replace(/<memoryBacking>[\s\S]*<\/memoryBacking>/, '')
      .replace('<name>lab</name>', '<name>plain</name>')
      .replace(/<uuid>.*<\/uuid>/, '')
    await libvirt.virsh('define', libvirt.file('plain.xml', plain))
    const memory = async (): Promise<string> => {
      const text = await libvirt.virsh('dumpxml', 'plain', '--inactive')
      return /<memoryBacking>[\s\S]*<\/memoryBacking>/.exec(text)?.[0] ?? ''
    }
    try {
      expect(await vm('attach', 'plain', 'm0')).toMatchObject({ means: 'nbd', live: false, config: true })
      expect(await exportsOf()).toEqual(['plain-vdb'])
      expect(await memory()).toBe('')
      await vm('detach', 'plain', 'm0')
      const { notes } = await vm('attach', 'plain', 'm0', '--means', 'vhost')
      expect(notes).toEqual([expect.stringContaining('is shared from its next start on')])
      expect(await memory()).toContain("<access mode='shared'/>")
      await vm('detach', 'plain', 'm0')
    } finally {
      await libvirt.virsh('undefine', 'plain')
    }
  })
})
