/**
 * AppArmor: libvirt makes a profile for each guest from its document, anew at each start, with what stands in libvirt's own
 * elements. For the rest there is a file of this machine's own rules, which every guest's profile takes in.
 */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { RpcError } from '../../core/errors.ts'
import { ProgramError } from '../../core/program.ts'
import { realPath } from '../../core/real-path.ts'
import type { AccessParts, Guest, Need, Obstacle } from './access.ts'
import { commandLine, quoted } from './command-line.ts'

/** Behind each rule that is made here, so that it can be taken away again. */
const OURS = '# qpair'

/** The rule that is missing; undefined when there is one, or none is needed. */
export async function profileObstacle(
  { path, kind, isReadOnly, isKnownToLibvirt }: Need,
  guest: Guest,
  parts: AccessParts,
): Promise<Obstacle | undefined> {
  const { root } = parts
  if (isKnownToLibvirt || (kind === 'socket' && !(await mediatesSockets(root)))) return undefined
  const real = await realPath(path)
  const { local, rules } = await localRules(root)
  const rights = kind === 'socket' ? 'rw' : isReadOnly ? 'rk' : 'rwk'
  if (rules.split('\n').some(line => allows(line, real, rights))) return undefined
  const rule = `${pathInRule(real)} ${rights}, ${OURS}`
  const load = loading(guest, parts)
  return {
    cause: `AppArmor: the profile of the guest's QEMU has no rule for ${real}, since libvirt does not know of it`,
    remedy: [
      `echo ${quoted(`  ${rule}`)} >> ${quoted(local)}`,
      ...(load === undefined ? [] : [commandLine(load)]),
    ],
    fix: async () => {
      rewrite(local, now => `${now}${now === '' || now.endsWith('\n') ? '' : '\n'}  ${rule}\n`)
    },
    undo: () => withdrawRule(path, parts),
  }
}

/**
 * Has the guest that runs confined by the rules as they are now, with those that have been written since it started: libvirt does
 * the same with each disk that it plugs in. Throws `RpcError` EIO when they are wrong.
 */
export async function loadProfile(guest: Guest, parts: AccessParts): Promise<void> {
  const [program, ...args] = loading(guest, parts) ?? []
  // Others than root may not; what QEMU is refused then is told afterwards.
  if (program === undefined || process.getuid!() !== 0) return
  try {
    await parts.run(program, args)
  } catch (error) {
    if (!(error instanceof ProgramError)) throw error
    throw new RpcError('EIO', `AppArmor does not load the profile of the guest's QEMU: ${error.message}`, {
      cause: error,
    })
  }
}

/** The command that loads the profile anew; undefined for a guest that gets it when it starts. */
function loading({ uuid, isRunning }: Guest, { root }: AccessParts): readonly string[] | undefined {
  if (!isRunning || uuid === undefined) return undefined
  return ['apparmor_parser', '-r', join(root, 'etc/apparmor.d/libvirt', profileOf(uuid))]
}

/** Takes back the rule for what no guest has any more. It counts until a guest's profile is loaded anew, and harms nobody. */
export async function withdrawRule(path: string, { root }: AccessParts): Promise<void> {
  const own = `${pathInRule(await realPath(path))} `
  const { local, rules } = await localRules(root)
  const isOurs = (line: string): boolean => line.trim().startsWith(own) && line.endsWith(OURS)
  if (!rules.split('\n').some(isOurs)) return
  rewrite(local, now =>
    now
      .split('\n')
      .filter(line => !isOurs(line))
      .join('\n'),
  )
}

/**
 * The file is the administrator's too: he finds the old one or the new one, whenever this process is killed. Without a wait in
 * between, since other guests change it at the same time. A name with a dot in front is no rule to AppArmor.
 */
