/**
 * What a guest boots from: Debian's kernel, a first file system of a few modules, and a disk with programs.
 *
 *   kernel      the uncompressed image out of vmlinuz: under emulation unpacking it would take half of the boot
 *   initramfs   busybox and the modules that mount the disk
 *   disk        ext4, read-only, shared by all guests: programs with their libraries, and more modules
 *
 * All is built from installed programs and the kernel's package, which is unpacked and never installed. The result
 * is kept below node_modules/.cache, under a name that depends on everything it is made of.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { cpio, directory, file } from '../../../src/vm/lab/cpio.ts'
import { debianKernel, type Kernel, publish, unpackVmlinux } from '../../../src/vm/lab/kernel.ts'
import { ModuleTree } from '../../../src/vm/lab/modules.ts'
import { merged, sharedLibraries } from '../../../src/vm/lab/programs.ts'
import { aptGet, findProgram, GUEST_PROGRAMS, needs } from './packages.ts'

const run = promisify(execFile)

const CACHE = fileURLToPath(new URL('../../../node_modules/.cache/qpair-lab/', import.meta.url))
const GUEST_FILES = fileURLToPath(new URL('guest-files/', import.meta.url))

/** This file: what it builds changes with it. */
const SELF = fileURLToPath(import.meta.url)

/** What the first file system needs to mount the disk. ext4 asks for its checksum by name, hence crc32c_generic. */
const BOOT_MODULES = ['virtio_pci', 'virtio_blk', 'crc32c_generic', 'ext4', 'overlay']

/** What the disk carries, each with its dependencies. */
const DISK_MODULES = [
  ...['virtio_console', 'virtio_net', 'virtio_scsi', 'virtio_balloon', 'sd_mod', 'sr_mod', 'sg'],
  ...['configfs', 'nvme', 'nvme-tcp', 'nvmet', 'nvmet-tcp'],
  ...['nbd', 'iscsi_tcp', 'loop', 'brd', 'null_blk', 'dm-mod', 'dm-snapshot', 'dm-thin-pool', 'dm-crypt'],
  ...[
    '9p',
    '9pnet_virtio',
    'nfsd',
    'nfsv4',
    'dm-multipath',
    'dm-round-robin',
    'iscsi_target_mod',
    'target_core_file',
    'md5',
  ],
  ...['xfs', 'btrfs', 'vfat', 'nls_ascii', 'nls_cp437'],
  ...['crc32c_generic', 'crct10dif_generic', 'crc64_rocksoft_generic', 'sch_netem', 'sch_tbf'],
]

/** What is copied onto the disk: all that a guest takes but what only the machine around it runs. */
const PROGRAMS = GUEST_PROGRAMS.filter(program => !['qemu-system-x86_64', 'setpriv', 'xz'].includes(program))

export interface BootFiles {
  readonly kernel: string
  readonly initramfs: string
  readonly disk: string
  /** The kernel's version, for example `6.1.0-56-amd64`. */
  readonly version: string
}

let bootFilesOnce: Promise<BootFiles> | undefined

/** The boot files, from the cache or built now. Safe to call from several processes at once. */
export function bootFiles(): Promise<BootFiles> {
  bootFilesOnce ??= findOrBuild()
  return bootFilesOnce
}

/** Debian's kernel, from the cache or downloaded now. */
export const labKernel = (): Promise<Kernel> => debianKernel(CACHE, () => aptGet('update'))

async function findOrBuild(): Promise<BootFiles> {
  const reason = await needs(...GUEST_PROGRAMS)
  if (reason !== undefined) throw new Error(`a guest ${reason}`)
  const kernel = await labKernel()
  const version = basename(kernel.modules)
  const programs = PROGRAMS.map(program => findProgram(program)!)
  const libraries = await sharedLibraries(programs)
  const key = cacheKey(version, [...programs, ...libraries])
  const home = join(CACHE, `boot-${key}`)
  if (!existsSync(home)) {
    await publish(home, CACHE, async building => {
      await unpackVmlinux(kernel.image, join(building, 'vmlinux'))
      const modules = new ModuleTree(kernel.modules)
      writeFileSync(join(building, 'initramfs'), initramfs(modules))
      const root = join(building, 'root')
      stageRoot(root, [...programs, ...libraries])
      await stageModules(root, version, modules)
      await makeDisk(root, join(building, 'disk'))
      rmSync(root, { recursive: true })
    })
    removeStale()
  }
  return {
    kernel: join(home, 'vmlinux'),
    initramfs: join(home, 'initramfs'),
    disk: join(home, 'disk'),
    version,
  }
}

