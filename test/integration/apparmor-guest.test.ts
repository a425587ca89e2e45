/**
 * Guests of a libvirt that confines them with AppArmor: in a guest with Debian's kernel, which runs this machine's programs and
 * the daemon on a copy of this machine's files, with Debian's profiles. What the kernel refuses is seen in its log.
 */
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { call } from './lab/json-rpc.ts'
import { eventually } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { unpackedPackage } from './lab/unpacked-package.ts'

const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url))
const URI = 'qemu:///system'
const RULES = '/etc/apparmor.d/local/abstractions/libvirt-qemu'

/**
 * The root of what follows is this machine's, read only, below a layer in memory. It is the root of a name space: AppArmor's
 * paths begin there, and not where a process was put by chroot.
 */
const ENTER = `
mkdir -p /host/lower /host/top
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 machine /host/lower
mount -t tmpfs -o size=75% none /host/top
mkdir /host/top/upper /host/top/scratch /host/root
mount -t overlay -o lowerdir=/host/lower,upperdir=/host/top/upper,workdir=/host/top/scratch none /host/root
for name in dev proc sys; do mount --rbind /$name /host/root/$name; done
mount -t securityfs none /host/root/sys/kernel/security
for name in run tmp; do mount -t tmpfs none /host/root/$name; done
# Wherever it is, also below /tmp.
mkdir -p /host/root${REPOSITORY} /host/root/run/former
mount --bind /host/lower${REPOSITORY} /host/root${REPOSITORY}
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
cat > /run/enter <<'END'
cd /host/root
pivot_root . run/former
cd /
umount -l /run/former
touch /run/entered
exec sleep infinity
END
`

/** Debian's profiles and user, and a libvirt that confines itself and its guests with them. */
const confine = (profiles: string): string => `
cp -r ${profiles}/etc/apparmor.d/. /etc/apparmor.d/
mkdir -p /etc/apparmor.d/local/abstractions
touch ${RULES} /etc/apparmor.d/local/usr.sbin.libvirtd /etc/apparmor.d/local/usr.lib.libvirt.virt-aa-helper
getent group libvirt-qemu > /dev/null || groupadd -g 64055 libvirt-qemu
getent passwd libvirt-qemu > /dev/null || useradd -u 64055 -g libvirt-qemu -d /var/lib/libvirt libvirt-qemu
mkdir -p /etc/libvirt /var/lib/libvirt/qemu /var/cache/libvirt/qemu /var/log/libvirt/qemu /run/qpair
cat > /etc/libvirt/qemu.conf <<END
security_driver = "apparmor"
stdio_handler = "file"
END
apparmor_parser -r /etc/apparmor.d/usr.lib.libvirt.virt-aa-helper /etc/apparmor.d/usr.sbin.libvirtd
# The machine's own is below it.
mkdir -p /srv
mount -t tmpfs srv /srv
mkdir /srv/images
ln -s /srv/images /srv/link
truncate -s 1M /srv/images/nvme.raw /srv/images/next.raw
qemu-img create -q -f qcow2 /srv/images/base.qcow2 1M
qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 /srv/images/clone.qcow2
chown -R libvirt-qemu:libvirt-qemu /srv/images
`

/** It has nothing to boot: disks are opened when they are attached, which is all that is asked of it. */
const DOMAIN = `<domain type='qemu'>
  <name>lab</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='2' model='pcie-root-port'/>
    <controller type='pci' index='3' model='pcie-root-port'/>
    <controller type='pci' index='4' model='pcie-root-port'/>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>`

const PROGRAMS = [...GUEST_PROGRAMS, 'libvirtd', 'virsh', 'qemu-img', 'apparmor_parser'] as const

