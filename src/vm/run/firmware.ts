/**
 * UEFI for guests. Distributions describe their firmware in files of JSON (QEMU, docs/interop/firmware.json), which libvirt
 * chooses from as well: what it is, for which machines, and the template of the variables that each guest has a copy of.
 */
import { existsSync, statSync } from 'node:fs'
import { copyFile, mkdir, rename, rm } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import type { Host } from '../../host/host.ts'

export interface FlashFile {
  readonly path: string
  readonly format: string
}

/** `path`: the guest's own copy. */
export interface Variables extends FlashFile {
  readonly template: string
}

/** What QEMU starts the guest with: a plain file, or two parts of flash memory. */
export type Firmware =
  | { readonly kind: 'bios'; readonly path: string }
  | {
      readonly kind: 'flash'
      readonly code: FlashFile
      readonly variables: Variables
      /** Variables that only system management mode may change. */
      readonly needsSmm: boolean
    }

/** Later directories are overruled by files of the same name in earlier ones. */
const DIRECTORIES = ['/etc/qemu/firmware', '/usr/share/qemu/firmware']

const flashFile = z.object({ filename: z.string().startsWith('/'), format: z.enum(['raw', 'qcow2']) })
/** Those that have a copy of variables for each guest; there are other kinds, which guests here do not use. */
const description = z.object({
  'interface-types': z.array(z.string()),
  mapping: z.object({
    device: z.literal('flash'),
    mode: z.literal('split').default('split'),
    executable: flashFile,
    'nvram-template': flashFile,
  }),
  targets: z.array(z.object({ architecture: z.string(), machines: z.array(z.string()) })),
  features: z.array(z.string()),
})
type Description = z.output<typeof description>

/** QEMU's names behind the short ones that are typed. */
const MACHINES: Readonly<Record<string, string>> = { q35: 'pc-q35-', pc: 'pc-i440fx-', virt: 'virt-' }
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'x86_64', arm64: 'aarch64' }

/**
 * The firmware that `word` stands for: `uefi`, what the machine has; `uefi-secure`, with Secure Boot and the keys of Microsoft
 * enrolled; or a path. A path that nobody describes is QEMU's -bios.
 * @param variables where the guest's copy of the variables is, or is to be.
 * Throws `RpcError` ENOENT when there is none for the machine.
 */
export function findFirmware(
  word: string,
  { machine, variables, host }: { readonly machine: string; readonly variables: string; readonly host: Host },
): Firmware {
  const isPath = word.startsWith('/')
  const all = describedIn(host)
  const kind = all.filter(each => isOf(each, word))
  const found = isPath
    ? all.find(({ mapping }) => mapping.executable.filename === word)
    : kind.find(each => machinesOf(each, host.arch).some(pattern => matchesGlob(fullName(machine), pattern)))
  if (found !== undefined) return flashOf(found, variables)
  if (isPath) return { kind: 'bios', path: word }
  throw notFound(word, machine, [...new Set(kind.flatMap(each => machinesOf(each, host.arch)))])
}

function notFound(word: string, machine: string, others: readonly string[]): RpcError {
  const remedy =
    others.length > 0
      ? `it is for machines ${others.join(', ')}`
      : 'apt-get install ovmf (Debian; qemu-efi-aarch64 on ARM), dnf install edk2-ovmf (Fedora; edk2-aarch64), zypper install ' +
        'qemu-ovmf-x86_64 (SUSE; qemu-uefi-aarch64)'
  const where = DIRECTORIES.join(' and ')
  return new RpcError('ENOENT', `${where} describe no firmware ${word} for machine ${machine}: ${remedy}`)
}

/** In the order in which they are to be tried: by the names of the files. */
function describedIn(host: Host): Description[] {
  const names = new Set(DIRECTORIES.flatMap(directory => host.list(directory)))
  return [...names]
    .filter(name => name.endsWith('.json'))
    .sort()
    .flatMap(name => {
      const directory = DIRECTORIES.find(each => host.exists(`${each}/${name}`))
      const parsed = description.safeParse(parseJson(host.read(`${directory}/${name}`) ?? ''))
      return parsed.success ? [parsed.data] : []
    })
}

/** An empty file hides one that it overrules, and what is not understood is not used. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** Patterns of the machines that it is for. */
const machinesOf = ({ targets }: Description, arch: string): string[] =>
  targets.flatMap(({ architecture, machines }) => (architecture === ARCHITECTURES[arch] ? machines : []))

const fullName = (machine: string): string =>
  MACHINES[machine] === undefined ? machine : `${MACHINES[machine]}0`

const matchesGlob = (text: string, pattern: string): boolean => {
  const parts = pattern.split('*').map(part => part.replaceAll(/[.+?^${}()|[\]\\]/g, '\\$&'))
  return new RegExp(`^${parts.join('.*')}$`).test(text)
}

function isOf(each: Description, word: string): boolean {
  const has = (feature: string): boolean => each.features.includes(feature)
  if (!each['interface-types'].includes('uefi')) return false
  return word === 'uefi-secure'
    ? has('secure-boot') && has('enrolled-keys')
    : !has('requires-smm') && !has('enrolled-keys')
}

function flashOf({ mapping, features }: Description, variables: string): Firmware {
  const { executable, 'nvram-template': template } = mapping
  return {
    kind: 'flash',
    code: { path: executable.filename, format: executable.format },
    variables: { path: variables, format: template.format, template: template.filename },
    needsSmm: features.includes('requires-smm'),
  }
}

/**
 * Makes the guest's copy of the variables, unless it has one from an earlier start. Answers whether it has made one. Throws
 * `RpcError` EINVAL when that is of another firmware, which QEMU would not see.
 */
export async function makeVariables({ path, format, template }: Variables): Promise<boolean> {
  if (existsSync(path)) {
    const [has, needs] = [statSync(path).size, statSync(template).size]
    if (format !== 'raw' || has === needs) return false
    throw new RpcError(
      'EINVAL',
      `${path}, the variables of an earlier start, have ${has} bytes and are of another firmware: those of this one have ` +
        `${needs}. Name that firmware, or remove the file, and what the guest has set there goes`,
    )
  }
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  // Whoever finds it finds all of it.
  const temporary = `${dirname(path)}/.${basename(path)}.new`
  try {
    await copyFile(template, temporary)
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  return true
}
