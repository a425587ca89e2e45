/**
 * Whether the guest's QEMU may open what it is given. What libvirt gives to QEMU it labels and hands over itself; of what stands in
 * QEMU's own arguments, and of sockets of network disks, it knows nothing, and the host refuses them. Here the cause is found
 * before the guest meets it, with the least that has to be changed.
 */
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import { dirname } from 'node:path'
import { ProgramError } from '../../core/program.ts'
import { realPath } from '../../core/real-path.ts'
import type { Confinement, RunProgram } from '../../libvirt/virsh.ts'
import { profileObstacle } from './apparmor.ts'
import { commandLine } from './command-line.ts'
import { labelObstacle } from './selinux.ts'

export interface Need {
  readonly path: string
  readonly kind: 'file' | 'socket'
  readonly isReadOnly: boolean
  /** It stands in an element of the domain's document that libvirt makes accessible itself. */
  readonly isKnownToLibvirt: boolean
  /** It is named by another image, as what is underneath. */
  readonly isUnderneath?: boolean
}

export interface Guest {
  readonly uuid: string | undefined
  readonly uid: number
  readonly gid: number
  readonly isRunning: boolean
  /** As whom it runs for SELinux; for one that does not, what its label will be made of. Undefined without SELinux. */
  readonly selinuxLabel: string | undefined
}

/** A cause of refusal, and what removes it. */
export interface Obstacle {
  readonly cause: string
  /** To be typed as root. */
  readonly remedy: readonly string[]
  /** Does the same, as far as the guest's start does not do it by itself. Absent where that is not for a program to decide. */
  readonly fix?: () => Promise<void>
  /** Takes that back, where it would be of no use without the disk. */
  readonly undo?: () => Promise<void>
}

export interface AccessParts {
  readonly run: RunProgram
  /** Where /etc and /sys are. */
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
    confinement.models.includes('selinux') ? await labelObstacle(need, guest, parts) : undefined,
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
  // Of what a link leads to, too.
  const directories = new Set([...ancestors(path), ...ancestors(await realPath(path))])
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
  const test = async (groups: string): Promise<boolean> => {
    await run('setpriv', [`--reuid=${uid}`, `--regid=${gid}`, groups, '--', 'test', ...tests])
    return true
  }
  try {
    // libvirt gives QEMU all groups of its user; one without a name has none.
    return await test('--init-groups').catch(error => {
      if (error instanceof ProgramError && error.stderr.includes('--init-groups'))
        return test('--clear-groups')
      throw error
    })
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
