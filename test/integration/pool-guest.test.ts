/**
 * Pools that take what this machine's kernel may not have (device mapper, NFS, iSCSI), in a guest with Debian's: it runs
 * this machine's programs and the daemon on a copy of this machine's files, where what is written stays in memory.
 */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest, type GuestJob } from './lab/guest.ts'
import { call, settled } from './lab/json-rpc.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url))
const MIB = 2 ** 20
const GIB = 2 ** 30

interface Volume {
  readonly name: string
  readonly path: string
  readonly capacity: number
  readonly allocation: number
}

/** The root of what follows is this machine's, read only, below a layer in memory. */
const ENTER = `
mkdir -p /host/lower /host/top
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 machine /host/lower
mount -t tmpfs -o size=75% none /host/top
mkdir /host/top/upper /host/top/scratch /host/root
mount -t overlay -o lowerdir=/host/lower,upperdir=/host/top/upper,workdir=/host/top/scratch none /host/root
for name in dev proc sys; do mount --rbind /$name /host/root/$name; done
for name in run tmp; do mount -t tmpfs none /host/root/$name; done
# Wherever it is, also below /tmp.
mkdir -p /host/root${REPOSITORY}
mount --bind /host/lower${REPOSITORY} /host/root${REPOSITORY}
ip address add 192.168.159.144/32 dev lo
mkdir -p /host/root/run/lvm-system /host/root/run/lock
cat > /host/root/run/lvm-system/lvm.conf <<END
devices { obtain_device_list_from_udev = 0  use_devicesfile = 0  global_filter = ["a|^/dev/vd[bc]$|", "r|.*|"] }
activation { udev_sync = 0  udev_rules = 0  verify_udev_operations = 1  monitoring = 0 }
END
`

/** In a root of its own in memory, which the kernel can export from `/` on, as NFS 4 does. */
const NFS = `
R=/run/nfs-root
mkdir $R
mount -t tmpfs none $R
mkdir -p $R/usr $R/etc $R/proc $R/run/rpc_pipefs $R/tmp $R/var/lib/nfs/v4recovery $R/mnt/packtStratisXF501
mount --rbind /usr $R/usr
mount -t nfsd none /proc/fs/nfsd
mount --rbind /proc $R/proc
for name in bin sbin lib lib64; do ln -s usr/$name $R/$name; done
mkdir -p $R/run/rpcbind $R/dev
mknod -m 666 $R/dev/null c 1 3
cp -L /etc/passwd /etc/group /etc/services /etc/protocols /etc/netconfig /etc/nsswitch.conf /etc/ld.so.cache $R/etc
echo '/mnt/packtStratisXF501 *(rw,no_root_squash,insecure,no_subtree_check,fsid=1)' > $R/etc/exports
touch $R/var/lib/nfs/etab $R/var/lib/nfs/rmtab
chroot $R exportfs -a
# For showmount only.
chroot $R rpcbind -w
chroot $R rpc.mountd
`

/** Without the time in which clients of a server that has been restarted claim what they had. */
const NFS_SERVE = `
chroot /run/nfs-root rpc.nfsd --no-nfs-version 3 2
echo Y > /proc/fs/nfsd/v4_end_grace
`

const TARGET = 'iqn.2026-01.org.example:store'
const INITIATORS: readonly (readonly [string, readonly number[]])[] = [
  ['iqn.2026-01.org.example:all', [0, 1, 2]],
  ['iqn.2026-01.org.example:one', [1]],
  ['iqn.2026-01.org.example:two', [1, 2]],
]
const PASSWORD = 'a-long-password'

