/**
 * Whether the guest's QEMU may open what it is given. What libvirt gives to QEMU it labels and hands over itself; of what stands in
 * QEMU's own arguments, and of sockets of network disks, it knows nothing, and the host refuses them. Here the cause is found
 * before the guest meets it, with the least that has to be changed.
 */
import { constants } from 'node:fs'
import { access, appendFile, mkdir, readFile, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { ProgramError } from '../../core/program.ts'
import type { Confinement, RunProgram } from '../../libvirt/virsh.ts'

export interface Need {
  readonly path: string
  readonly kind: 'file' | 'socket'
  readonly isReadOnly: boolean
  /** It stands in an element of the domain's document that libvirt makes accessible itself. */
  readonly isKnownToLibvirt: boolean
}

export interface Guest {
  readonly uuid: string | undefined
  readonly uid: number
  readonly gid: number
  readonly isRunning: boolean
}

/** A cause of refusal, and what removes it. */
export interface Obstacle {
  readonly cause: string
  /** To be typed as root. */
  readonly remedy: readonly string[]
  /** Does the same. */
  readonly fix: () => Promise<void>
}

export interface AccessParts {
  readonly run: RunProgram
  /** Where /etc is. */
  readonly root: string
}

/** Everything that stands between a guest's QEMU and a path, in the order in which the host would refuse it. */
export async function findObstacles(
  need: Need,
  guest: Guest,
  confinement: Confinement,
  parts: AccessParts,
): Promise<Obstacle[]> {
  const found = [
    await ownershipObstacle(need, guest, confinement, parts),
    confinement.models.includes('apparmor') ? await profileObstacle(need, guest, parts) : undefined,
    confinement.models.includes('selinux') ? await labelObstacle(need, parts) : undefined,
  ]
  return found.filter(obstacle => obstacle !== undefined)
}

/** The first directory that QEMU's user may not search, or the file itself. */
async function ownershipObstacle(
  need: Need,
  guest: Guest,
  { models }: Confinement,
  { run }: AccessParts,
): Promise<Obstacle | undefined> {
  const { path, kind, isReadOnly, isKnownToLibvirt } = need
  const who = `u:${guest.uid}`
  const directories = ancestors(path)
  for (const directory of directories) {
    if ((await isAllowed(directory, 'x', guest, run)) !== false) continue
    return acl(run, {
      cause: `user ${guest.uid}, as whom QEMU runs, may not search the directory ${directory}`,
      ...{ entry: `${who}:x`, path: directory, mode: 'o+x' },
    })
  }
  // libvirt gives QEMU what is in its own elements, where it has the right to.
  if (isKnownToLibvirt && models.includes('dac')) return undefined
  const wanted = isReadOnly ? 'r' : 'rw'
  if ((await isAllowed(path, kind === 'socket' ? 'w' : wanted, guest, run)) !== false) return undefined
  return acl(run, {
    cause: `user ${guest.uid}, as whom QEMU runs, may not ${isReadOnly ? 'read' : 'read and write'} ${path}`,
    ...{ entry: `${who}:${wanted}`, path, mode: undefined },
  })
}

/** From the top; the root directory is open to everybody. */
function ancestors(path: string): string[] {
  const above = dirname(path)
  return above === '/' ? [] : [...ancestors(above), above]
}

/** Undefined when this process cannot tell: only root can try another user's rights. */
async function isAllowed(
  path: string,
  rights: 'x' | 'r' | 'w' | 'rw',
  { uid, gid }: Guest,
  run: RunProgram,
): Promise<boolean | undefined> {
  const own = process.getuid!()
  if (own === uid) {
    const bits = {
      x: constants.X_OK,
      r: constants.R_OK,
      w: constants.W_OK,
      rw: constants.R_OK | constants.W_OK,
    }
    return access(path, bits[rights]).then(
      () => true,
      () => false,
    )
  }
  if (own !== 0) return undefined
  const tests = [...rights].flatMap((right, index) => [...(index === 0 ? [] : ['-a']), `-${right}`, path])
  try {
    await run('setpriv', [`--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', '--', 'test', ...tests])
    return true
  } catch (error) {
    if (error instanceof ProgramError && error.exitCode === 1 && error.stderr === '') return false
    // There is no setpriv here, or it may not: nobody can tell.
    return undefined
  }
}

/** An entry for one user in the access list leaves all others as they were; where there are no lists, bits or the owner. */
async function acl(
  run: RunProgram,
  { cause, entry, path, mode }: { cause: string; entry: string; path: string; mode: string | undefined },
): Promise<Obstacle> {
  const hasLists = await run('setfacl', ['--version']).then(
    () => true,
    () => false,
  )
  const user = entry.split(':')[1]!
  const plain = mode === undefined ? ['chown', user, path] : ['chmod', mode, path]
  const [program, ...args] = hasLists ? ['setfacl', '-m', entry, path] : plain
  return {
    cause,
    remedy: [commandLine([program!, ...args])],
    fix: async () => {
      await run(program!, args)
    },
  }
}

/** AppArmor: libvirt makes a profile for each guest from its document, with what stands in it. */
async function profileObstacle(
  { path, kind, isReadOnly, isKnownToLibvirt }: Need,
  { uuid, isRunning }: Guest,
  { run, root }: AccessParts,
): Promise<Obstacle | undefined> {
  if (isKnownToLibvirt) return undefined
  const { local, rules } = await localRules(root)
  const rule = `${pathInRule(path)} ${kind === 'socket' ? 'rw' : isReadOnly ? 'rk' : 'rwk'},`
  if (rules.split('\n').some(line => line.trim().startsWith(rule))) return undefined
  const profile = join(root, 'etc/apparmor.d/libvirt', `libvirt-${uuid}`)
  const reload = isRunning && uuid !== undefined ? [['apparmor_parser', '-r', profile]] : []
  return {
    cause: `AppArmor: the profile of the guest's QEMU has no rule for ${path}, since libvirt does not know of it`,
    remedy: [`echo ${quoted(`  ${rule} ${OURS}`)} >> ${quoted(local)}`, ...reload.map(commandLine)],
    fix: async () => {
      await mkdir(dirname(local), { recursive: true })
      await appendFile(local, `${rules === '' || rules.endsWith('\n') ? '' : '\n'}  ${rule} ${OURS}\n`)
      for (const [program, ...args] of reload) await run(program!, args)
    },
  }
}

/** Behind each rule that is made here, so that it can be taken away again. */
const OURS = '# qpair'

const pathInRule = (path: string): string => `"${path.replaceAll(/["\\*?[\]{}^]/g, '\\$&')}"`

/** Takes back the rule for a socket that is no more. It counts until a guest's profile is loaded anew, and harms nobody. */
export async function withdrawRule(path: string, { root }: AccessParts): Promise<void> {
  const { local, rules } = await localRules(root)
  const lines = rules.split('\n')
  const left = lines.filter(line => !line.trim().startsWith(`${pathInRule(path)} `) || !line.endsWith(OURS))
  if (left.length < lines.length) await writeFile(local, left.join('\n'))
}

/** Where the profiles of guests look for rules of this machine: Debian's libvirt has a file for it, newer ones a directory. */
async function localRules(root: string): Promise<{ local: string; rules: string }> {
  const directory = join(root, 'etc/apparmor.d')
  const read = (path: string): Promise<string> => readFile(path, 'utf8').catch(() => '')
  const abstraction = await read(join(directory, 'abstractions/libvirt-qemu'))
  const isDirectory = abstraction.includes('abstractions/libvirt-qemu.d')
  const isFile = abstraction.includes('local/abstractions/libvirt-qemu')
  const name =
    isDirectory && !isFile ? 'abstractions/libvirt-qemu.d/qpair' : 'local/abstractions/libvirt-qemu'
  const local = join(directory, name)
  return { local, rules: await read(local) }
}

/** SELinux: guests may open what has the type of images; libvirt gives it to what it knows. */
async function labelObstacle(
  { path, kind, isKnownToLibvirt }: Need,
  { run }: AccessParts,
): Promise<Obstacle | undefined> {
  if (isKnownToLibvirt || kind === 'socket') return undefined
  const label = await run('stat', ['--format=%C', '--', path]).then(
    text => text.trim(),
    () => undefined,
  )
  const type = label?.split(':')[2]
  if (type === undefined || type === 'svirt_image_t') return undefined
  const commands = [
    ['semanage', 'fcontext', '-a', '-t', 'svirt_image_t', path.replaceAll(/[.*+?()[\]{}|^$\\]/g, '\\$&')],
    ['restorecon', '-v', path],
  ]
  return {
    cause: `SELinux: ${path} is labelled ${type}, which guests may not open, and libvirt does not know of it`,
    remedy: commands.map(commandLine),
    fix: async () => {
      for (const [program, ...args] of commands) await run(program!, args)
    },
  }
}

const commandLine = (words: readonly string[]): string => words.map(quoted).join(' ')

/** For a shell. */
const quoted = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