function rewrite(path: string, change: (text: string) => string): void {
  mkdirSync(dirname(path), { recursive: true })
  const isThere = existsSync(path)
  const file = isThere ? realpathSync(path) : path
  const temporary = join(dirname(file), `.${basename(file)}.new`)
  try {
    writeFileSync(temporary, change(isThere ? readFileSync(file, 'utf8') : ''))
    if (isThere) chmodSync(temporary, statSync(file).mode)
    renameSync(temporary, file)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
}

/**
 * What AppArmor has refused this guest's QEMU since a moment (seconds since 1970), by the kernel's log; undefined when that says
 * nothing of it, or is not for this process to read.
 */
export async function refusalSince(
  since: number,
  uuid: string | undefined,
  { run }: AccessParts,
): Promise<string | undefined> {
  if (uuid === undefined) return undefined
  const log = await run('dmesg', []).catch(() => '')
  const denied = log.split('\n').findLast(line => {
    const [, time] = /audit\((\d+\.\d+):/.exec(line) ?? []
    return (
      line.includes('apparmor="DENIED"') &&
      line.includes(`profile="${profileOf(uuid)}"`) &&
      Number(time) >= since
    )
  })
  // A name with blanks or quotes in it is in hexadecimal digits.
  const [, text, hex, mask] =
    / name=(?:"([^"]*)"|([0-9A-F]+)) .*denied_mask="([a-z]+)"/.exec(denied ?? '') ?? []
  if (mask === undefined) return undefined
  return `AppArmor has refused it ${text ?? Buffer.from(hex!, 'hex').toString()} (${mask})`
}

const profileOf = (uuid: string): string => `libvirt-${uuid}`

/**
 * Whether connecting to a socket's path may need a rule: with the kernels of Ubuntu, and since Linux 6.17 for policies of its new
 * ABI; not with Debian 12's (tried). Where rules are made for a fixed set of the kernel's abilities, as Debian does, it must be among
 * them.
 */
async function mediatesSockets(root: string): Promise<boolean> {
  const features = join(root, 'sys/kernel/security/apparmor/features')
  const classes = await list(features)
  // Without it nobody can tell, and a rule too many does no harm.
  if (classes.length === 0) return true
  const isAble = await Promise.all(
    classes
      .filter(name => name.startsWith('network'))
      .map(async name => (await list(join(features, name))).includes('af_unix')),
  )
  if (!isAble.includes(true)) return false
  const [, fixed] = /^policy-features=(\S+)/m.exec(await read(join(root, 'etc/apparmor/parser.conf'))) ?? []
  return fixed === undefined || /\baf_unix\b/.test(await read(join(root, fixed)))
}

const pathInRule = (path: string): string => `"${path.replaceAll(/["\\*?[\]{}^]/g, '\\$&')}"`

/** Whether a line is a rule by which QEMU may do all this with a path, whoever has written it. */
function allows(line: string, path: string, rights: string): boolean {
  const [, inQuotes, plain, granted] =
    /^\s*(?:"((?:[^"\\]|\\.)+)"|(\/\S*))\s+([a-zA-Z]+)\s*,/.exec(line) ?? []
  return (
    granted !== undefined &&
    [...rights].every(right => granted.includes(right)) &&
    matches(inQuotes ?? plain!, path)
  )
}

/** AppArmor's patterns (apparmor.d(5), globbing). One with a variable in it matches nothing here. */
function matches(pattern: string, path: string): boolean {
  let depth = 0
  const expression = pattern.replaceAll(/\\.|\*\*|[*?{},.+$()|@]/g, found => {
    if (found.startsWith('\\')) return found
    if (found === '}') depth--
    if (found === '{') depth++
    return WILDCARDS[found] ?? (found === ',' && depth > 0 ? '|' : `\\${found}`)
  })
  try {
    return new RegExp(`^${expression}$`).test(path)
  } catch {
    // It is no pattern, of which AppArmor itself will complain.
    return false
  }
}

const WILDCARDS: Readonly<Record<string, string>> = {
  '**': '.*',
  '*': '[^/]*',
  '?': '[^/]',
  '{': '(?:',
  '}': ')',
}

/** Where the profiles of guests look for rules of this machine: Debian's libvirt has a file for it, newer ones a directory. */
async function localRules(root: string): Promise<{ local: string; rules: string }> {
  const directory = join(root, 'etc/apparmor.d')
  const abstraction = await read(join(directory, 'abstractions/libvirt-qemu'))
  const isDirectory = abstraction.includes('abstractions/libvirt-qemu.d')
  const isFile = abstraction.includes('local/abstractions/libvirt-qemu')
  const name =
    isDirectory && !isFile ? 'abstractions/libvirt-qemu.d/qpair' : 'local/abstractions/libvirt-qemu'
  const local = join(directory, name)
  return { local, rules: await read(local) }
}

const read = (path: string): Promise<string> => readFile(path, 'utf8').catch(() => '')
const list = (path: string): Promise<string[]> => readdir(path).catch(() => [])