/** One target with units of 20, 40 and 60 GiB; each initiator sees its own. */
const ISCSI = [
  'cd /sys/kernel/config/target',
  `T=$PWD/iscsi/${TARGET}/tpgt_1`,
  'mkdir -p $T/np/127.0.0.1:3260',
  ...[20, 40, 60].flatMap((size, lun) => [
    `truncate -s ${size}G /tmp/lun${lun}`,
    `mkdir -p core/fileio_0/lun${lun} $T/lun/lun_${lun}`,
    `echo fd_dev_name=/tmp/lun${lun},fd_dev_size=${size * GIB} > core/fileio_0/lun${lun}/control`,
    `echo 1 > core/fileio_0/lun${lun}/enable`,
    `ln -s $PWD/core/fileio_0/lun${lun} $T/lun/lun_${lun}/it`,
  ]),
  ...INITIATORS.flatMap(([initiator, units]) => [
    `mkdir $T/acls/${initiator}`,
    `printf kvm > $T/acls/${initiator}/auth/userid`,
    `printf ${PASSWORD} > $T/acls/${initiator}/auth/password`,
    ...units.flatMap(lun => [
      `mkdir $T/acls/${initiator}/lun_${lun}`,
      `ln -s $T/lun/lun_${lun} $T/acls/${initiator}/lun_${lun}/it`,
    ]),
  ]),
  // Who has no other name.
  'mkdir -p $T/acls/iqn.2026-01.org.example:host/lun_0',
  'ln -s $T/lun/lun_0 $T/acls/iqn.2026-01.org.example:host/lun_0/it',
  'printf kvm > $T/acls/iqn.2026-01.org.example:host/auth/userid',
  `printf ${PASSWORD} > $T/acls/iqn.2026-01.org.example:host/auth/password`,
  'echo 1 > $T/attrib/authentication',
  'echo 1 > $T/enable',
  'echo InitiatorName=iqn.2026-01.org.example:host > /etc/iscsi/initiatorname.iscsi',
  'mkdir -p /run/lock/iscsi',
  'iscsid',
].join('\n')

const PROGRAMS = [
  ...GUEST_PROGRAMS,
  ...(['lvs', 'thin_check', 'exportfs', 'iscsiadm', 'blkid'] as const),
] as const

