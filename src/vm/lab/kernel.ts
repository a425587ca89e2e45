/** A Linux kernel with its modules, for guests: the machine's own, or Debian's package, unpacked and never installed. */
import { execFile } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { findProgram } from './programs.ts'

const run = promisify(execFile)

/** A kernel's image, and the tree of its modules: `/lib/modules/VERSION`. */
export interface Kernel {
  readonly image: string
  readonly modules: string
}

/** The machine's own kernels, the one that runs first, the others from the newest on; those without modules are none. */
export function installedKernels(root = '/'): Kernel[] {
  const running = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim()
  const versions = namesIn(join(root, 'lib/modules')).sort((a, b) =>
    b.localeCompare(a, 'en', { numeric: true }),
  )
  return [
    ...versions.filter(version => version === running),
    ...versions.filter(version => version !== running),
  ]
    .map(version => ({ image: imageOf(root, version), modules: join(root, 'lib/modules', version) }))
    .filter(({ image, modules }) => existsSync(image) && existsSync(join(modules, 'kernel')))
}

/** Debian and SUSE have it in /boot, Fedora beside its modules. */
function imageOf(root: string, version: string): string {
  const image = join(root, 'boot', `vmlinuz-${version}`)
  return existsSync(image) ? image : join(root, 'lib/modules', version, 'vmlinuz')
}

function namesIn(directory: string): string[] {
  return existsSync(directory) ? readdirSync(directory) : []
}

/**
 * The newest kernel package of Debian's in the cache, or else downloaded, after `willDownload` was called. Throws when apt has
 * none, or there is no apt.
 */
export async function debianKernel(
  cache: string,
  update: () => Promise<void>,
  willDownload: () => void = () => {},
): Promise<Kernel> {
  mkdirSync(cache, { recursive: true })
  const [cached] = readdirSync(cache)
    .filter(name => name.startsWith('linux-image-'))
    .sort()
    .reverse()
  if (cached === undefined) willDownload()
  const home = cached === undefined ? await downloadKernel(cache, update) : join(cache, cached)
  const version = readdirSync(join(home, 'lib/modules'))[0]!
  return { image: join(home, `boot/vmlinuz-${version}`), modules: join(home, 'lib/modules', version) }
}

async function downloadKernel(cache: string, update: () => Promise<void>): Promise<string> {
  let packageName = await kernelPackage()
  if (packageName === undefined) {
    await update()
    packageName = await kernelPackage()
  }
  if (packageName === undefined)
    throw new Error('apt knows no package linux-image-amd64: is this Debian on amd64?')
  const home = join(cache, packageName)
  await publish(home, cache, async building => {
    // apt downloads as root what only root may write to; its own user would be refused below other directories.
    await run('apt-get', ['-q', '-o', 'APT::Sandbox::User=root', 'download', packageName], { cwd: building })
    const archive = readdirSync(building)[0]!
    await run('dpkg', ['-x', archive, '.'], { cwd: building })
    rmSync(join(building, archive))
  })
  return home
}

/** The package that `linux-image-amd64` stands for today. */
async function kernelPackage(): Promise<string | undefined> {
  const { stdout } = await run('apt-cache', ['depends', 'linux-image-amd64']).catch(() => ({ stdout: '' }))
  return /Depends: (linux-image-\S+)/.exec(stdout)?.[1]
}

/** Builds a directory under another name and renames it, so that nobody ever sees half of one. */
export async function publish(
  home: string,
  cache: string,
  build: (building: string) => Promise<void>,
): Promise<void> {
  const building = mkdtempSync(join(cache, 'building-'))
  try {
    await build(building)
    if (!existsSync(home)) renameSync(building, home)
  } catch (error) {
    // Another process may have been faster, and a directory with something in it is never replaced.
    if (!existsSync(home)) throw error
  } finally {
    rmSync(building, { recursive: true, force: true })
  }
}

/** How xz archives begin. */
const XZ_MAGIC = Buffer.from('fd377a585a00', 'hex')

/**
 * Unpacks the kernel out of its self-extracting image, where the boot protocol's header says that it lies
 * (Documentation/x86/boot.rst): under emulation unpacking it would take half of the boot. The last four bytes of the
 * payload are its unpacked size, not part of the archive. Answers false when it is packed by something else than xz.
 */
export async function unpackVmlinux(vmlinuz: string, vmlinux: string): Promise<boolean> {
  const image = readFileSync(vmlinuz)
  if (image.length < 0x250 || image.toString('latin1', 0x202, 0x206) !== 'HdrS') return false
  const setupSectors = image[0x1f1]! === 0 ? 4 : image[0x1f1]!
  const start = (setupSectors + 1) * 512 + image.readUInt32LE(0x248)
  const payload = image.subarray(start, start + image.readUInt32LE(0x24c) - 4)
  const xz = findProgram('xz')
  if (!payload.subarray(0, XZ_MAGIC.length).equals(XZ_MAGIC) || xz === undefined) return false
  const archive = `${vmlinux}.xz`
  writeFileSync(archive, payload)
  await run(xz, ['-d', archive])
  return true
}