/** Removes boot files built more than a day ago: with every change of a program or of this file there are new ones. */
function removeStale(): void {
  const dayAgoMs = Date.now() - 24 * 3600 * 1000
  for (const path of readdirSync(CACHE).map(name => join(CACHE, name))) {
    if (basename(path).startsWith('boot-') && statSync(path).mtimeMs < dayAgoMs)
      rmSync(path, { recursive: true })
  }
}

function cacheKey(version: string, copied: readonly string[]): string {
  const hash = createHash('sha256')
  hash.update(version).update(readFileSync(SELF))
  for (const name of readdirSync(GUEST_FILES)) hash.update(name).update(readFileSync(join(GUEST_FILES, name)))
  for (const path of copied) {
    const { size, mtimeMs } = statSync(path)
    hash.update(`${path} ${size} ${mtimeMs}\n`)
  }
  return hash.digest('hex').slice(0, 16)
}

function initramfs(modules: ModuleTree): Buffer {
  const order = modules.closure(BOOT_MODULES)
  return cpio([
    ...['bin', 'dev', 'lower', 'modules', 'proc', 'root', 'writable'].map(directory),
    file('bin/busybox', readFileSync(findProgram('busybox')!)),
    file('init', readFileSync(join(GUEST_FILES, 'initramfs-init'))),
    file('modules.order', `${order.map(path => basename(path)).join('\n')}\n`),
    ...order.map(path => file(`modules/${basename(path)}`, modules.read(path))),
  ])
}

function stageRoot(root: string, copied: readonly string[]): void {
  for (const name of ['applets', 'dev', 'etc', 'lab', 'mnt', 'proc', 'root', 'run', 'sys', 'tmp', 'var']) {
    mkdirSync(join(root, name), { recursive: true })
  }
  for (const name of ['bin', 'lib', 'lib64', 'sbin']) {
    mkdirSync(join(root, 'usr', name), { recursive: true })
    symlinkSync(`usr/${name}`, join(root, name))
  }
  for (const path of copied) {
    const target = join(root, merged(path))
    mkdirSync(dirname(target), { recursive: true })
    copyFileSync(path, target)
  }
  for (const name of ['init', 'agent']) {
    writeFileSync(join(root, 'lab', name), readFileSync(join(GUEST_FILES, name)), { mode: 0o755 })
  }
  symlinkSync('dash', join(root, 'usr/bin/sh'))
  writeFileSync(join(root, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\n')
  writeFileSync(join(root, 'etc/group'), 'root:x:0:\n')
  symlinkSync('/proc/self/mounts', join(root, 'etc/mtab'))
}

async function stageModules(root: string, version: string, modules: ModuleTree): Promise<void> {
  const busybox = findProgram('busybox')!
  // The kernel asks for modules by running /sbin/modprobe, whatever the path of its processes is.
  symlinkSync('/usr/bin/busybox', join(root, 'usr/sbin/modprobe'))
  const { stdout } = await run(busybox, ['--list'])
  for (const applet of stdout.split('\n').filter(name => name !== '' && name !== 'busybox')) {
    symlinkSync('/usr/bin/busybox', join(root, 'applets', applet))
  }
  const home = join('lib/modules', version)
  for (const path of modules.closure(DISK_MODULES)) {
    mkdirSync(dirname(join(root, home, path)), { recursive: true })
    writeFileSync(join(root, home, path), modules.read(path))
  }
  await run(busybox, ['depmod', '-b', root, version])
}

async function makeDisk(root: string, disk: string): Promise<void> {
  const { stdout } = await run('du', ['-sk', root])
  // Room for the file system's own tables; nothing will ever be written to it.
  const sizeKib = Math.ceil(Number.parseInt(stdout, 10) * 1.1) + 16 * 1024
  const options = ['-q', '-F', '-b', '4096', '-O', '^has_journal', '-m', '0', '-d', root]
  await run(findProgram('mkfs.ext4')!, [...options, disk, `${sizeKib}k`])
}