await describeWith(PROGRAMS, 'pools in a guest', () => {
  const directory = mkdtempSync(join(tmpdir(), 'qpair-pool-guest-'))
  let guest: Guest
  let port: number

  const rpc = <T = unknown>(method: string, params?: unknown): Promise<T> => call<T>(port, method, params)
  const volumes = (pool: string): Promise<Volume[]> => rpc('volume_list', { pool })
  const inside = async (command: string): Promise<string> => {
    // A file, as the command has quotes of its own.
    const script = `cat > /host/root/run/script <<'LAST-LINE'\nexport LVM_SYSTEM_DIR=/run/lvm-system\n${command}\nLAST-LINE\n`
    const { stdout } = await guest.run(`${script}chroot /host/root /bin/sh -e /run/script`)
    return stdout
  }
  const job = async (method: string, params: object): Promise<void> => {
    const { job_id } = await rpc<{ job_id: number }>(method, params)
    const state = async (): Promise<string> =>
      (await rpc<{ state: string }>('job_wait', { id: job_id, timeout_ms: 1000 })).state
    await expect.poll(state, { timeout: 120_000 }).toBe('completed')
  }

  beforeAll(async () => {
    const disks = ['a', 'b'].map(name => join(directory, name))
    for (const disk of disks) {
      writeFileSync(disk, '')
      truncateSync(disk, 512 * MIB)
    }
    guest = await bootGuest({
      memoryMiB: 2048,
      modules: [
        '9p',
        '9pnet_virtio',
        'dm-mod',
        'dm-snapshot',
        'dm-thin-pool',
        'nfsd',
        'nfsv4',
        'iscsi_tcp',
        'sd_mod',
      ],
      extraArgs: [
        ...['-virtfs', 'local,path=/,mount_tag=machine,security_model=none,readonly=on,multidevs=remap'],
        ...disks.flatMap((disk, index) => [
          ...['-drive', `if=none,id=extra${index},format=raw,file=${disk}`],
          ...['-device', `virtio-blk-pci,drive=extra${index}`],
        ]),
      ],
    })
    await guest.run(ENTER)
    await guest.run('modprobe iscsi_target_mod; modprobe target_core_file')
    port = await forwardTo(guest, '10.0.2.15:5260')
    const serve = `cd ${REPOSITORY} && LVM_SYSTEM_DIR=/run/lvm-system exec ${process.execPath} bin/qpair.js serve -r 10.0.2.15:5260 --state /run/state`
    guest.start(`chroot /host/root /bin/sh -c '${serve}' > /run/daemon 2>&1`)
    await guest.waitFor('grep -q "serves RPC" /run/daemon')
  })
  afterAll(async () => {
    await guest?.stop()
    rmSync(directory, { recursive: true, force: true })
  })

  it('logical: a volume group with thick volumes and their snapshots', async () => {
    const xml = `<pool type='logical'>
  <name>guests</name>
  <source><device path='/dev/vdb'/><name>guests</name><format type='lvm2'/></source>
  <target><path>/dev/guests</path></target>
</pool>`
    await rpc('pool_define', { xml })
    await expect(rpc('pool_start', { pool: 'guests' })).rejects.toThrow('qpair pool build makes it')
    await rpc('pool_build', { pool: 'guests' })
    await expect(rpc('pool_build', { pool: 'guests' })).rejects.toThrow(
      '/dev/vdb has LVM2_member on it already',
    )
    await rpc('pool_start', { pool: 'guests' })
    expect(await rpc('pool_find_sources', { type: 'logical' })).toBe(`<sources>
  <source>
    <device path='/dev/vdb'/>
    <name>guests</name>
    <format type='lvm2'/>
  </source>
</sources>
`)
    await rpc('volume_create', { pool: 'guests', name: 'web', capacity: '64M' })
    expect(await volumes('guests')).toMatchObject([
      { name: 'web', path: '/dev/guests/web', capacity: 64 * MIB, allocation: 64 * MIB },
    ])
    await inside('echo before | dd of=/dev/guests/web conv=fsync 2>&1')
    await rpc('volume_snapshot_create', { volume: 'web', snapshot: 'one' })
    expect(await rpc('volume_snapshot_list', { volume: 'web' })).toMatchObject([
      { name: 'one', size: 64 * MIB },
    ])
    await inside('echo after | dd of=/dev/guests/web conv=fsync 2>&1')
    await job('volume_snapshot_revert', { volume: 'web', snapshot: 'one' })
    expect(await inside('head -c 6 /dev/guests/web')).toBe('before')
    await expect(settled(port, 'volume_resize', { volume: 'web', capacity: '80M' })).rejects.toThrow(
      'It has snapshots',
    )
    await rpc('volume_snapshot_delete', { volume: 'web', snapshot: 'one' })
    await settled(port, 'volume_resize', { volume: 'web', capacity: '80M' })
    await rpc('volume_rename', { volume: 'web', name: 'www' })
    expect(await volumes('guests')).toMatchObject([{ name: 'www', capacity: 80 * MIB }])
    for (const name of ['-n', '../x', 'a b', 'snapshot1', '']) {
      await expect(rpc('volume_create', { pool: 'guests', name, capacity: '4M' })).rejects.toThrow(
        'cannot be the name',
      )
    }
    await rpc('volume_snapshot_create', { volume: 'www', snapshot: 'two' })
    await expect(settled(port, 'volume_delete', { volume: 'www' })).rejects.toThrow('has 1 snapshot (two)')
    await settled(port, 'volume_delete', { volume: 'www', delete_snapshots: true })
    expect(await inside('lvs --noheadings guests')).toBe('')
  })

  it('logical: a thin pool says when it fills, though its group has room, and full it fails writes until it grows', async () => {
    await inside('lvcreate --yes --size 16M --thinpool small guests')
    // What is held by a full pool is held for a second, not for a minute.
    await inside('echo 1 > /sys/module/dm_thin_pool/parameters/no_space_timeout')
    await rpc('volume_create', { pool: 'guests', name: 'promised', capacity: '1G' })
    await rpc('volume_export', { volume: 'promised', nbd: true, unix: '/run/nbd' })
    const io = (...commands: string[]): Promise<string> =>
      inside(
        `qemu-io -f raw ${commands.map(each => `-c '${each}'`).join(' ')} 'nbd+unix:///guests-promised?socket=/run/nbd' 2>&1 || true`,
      )
    await io('write -P 0x11 0 14M', 'flush')
    await rpc('pool_refresh', { pool: 'guests' })
    expect(await rpc('pool_list')).toMatchObject([
      { name: 'guests', used_percent: 87, used_of: 'thin pool small', watermark: 80 },
    ])
    expect(await io('write -P 0x22 100M 8M')).toContain('No space left on device')
    await inside('lvextend --size +16M guests/small')
    const kept = await io('write -P 0x22 100M 8M', 'read -P 0x22 100M 8M', 'read -P 0x11 0 14M')
    expect(kept).not.toMatch(/failed|error/)
    await rpc('volume_unexport', { volume: 'promised' })
    await settled(port, 'volume_delete', { volume: 'promised' })
    await inside('lvremove --yes guests/small')
  })

  it('logical: thin volumes, snapshots and clones where the group has a thin pool', async () => {
    await inside('lvcreate --yes --size 128M --thinpool thin guests')
    await rpc('volume_create', { pool: 'guests', name: 'thin1', capacity: '1G' })
    expect(await volumes('guests')).toMatchObject([{ name: 'thin1', capacity: GIB, allocation: 0 }])
    await rpc('volume_export', { volume: 'thin1', nbd: true, listen: ['127.0.0.1:0'] })
    await rpc('volume_snapshot_create', { volume: 'thin1', snapshot: 'live' })
    await rpc('volume_unexport', { volume: 'thin1' })
    await inside('echo x | dd of=/dev/guests/thin1 conv=fsync 2>&1')
    // As it would be when the daemon was killed behind LVM's merge, which takes the snapshot.
    await inside('lvconvert --yes --merge guests/thin1.live')
    expect(await rpc('volume_snapshot_list', { volume: 'thin1' })).toEqual([])
    await job('volume_snapshot_revert', { volume: 'thin1', snapshot: 'live', resume: true })
    expect(await rpc('volume_snapshot_list', { volume: 'thin1' })).toMatchObject([{ name: 'live' }])
    expect(await inside('head -c 1 /dev/guests/thin1 | tr "\\000" 0')).toBe('0')
    await job('volume_clone', { volume: 'thin1', name: 'thin2' })
    await settled(port, 'volume_delete', { volume: 'thin1', delete_snapshots: true })
    expect(await volumes('guests')).toMatchObject([{ name: 'thin2' }])
    await rpc('pool_destroy', { pool: 'guests' })
    expect(await inside('ls /dev/guests 2>/dev/null || true')).toBe('')
    await rpc('pool_start', { pool: 'guests' })
    await rpc('pool_destroy', { pool: 'guests' })
    await rpc('pool_delete', { pool: 'guests' })
    expect(await inside('vgs --noheadings')).toBe('')
  })

  it('mpath: the devices that multipath has made', async () => {
    const table = '0 1048576 multipath 0 0 1 1 round-robin 0 1 1 /dev/vdc 1'
    await inside(`dmsetup create mpatha --noudevsync -u mpath-3600a0b8000 --table '${table}'`)
    await rpc('pool_create', {
      xml: "<pool type='mpath'><name>paths</name><target><path>/dev/mapper</path></target></pool>",
    })
    expect(await volumes('paths')).toMatchObject([
      { path: '/dev/mapper/mpatha', capacity: 512 * MIB, key: '3600a0b8000' },
    ])
    await expect(rpc('volume_create', { pool: 'paths', name: 'x', capacity: '1M' })).rejects.toThrow(
      'multipathd makes them',
    )
    await rpc('pool_destroy', { pool: 'paths' })
  })

  const secret = `<secret ephemeral='no' private='yes'><usage type='iscsi'><target>store</target></usage></secret>`
  const iscsiXml = (type: string, name: string, initiator: string): string => `<pool type='${type}'>
  <name>${name}</name>
  <source>
    <host name='127.0.0.1'/>
    <device path='${TARGET}'/>
    <initiator><iqn name='${initiator}'/></initiator>
    <auth type='chap' username='kvm'><secret usage='store'/></auth>
  </source>
  <target><path>/dev/disk/by-path</path></target>
</pool>`

  it('iscsi: each initiator sees its own units of one target', async () => {
    await inside(ISCSI)
    expect(await rpc('pool_find_sources', { type: 'iscsi', host: '127.0.0.1' })).toBe(`<sources>
  <source>
    <host name='127.0.0.1'/>
    <device path='${TARGET}'/>
  </source>
</sources>
`)
    await rpc('secret_define', { xml: secret })
    await rpc('secret_set_value', { secret: 'store', base64: Buffer.from(PASSWORD).toString('base64') })
    for (const [index, [initiator, units]] of INITIATORS.entries()) {
      const pool = `store${index}`
      await rpc('pool_create', { xml: iscsiXml('iscsi', pool, initiator) })
      const found = (await volumes(pool)).map(({ name, capacity }) => [name, capacity / GIB])
      expect(found).toEqual(units.map(lun => [`unit:0:0:${lun}`, 20 * (lun + 1)]))
    }
    // What asking that server has found besides, where the usual is to log in to everything when the machine starts.
    const found = 'iscsiadm -m node -T iqn.2026-01.org.example:found -p 127.0.0.1:3260,1 -I qpair'
    await inside(`iscsiadm -m iface -I qpair -o new && ${found} -o new`)
    await inside(`${found} -o update -n node.startup -v automatic`)
    // The machine itself, which is not to see what the sessions of other pools show.
    const named = /<initiator>.*<\/initiator>/
    await rpc('pool_create', { xml: iscsiXml('iscsi', 'plain', '').replace(named, '') })
    expect((await volumes('plain')).map(({ name }) => name)).toEqual(['unit:0:0:0'])
    expect(await inside(`${found} | grep ^node.startup`)).toBe('node.startup = manual\n')
    await rpc('pool_destroy', { pool: 'plain' })
    expect(await inside("grep -hc '^qpair-' /sys/class/iscsi_session/*/ifacename")).toBe('1\n1\n1\n')
    await rpc('volume_export', { volume: 'store1/unit:0:0:1', nbd: true, listen: ['127.0.0.1:0'] })
    await rpc('volume_unexport', { volume: 'store1/unit:0:0:1' })
    await expect(rpc('secret_get_value', { secret: 'store' })).rejects.toThrow('is private')
    expect(await inside('cat /run/state/secrets/* | base64 -d')).toBe(PASSWORD)
  })

  it('iscsi: what an administrator has logged in to stays, and what the host uses', async () => {
    const [initiator] = INITIATORS[2]!
    const node = `iscsiadm -m node -T ${TARGET} -p 127.0.0.1 -I mine`
    const commands = [
      'iscsiadm -m iface -I mine -o new',
      `iscsiadm -m iface -I mine -o update -n iface.initiatorname -v ${initiator}`,
      'iscsiadm -m discovery -t sendtargets -p 127.0.0.1 -I mine -o new',
      `${node} -o update -n node.session.auth.authmethod -v CHAP`,
      `${node} -o update -n node.session.auth.username -v kvm`,
      `${node} -o update -n node.session.auth.password -v ${PASSWORD}`,
      `${node} --login`,
    ]
    await inside(commands.join('\n'))
    const interfaces = (): Promise<string> => inside('sort /sys/class/iscsi_session/*/ifacename')
    const before = (await interfaces()).trim().split('\n')
    // The pool has a session of its own, and then that of the administrator.
    await rpc('pool_destroy', { pool: 'store2' })
    const after = (await interfaces()).trim().split('\n')
    expect([before.length - after.length, after.includes('mine')]).toEqual([1, true])
    await rpc('pool_create', { xml: iscsiXml('iscsi', 'store2', initiator) })
    expect(await volumes('store2')).toHaveLength(2)
    await rpc('pool_destroy', { pool: 'store2' })
    expect((await interfaces()).trim().split('\n')).toEqual(after)
    await inside(`${node} --logout`)
    const [{ path }] = (await volumes('store1')) as [Volume]
    await inside(`mkswap ${path} && swapon ${path}`)
    await expect(rpc('pool_destroy', { pool: 'store1' })).rejects.toThrow(
      /pool store1 cannot be stopped: .* is used by /,
    )
    await inside(`swapoff ${path}`)
  })

  it('scsi: the units of a host adapter', async () => {
    const host = (await inside('ls /sys/class/iscsi_host | head -1')).trim()
    const xml = `<pool type='scsi'><name>adapter</name><source><adapter type='scsi_host' name='${host}'/></source>
      <target><path>/dev</path></target></pool>`
    expect(await rpc('pool_find_sources', { type: 'scsi' })).toContain(
      `<adapter type='scsi_host' name='${host}'/>`,
    )
    await rpc('pool_create', { xml })
    const [first] = await volumes('adapter')
    expect(first!.path).toMatch(/^\/dev\/sd/)
    await rpc('pool_destroy', { pool: 'adapter' })
    for (const pool of ['store0', 'store1']) await rpc('pool_destroy', { pool })
    expect(await inside('ls /sys/class/iscsi_session')).toBe('')
  })

  it('iscsi-direct: the same units, without the kernel', async () => {
    await rpc('pool_create', { xml: iscsiXml('iscsi-direct', 'direct', INITIATORS[2]![0]) })
    expect(await volumes('direct')).toMatchObject([
      { path: `iscsi://127.0.0.1:3260/${TARGET}/1`, capacity: 40 * GIB },
      { path: `iscsi://127.0.0.1:3260/${TARGET}/2`, capacity: 60 * GIB },
    ])
    const volume = 'direct/unit:0:0:1'
    await rpc('volume_export', { volume, nbd: true, listen: ['127.0.0.1:0'] })
    expect(await rpc('volume_info', { volume })).toMatchObject({ bdev: 'direct-unit_0_0_1' })
    expect(JSON.stringify(await rpc('bdev_get_bdevs'))).not.toContain(PASSWORD)
    await rpc('volume_unexport', { volume })
  })

  it('netfs: a directory of an NFS server, by the document as people have it', async () => {
    await expect(rpc('pool_find_sources', { type: 'netfs', host: '192.168.159.144' })).rejects.toThrow(
      'A server of NFS 4 alone has nobody who answers that',
    )
    await inside(NFS)
    await inside(NFS_SERVE)
    expect(await rpc('pool_find_sources', { type: 'netfs', host: '192.168.159.144' })).toBe(`<sources>
  <source>
    <host name='192.168.159.144'/>
    <dir path='/mnt/packtStratisXF501'/>
    <format type='nfs'/>
  </source>
</sources>
`)
    const xml = `<pool type='netfs'>
  <name>NFSpool</name>
  <source>
    <host name='192.168.159.144'/>
    <dir path='/mnt/packtStratisXF501'/>
    <format type='auto'/>
  </source>
  <target>
    <path>/var/lib/libvirt/images/NFSpool</path>
    <permissions><mode>0755</mode><owner>0</owner><group>0</group><label>system_u:object_r:nfs_t:s0</label></permissions>
  </target>
</pool>`
    await rpc('pool_define', { xml })
    await rpc('pool_start', { pool: 'NFSpool', build: true })
    await rpc('volume_create', { pool: 'NFSpool', name: 'disk.img', capacity: '1G' })
    expect(await inside('ls /run/nfs-root/mnt/packtStratisXF501')).toBe('disk.img\n')
    expect(await inside('grep NFSpool /proc/mounts')).toContain('192.168.159.144:/mnt/packtStratisXF501')
    await rpc('pool_destroy', { pool: 'NFSpool' })
    expect(await inside('grep NFSpool /proc/mounts || true')).toBe('')
  })

  it('netfs: a server that goes in the middle of I/O keeps nobody from other pools, and is given up by force', async () => {
    await rpc('pool_start', { pool: 'NFSpool' })
    const { next } = await rpc<{ next: string }>('volume_export', {
      ...{ volume: 'NFSpool/disk.img', nbd: true, listen: ['127.0.0.1:0'] },
    })
    const write = (): GuestJob =>
      guest.start(
        `chroot /host/root qemu-io -f raw -c 'write -P 7 0 1M' -c flush ${/nbd:\/\/\S+/.exec(next)![0]}`,
      )
    await write().done
    await inside('echo 0 > /proc/fs/nfsd/threads')
    const waiting = write()
    const state = async (): Promise<unknown> =>
      (await rpc<{ state: string }>('pool_info', { pool: 'NFSpool' })).state
    await expect(rpc('pool_refresh', { pool: 'NFSpool' })).rejects.toThrow(
      'pool NFSpool is inaccessible: 192.168.159.144:/mnt/packtStratisXF501: no answer came',
    )
    expect(await state()).toBe('inaccessible')
    const xml = "<pool type='dir'><name>here</name><target><path>/run/here</path></target></pool>"
    await rpc('pool_create', { xml, build: true })
    await rpc('volume_create', { pool: 'here', name: 'near.img', capacity: '1M' })
    await settled(port, 'volume_delete', { volume: 'near.img' })
    await expect(rpc('pool_destroy', { pool: 'NFSpool' })).rejects.toThrow('--force')
    await inside(NFS_SERVE)
    await expect.poll(state, { timeout: 120_000 }).toBe('running')
    await rpc('pool_refresh', { pool: 'NFSpool' })
    expect((await waiting.done).stdout).toContain('wrote 1048576/1048576')

    await inside('echo 0 > /proc/fs/nfsd/threads')
    await rpc('pool_destroy', { pool: 'NFSpool', force: true })
    expect(await inside('grep NFSpool /proc/mounts || true')).toBe('')
    await rpc('volume_create', { pool: 'here', name: 'near.img', capacity: '1M' })
  })
})

/** A port of 127.0.0.1 that leads into the guest. */
async function forwardTo(guest: Guest, destination: string): Promise<number> {
  for (;;) {
    const port = await freePort()
    const forward = `hostfwd_add net0 tcp:127.0.0.1:${port}-${destination}`
    // What QEMU says is why not: somebody else has taken the port meanwhile.
    if ((await guest.qmp.execute('human-monitor-command', { 'command-line': forward })) === '') return port
  }
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise(resolve => server.close(resolve))
  return port
}
