/** What the lab's guest boots from: a kernel, and one archive with all that it needs, made of programs of this machine. */
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, realpathSync, statSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { RpcError } from '../../core/errors.ts'
import { type CpioEntry, cpio, directory, file } from './cpio.ts'
import { INIT, LOAD, PATHS, RESIZE } from './guest-files.ts'
import { debianKernel, installedKernels, type Kernel, publish, unpackVmlinux } from './kernel.ts'
import { ModuleTree, moduleName } from './modules.ts'
import { findProgram, merged, sharedLibraries } from './programs.ts'

/** Those that make the lab what it is, with their packages of Debian, Fedora and SUSE. */
const PROGRAMS: Readonly<Record<string, readonly [debian: string, fedora: string, suse: string]>> = {
  busybox: ['busybox-static', 'busybox', 'busybox-static'],
  nvme: ['nvme-cli', 'nvme-cli', 'nvme-cli'],
  lspci: ['pciutils', 'pciutils', 'pciutils'],
  fdisk: ['fdisk', 'util-linux', 'util-linux'],
}

/** Those that come along where this machine has them. */
const MORE_PROGRAMS = ['lsblk', 'blkdiscard', 'blockdev', 'mkfs.ext4', 'mkfs.xfs', 'smartctl']

/** Names of vendors and devices, where distributions keep them. */
const PCI_IDS = ['/usr/share/misc/pci.ids', '/usr/share/hwdata/pci.ids']

/** In the order of need; what is built into the kernel has no module and is left out. */
const MODULES = [
  ...[
    'virtio_pci',
    'virtio_blk',
    'virtio_net',
    'virtio_scsi',
    'sd_mod',
    'nvme',
    'nvme-tcp',
    'button',
    'evdev',
  ],
  ...['crc32c_generic', 'crct10dif_generic', 'crc64_rocksoft_generic', 'ext4', 'xfs'],
]

export interface LabImage {
  readonly kernel: string
  readonly initrd: string
}

export interface LabImageOptions {
  /** `--kernel` and `--modules`; the machine's own, or Debian's, when undefined. */
  readonly kernel: Kernel | undefined
  /** An image that is packed is slow to start under emulation. */
  readonly isEmulated: boolean
  /** Where the archive is made. */
  readonly directory: string
  /** Where kernels stay for the next time. */
  readonly cache: string
  readonly say: (text: string) => void
}

export const defaultCache = (): string =>
  join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'qpair', 'lab')

/** Throws `RpcError` ENOENT that names what is missing and its packages. */
export async function labImage(options: LabImageOptions): Promise<LabImage> {
  const programs = requiredPrograms()
  const kernel = options.kernel ?? (await findKernel(options))
  const tree = new ModuleTree(kernel.modules)
  if (!tree.has('nvme') && !isBuiltIn(kernel, 'nvme')) {
    throw new RpcError(
      'ENOENT',
      `${kernel.modules} has no module nvme: name another kernel with --kernel and --modules`,
    )
  }
  const initrd = join(options.directory, 'initrd')
  writeFileSync(initrd, await archive(programs, tree))
  return { kernel: options.isEmulated ? await unpacked(kernel, options) : kernel.image, initrd }
}

function requiredPrograms(): string[] {
  const missing = Object.keys(PROGRAMS).filter(program => findProgram(program) === undefined)
  if (missing.length > 0) {
    const of = (column: 0 | 1 | 2): string =>
      [...new Set(missing.map(name => PROGRAMS[name]![column]))].join(' ')
    throw new RpcError(
      'ENOENT',
      `the lab's guest is made of programs of this machine, and it has no ${missing.join(', ')}: apt-get install ${of(0)} ` +
        `(Debian), dnf install ${of(1)} (Fedora), zypper install ${of(2)} (SUSE)`,
    )
  }
  return [...Object.keys(PROGRAMS), ...MORE_PROGRAMS].flatMap(name => findProgram(name) ?? [])
}