await describeWith(PROGRAMS, 'guests that AppArmor confines', () => {
  let guest: Guest
  let port: number
  let uuid: string

  const inside = async (command: string): Promise<string> => {
    // A file, as the command has quotes of its own.
    const script = `cat > /host/root/run/script <<'LAST-LINE'\n${command}\nLAST-LINE\n`
    const enter = 'nsenter -m -t $(cat /run/entered-by) -r -w /bin/sh -e /run/script'
    return (await guest.run(script + enter)).stdout
  }
  const virsh = (words: string): Promise<string> => inside(`virsh -c ${URI} ${words}`)
  const attach = (volume: string, change: object): Promise<Record<string, unknown>> =>
    call(port, 'vm_attach', { domain: 'lab', volume, uri: URI, ...change })
  const rules = (): Promise<string> => inside(`cat ${RULES}`)
  /** What QEMU has been refused so far. The kernel tells it a moment after it was refused. */
  const denied = async (): Promise<string[]> => {
    const { stdout } = await guest.run('dmesg')
    const lines = stdout.matchAll(/apparmor="DENIED".* profile="libvirt-.*" name="([^"]*)"/g)
    return [...lines].map(([, name]) => name!)
  }

  beforeAll(async () => {
    const profiles = await unpackedPackage('libvirt-daemon-system')
    guest = await bootGuest({
      memoryMiB: 2048,
      modules: ['9p', '9pnet_virtio'],
      extraArgs: [
        '-virtfs',
        'local,path=/,mount_tag=machine,security_model=none,readonly=on,multidevs=remap',
      ],
    })
    await guest.run(ENTER)
    guest.start('echo $$ > /run/entered-by; exec unshare -m /bin/sh -e /run/enter')
    await guest.waitFor('[ -e /host/root/run/entered ]')
    await inside(confine(profiles))
    await inside('setsid libvirtd > /run/libvirtd.log 2>&1 < /dev/null &')
    port = await guest.forward(5260)
    const serve = `${process.execPath} ${REPOSITORY}/bin/qpair.js serve -r 10.0.2.15:5260 --state /run/state`
    await inside(`cd /run/qpair; setsid ${serve} > /run/daemon 2>&1 < /dev/null &`)
    await inside(`until virsh -c ${URI} version > /dev/null 2>&1; do sleep 0.2; done`)
    await inside(`cat > /run/lab.xml <<'END'\n${DOMAIN}\nEND\n`)
    await virsh('define /run/lab.xml')
    uuid = (await virsh('domuuid lab')).trim()
    await inside('until grep -q "serves RPC" /run/daemon; do sleep 0.2; done')
  })
  afterAll(async () => {
    await guest?.stop()
  })

  it('start with a disk in the arguments of QEMU, when there is a rule for it', async () => {
    const before = await virsh('dumpxml --inactive lab')
    const next = { bus: 'nvme', config: true }
    await expect(attach('/srv/images/next.raw', next)).rejects.toThrow(
      `the guest could not open /srv/images/next.raw: AppArmor: the profile of the guest's QEMU has no rule for ` +
        '/srv/images/next.raw, since libvirt does not know of it. As root: ' +
        `echo '  "/srv/images/next.raw" rwk, # qpair' >> ${RULES}. --fix does that`,
    )
    expect(await virsh('dumpxml --inactive lab')).toBe(before)
    expect(await rules()).toBe('')

    await attach('/srv/images/next.raw', { ...next, fix: true })
    expect(await rules()).toBe('  "/srv/images/next.raw" rwk, # qpair\n')
    await virsh('start lab')
    const profile = await inside('cat /proc/$(pidof qemu-system-x86_64)/attr/current')
    expect(profile.trim()).toBe(`libvirt-${uuid} (enforce)`)
    expect(await denied()).toEqual([])
  })

  it('are refused what their profile has no rule for while they run, and have it with the rule', async () => {
    const open = JSON.stringify({
      execute: 'blockdev-add',
      arguments: { driver: 'file', 'node-name': 'n', filename: '/srv/link/nvme.raw' },
    })
    expect(await virsh(`qemu-monitor-command lab '${open}'`)).toContain('Permission denied')
    await eventually(denied).toEqual(['/srv/images/nvme.raw'])
    await attach('/srv/link/nvme.raw', { bus: 'nvme', live: true, fix: true })
    expect(await rules()).toContain('\n  "/srv/images/nvme.raw" rwk, # qpair\n')
    expect(await denied()).toHaveLength(1)
  })

  it('connect to the sockets of the daemon, for which this kernel asks for no rule', async () => {
    await call(port, 'bdev_malloc_create', { name: 'm0', num_blocks: 2048, block_size: 512 })
    await attach('m0', { live: true })
    expect(await virsh('domblklist lab')).toContain('lab-vda')
    expect(await rules()).not.toContain('lab-vda')
    expect(await denied()).toHaveLength(1)
  })

  it('are not given by --fix what an image names as underneath it, but by the administrator', async () => {
    const image = { format: 'qcow2', bus: 'nvme', live: true, fix: true }
    await expect(attach('/srv/images/clone.qcow2', image)).rejects.toThrow(
      /the guest could not open \/srv\/images\/base.qcow2: .* echo ' {2}"\/srv\/images\/base.qcow2" rk, .* --fix leaves it as it is/,
    )
    expect(await rules()).not.toContain('qcow2')
    // A broader rule, which the profile of the guest that runs has not yet.
    await inside(`echo '  /srv/images/*.qcow2 rwk,' >> ${RULES}`)
    await attach('/srv/images/clone.qcow2', { ...image, fix: false })
    expect(await denied()).toHaveLength(1)
  })

  it('lose the rule with the disk', async () => {
    await virsh('destroy lab')
    await call(port, 'vm_detach', { domain: 'lab', disk: '/srv/images/next.raw', uri: URI, config: true })
    expect(await rules()).not.toContain('next.raw')
    expect(await rules()).toContain('nvme.raw')
  })
})
