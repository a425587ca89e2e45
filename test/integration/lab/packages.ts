/**
 * The programs that integration tests drive, and the Debian packages they come in.
 *
 * As root on Debian what is missing gets installed; elsewhere the tests that need it are skipped, and the name they
 * are skipped under holds the one command to type.
 */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { findProgram as findExecutable } from '../../../src/vm/lab/programs.ts'

const run = promisify(execFile)

/** Every program, module and firmware the tests may ask for, with its Debian 12 package. */
const PACKAGE_OF = {
  '60-edk2-x86_64.json': 'ovmf',
  apparmor_parser: 'apparmor',
  'block-rbd.so': 'qemu-block-extra',
  blkdiscard: 'util-linux',
  blkid: 'util-linux',
  blockdev: 'util-linux',
  bridge: 'iproute2',
  busybox: 'busybox-static',
  ceph: 'ceph-common',
  'ceph-authtool': 'ceph-common',
  'ceph-mgr': 'ceph-mgr',
  'ceph-mon': 'ceph-mon',
  'ceph-osd': 'ceph-osd',
  cmp: 'diffutils',
  dash: 'dash',
  e2fsck: 'e2fsprogs',
  fdisk: 'fdisk',
  exportfs: 'nfs-kernel-server',
  fio: 'fio',
  gluster: 'glusterfs-server',
  glusterd: 'glusterfs-server',
  ip: 'iproute2',
  iscsiadm: 'open-iscsi',
  losetup: 'mount',
  lvs: 'lvm2',
  'mkfs.ext4': 'e2fsprogs',
  libvirtd: 'libvirt-daemon',
  'libvirt_storage_backend_iscsi-direct.so': 'libvirt-daemon-driver-storage-iscsi-direct',
  'libvirt_storage_backend_rbd.so': 'libvirt-daemon-driver-storage-rbd',
  'libvirt_storage_backend_zfs.so': 'libvirt-daemon-driver-storage-zfs',
  'mkfs.btrfs': 'btrfs-progs',
  'mkfs.xfs': 'xfsprogs',
  lsblk: 'util-linux',
  lspci: 'pciutils',
  monmaptool: 'ceph-base',
  mount: 'mount',
  'mount.glusterfs': 'glusterfs-client',
  nbdcopy: 'libnbd-bin',
  nbdinfo: 'libnbd-bin',
  nbdkit: 'nbdkit',
  nvme: 'nvme-cli',
  nsenter: 'util-linux',
  prlimit: 'util-linux',
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  'qemu-storage-daemon': 'qemu-system-common',
  'qemu-system-x86_64': 'qemu-system-x86',
  rados: 'ceph-common',
  rbd: 'ceph-common',
  setpriv: 'util-linux',
  sfdisk: 'fdisk',
  sg_inq: 'sg3-utils',
  sg_luns: 'sg3-utils',
  sg_modes: 'sg3-utils',
  sg_opcodes: 'sg3-utils',
  sg_persist: 'sg3-utils',
  sg_raw: 'sg3-utils',
  sg_readcap: 'sg3-utils',
  sg_requests: 'sg3-utils',
  sg_reset: 'sg3-utils',
  sg_start: 'sg3-utils',
  sg_sync: 'sg3-utils',
  sg_turs: 'sg3-utils',
  sg_unmap: 'sg3-utils',
  sg_vpd: 'sg3-utils',
  sg_write_same: 'sg3-utils',
  stdbuf: 'coreutils',
  strace: 'strace',
  tc: 'iproute2',
  thin_check: 'thin-provisioning-tools',
  tgtadm: 'tgt',
  tgtd: 'tgt',
  umount: 'mount',
  unshare: 'util-linux',
  virsh: 'libvirt-clients',
  xfs_repair: 'xfsprogs',
  xz: 'xz-utils',
} as const

export type Program = keyof typeof PACKAGE_OF

/** All of them: what the runner installs before the first test. */
export const ALL_PROGRAMS = Object.keys(PACKAGE_OF) as Program[]

/** What a guest takes: its machine, what builds its disk, and what is copied onto it. */
export const GUEST_PROGRAMS = [
  'qemu-system-x86_64',
  'setpriv',
  'xz',
  'busybox',
  // busybox has one that compares byte by byte, which takes seconds under emulation.
  'cmp',
  'dash',
  'nvme',
  'fio',
  'ip',
  'tc',
  'mount',
  'umount',
  'lsblk',
  'blkdiscard',
  'blockdev',
  'mkfs.ext4',
  'e2fsck',
  'mkfs.xfs',
  'xfs_repair',
  'sg_inq',
  'sg_luns',
  'sg_modes',
  'sg_opcodes',
  'sg_persist',
  'sg_raw',
  'sg_readcap',
  'sg_requests',
  'sg_reset',
  'sg_start',
  'sg_sync',
  'sg_turs',
  'sg_unmap',
  'sg_vpd',
  'sg_write_same',
] as const satisfies Program[]

/** Where QEMU and libvirt look for their modules. */
const MODULE_DIRECTORIES = [
  '/usr/lib/x86_64-linux-gnu/qemu',
  '/usr/lib/aarch64-linux-gnu/qemu',
  '/usr/lib64/qemu-kvm',
  '/usr/lib/x86_64-linux-gnu/libvirt/storage-backend',
  '/usr/lib/aarch64-linux-gnu/libvirt/storage-backend',
  '/usr/lib64/libvirt/storage-backend',
]

/** Where distributions describe firmware for QEMU. */
const FIRMWARE_DIRECTORY = '/usr/share/qemu/firmware'

/** Where a program is, a module of QEMU's or libvirt's (`.so`), a firmware's description (`.json`), or undefined when it is not installed. */
export function findProgram(program: string): string | undefined {
  if (program.endsWith('.so')) {
    return MODULE_DIRECTORIES.map(directory => join(directory, program)).find(existsSync)
  }
  if (program.endsWith('.json')) return [join(FIRMWARE_DIRECTORY, program)].find(existsSync)
  return findExecutable(program)
}

/**
 * Installs what is missing, when this process may.
 * @returns why tests that need these programs cannot run, or undefined when they can.
 */
export async function needs(...programs: readonly Program[]): Promise<string | undefined> {
  let packages = missingPackages(programs)
  if (packages.length > 0 && process.getuid?.() === 0 && findProgram('apt-get') !== undefined) {
    await aptInstall(packages)
    packages = missingPackages(programs)
  }
  return packages.length === 0
    ? undefined
    : `needs: apt-get install --no-install-recommends ${packages.join(' ')}`
}

/** What the runner calls before all tests, so that no test waits for apt and two never compete for its lock. */
export function installMissing(): Promise<string | undefined> {
  return needs(...ALL_PROGRAMS)
}

function missingPackages(programs: readonly Program[]): string[] {
  const missing = programs.filter(program => findProgram(program) === undefined)
  return [...new Set(missing.map(program => PACKAGE_OF[program]))].sort()
}

async function aptInstall(packages: readonly string[]): Promise<void> {
  await aptGet('update')
  await aptGet('install', '--yes', '--no-install-recommends', ...packages)
}

/** Runs apt-get without questions; waits for another apt or dpkg to finish rather than failing on its lock. */
export async function aptGet(...args: readonly string[]): Promise<void> {
  const options = ['-q', '-o', 'DPkg::Lock::Timeout=600', '-o', 'Acquire::Retries=3']
  await run('apt-get', [...options, ...args], {
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    maxBuffer: 1 << 26,
  })
}