async function findKernel({ cache, say }: LabImageOptions): Promise<Kernel> {
  const own = installedKernels().find(
    kernel =>
      isReadable(kernel.image) && (new ModuleTree(kernel.modules).has('nvme') || isBuiltIn(kernel, 'nvme')),
  )
  if (own !== undefined) return own
  try {
    return await debianKernel(
      cache,
      async () => {
        await promisify(execFile)('apt-get', ['-q', 'update'])
      },
      () =>
        say(`this machine has no kernel with NVMe modules that can be read: Debian's goes to ${cache}, once`),
    )
  } catch (cause) {
    throw new RpcError(
      'ENOENT',
      `there is no kernel for the lab's guest: ${(cause as Error).message.split('\n')[0]}. Name one with --kernel PATH ` +
        '--modules DIR, DIR being /lib/modules/VERSION of that kernel',
      { cause },
    )
  }
}

/** What modules.builtin lists is part of the kernel. */
function isBuiltIn({ modules }: Kernel, name: string): boolean {
  const list = join(modules, 'modules.builtin')
  if (!existsSync(list)) return false
  return readFileSync(list, 'utf8')
    .split('\n')
    .some(path => moduleName(path) === name)
}

/** Ubuntu's kernels are for root only. */
function isReadable(path: string): boolean {
  try {
    readFileSync(path)
    return true
  } catch {
    // It is not for us, whatever the reason.
    return false
  }
}

/** The kernel out of its archive, made once; the packed one where that does not work. */
async function unpacked({ image }: Kernel, { cache }: LabImageOptions): Promise<string> {
  const { size, mtimeMs } = statSync(image)
  const home = join(cache, `unpacked-${basename(image)}-${size}-${Math.trunc(mtimeMs)}`)
  const vmlinux = join(home, 'vmlinux')
  if (!existsSync(home)) {
    mkdirSync(cache, { recursive: true })
    await publish(home, cache, async building => {
      await unpackVmlinux(image, join(building, 'vmlinux'))
    })
  }
  return existsSync(vmlinux) ? vmlinux : image
}

async function archive(programs: readonly string[], tree: ModuleTree): Promise<Buffer> {
  const copied = [...programs, ...(await sharedLibraries(programs))]
  const ids = PCI_IDS.find(existsSync)
  const order = tree.closure(MODULES)
  const files = new Map<string, CpioEntry>()
  const add = (path: string, content: string | Uint8Array): void => {
    files.set(path, file(path, content))
  }
  // The loader asks for libraries by the names that ldd tells, whatever links they are.
  for (const path of copied) add(merged(path).slice(1), readFileSync(realpathSync(path)))
  if (ids !== undefined) add('usr/share/misc/pci.ids', readFileSync(ids))
  add('usr/bin/busybox', readFileSync(findProgram('busybox')!))
  add('usr/bin/paths', PATHS)
  add('usr/bin/load', LOAD)
  add('usr/bin/resize', RESIZE)
  add('init', INIT)
  add('modules.order', order.map(path => `${moduleName(path)}.ko\n`).join(''))
  for (const path of order) add(`modules/${moduleName(path)}.ko`, tree.read(path))
  const links = ['bin', 'lib', 'lib64', 'sbin'].map(name => link(name, `usr/${name}`))
  const directories = new Set([...files.keys()].flatMap(parents))
  for (const name of ['bin', 'lib', 'lib64', 'sbin']) directories.add(`usr/${name}`)
  for (const name of ['usr', 'dev']) directories.add(name)
  return cpio([...[...directories].sort().map(directory), ...links, ...files.values()])
}

const link = (path: string, target: string): CpioEntry => ({
  path,
  mode: 0o120777,
  content: Buffer.from(target),
})

/** The directories above a relative path, outermost first. */
function parents(path: string): string[] {
  const parent = dirname(path)
  return parent === '.' ? [] : [...parents(parent), parent]
}
