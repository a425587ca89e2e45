/** What guests need besides KVM: devices, control groups, an IOMMU, programs, and what guards them. */
import { runProgram } from '../../core/program.ts'
import type { Check } from '../finding.ts'
import type { Host } from '../host.ts'

export const vhostNet: Check = host => {
  const check = '/dev/vhost-net'
  if (host.exists('/dev/vhost-net')) return { check, level: 'pass', found: 'is there' }
  return {
    check,
    level: 'warn',
    found: 'is not there: packets of guests go through QEMU, which is slower',
    remedy: moduleRemedy(host, 'vhost_net'),
  }
}

export const tun: Check = host => {
  const check = '/dev/net/tun'
  if (host.exists('/dev/net/tun')) return { check, level: 'pass', found: 'is there' }
  return {
    check,
    level: 'fail',
    found: 'is not there: guests have no network but the one inside QEMU',
    remedy: moduleRemedy(host, 'tun'),
  }
}

const moduleRemedy = (host: Host, module: string): string =>
  host.moduleState(module) === 'loadable'
    ? `modprobe ${module}, and its name in /etc/modules-load.d/qpair.conf`
    : `Linux ${host.kernelRelease} here has no module ${module}: install the kernel package that has it (linux-modules-extra)`

/** Limits and accounting of guests, by the kernel's own names. */
export const CGROUP_CONTROLLERS = ['memory', 'cpu', 'cpuacct', 'cpuset', 'devices', 'blkio'] as const

/** What version 2 calls them. Of devices and of processor time every group has what it needs, without a controller. */
const IN_VERSION_2: Readonly<Record<string, string | null>> = { cpuacct: null, devices: null, blkio: 'io' }

export const cgroupController =
  (name: (typeof CGROUP_CONTROLLERS)[number]): Check =>
  host => {
    const check = `cgroup ${name}`
    const unified = host.read('/sys/fs/cgroup/cgroup.controllers')?.split(' ')
    const inVersion2 = IN_VERSION_2[name] === undefined ? name : IN_VERSION_2[name]
    if (unified !== undefined && (inVersion2 === null || unified.includes(inVersion2))) {
      return { check, level: 'pass', found: 'version 2' }
    }
    // Version 1 lists what is mounted: `4:memory:/`, `5:cpu,cpuacct:/`.
    const mounted = (host.read('/proc/self/cgroup') ?? '')
      .split('\n')
      .flatMap(line => line.split(':')[1]?.split(',') ?? [])
    if (mounted.includes(name)) return { check, level: 'pass', found: 'version 1' }
    return {
      check,
      level: 'warn',
      found: 'not there: libvirt cannot limit or account it',
      remedy:
        name === 'memory'
          ? 'cgroup_enable=memory on the kernel command line'
          : `a kernel with the controller ${inVersion2 ?? name}, mounted below /sys/fs/cgroup`,
    }
  }

/** Tables of the firmware that tell of an IOMMU, and what switches it on. */
const IOMMU_TABLES = [
  { table: 'DMAR', name: 'Intel VT-d', remedy: 'intel_iommu=on on the kernel command line' },
  { table: 'IVRS', name: 'AMD-Vi', remedy: 'amd_iommu=on on the kernel command line' },
  { table: 'IORT', name: 'SMMU', remedy: 'a kernel with CONFIG_ARM_SMMU_V3' },
] as const

/** Without one no physical device, and no SR-IOV function, can be given to a guest. */
export const iommu: Check = host => {
  const check = 'IOMMU'
  const groups = host.list('/sys/kernel/iommu_groups').length
  if (groups > 0) return { check, level: 'pass', found: `on, ${groups} groups of devices` }
  const present = IOMMU_TABLES.find(({ table }) => host.exists(`/sys/firmware/acpi/tables/${table}`))
  if (present !== undefined) {
    return { check, level: 'warn', found: `${present.name} is there and off`, remedy: present.remedy }
  }
  return {
    check,
    level: 'warn',
    found: 'none found: physical devices cannot be given to guests',
    remedy: 'switch on VT-d or AMD-Vi in the firmware; disks of qpair do not need it',
  }
}

/** QEMU's name of an architecture that Node calls otherwise. */
const QEMU_ARCH: Readonly<Record<string, string>> = { x64: 'x86_64', arm64: 'aarch64', ia32: 'i386' }
const QEMU_MIN = 6

export const qemu: Check = async host => {
  const check = 'QEMU'
  const name = `qemu-system-${QEMU_ARCH[host.arch] ?? host.arch}`
  const path = host.program(name) ?? host.program('qemu-kvm')
  if (path === undefined) {
    return {
      check,
      level: 'warn',
      found: `no ${name}`,
      remedy:
        'apt-get install qemu-system-x86 (Debian), dnf install qemu-kvm (Fedora), zypper install qemu-x86 (SUSE)',
    }
  }
  const said = await runProgram(host.path(path), ['--version']).catch((error: Error) => error)
  if (said instanceof Error) return { check, level: 'fail', found: said.message, remedy: 'install it anew' }
  const version = /version (\d+)\.(\d+)/.exec(said)
  const found = `${path} ${version?.slice(1).join('.') ?? 'of an unknown version'}`
  if (version !== null && Number(version[1]) < QEMU_MIN) {
    return {
      check,
      level: 'warn',
      found,
      remedy: `version ${QEMU_MIN}.0 or later for disks that survive a restart of the daemon`,
    }
  }
  return { check, level: 'pass', found }
}

const LIBVIRT_SOCKETS = ['/run/libvirt/virtqemud-sock', '/run/libvirt/libvirt-sock']

export const libvirt: Check = host => {
  const check = 'libvirt'
  const socket = LIBVIRT_SOCKETS.find(path => host.exists(path))
  if (socket !== undefined) return { check, level: 'pass', found: `answers at ${socket}` }
  if (host.program('virsh') === undefined) {
    return {
      check,
      level: 'note',
      found: 'not installed; `qpair vm run` does without it',
      remedy: 'apt-get install libvirt-daemon-system libvirt-clients (or dnf, zypper: libvirt)',
    }
  }
  return {
    check,
    level: 'note',
    found: 'not running',
    remedy: 'systemctl enable --now virtqemud.socket (or libvirtd)',
  }
}

/** Both stay on: `qpair vm attach` says what they refuse, and the rule that allows just that. */
export const confinement: Check = host => {
  const check = 'confinement of guests'
  const selinux = host.read('/sys/fs/selinux/enforce')
  if (selinux !== undefined) {
    return { check, level: 'pass', found: `SELinux, ${selinux === '1' ? 'enforcing' : 'permissive'}` }
  }
  if (host.read('/sys/module/apparmor/parameters/enabled') === 'Y') {
    return { check, level: 'pass', found: 'AppArmor' }
  }
  return {
    check,
    level: 'note',
    found: 'neither AppArmor nor SELinux: a guest that breaks out of QEMU is not held',
  }
}
