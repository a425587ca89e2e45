/** The programs that do the work underneath: what is said when one is missing or fails. */
import { type RpcCode, RpcError } from '../core/errors.ts'
import { ProgramError, type ProgramOptions, runProgram } from '../core/program.ts'

/** Where a program is found: packages of Debian, Fedora and SUSE. */
export interface Packages {
  readonly debian: string
  readonly fedora: string
  readonly suse: string
}

const same = (name: string): Packages => ({ debian: name, fedora: name, suse: name })

/** Programs, and those that others start by themselves (`mount` starts `mount.nfs`). */
const PACKAGES: Readonly<Record<string, Packages>> = {
  mount: same('util-linux'),
  umount: same('util-linux'),
  blkid: same('util-linux'),
  stat: same('coreutils'),
  'mount.nfs': { debian: 'nfs-common', fedora: 'nfs-utils', suse: 'nfs-client' },
  'mount.cifs': same('cifs-utils'),
  'mount.glusterfs': { debian: 'glusterfs-client', fedora: 'glusterfs-fuse', suse: 'glusterfs' },
  'mkfs.ext2': same('e2fsprogs'),
  'mkfs.ext3': same('e2fsprogs'),
  'mkfs.ext4': same('e2fsprogs'),
  'mkfs.xfs': same('xfsprogs'),
  'mkfs.vfat': same('dosfstools'),
  pvs: same('lvm2'),
  pvcreate: same('lvm2'),
  pvremove: same('lvm2'),
  vgcreate: same('lvm2'),
  vgchange: same('lvm2'),
  vgremove: same('lvm2'),
  vgs: same('lvm2'),
  lvs: same('lvm2'),
  lvcreate: same('lvm2'),
  lvremove: same('lvm2'),
  lvresize: same('lvm2'),
  lvrename: same('lvm2'),
  lvconvert: same('lvm2'),
  sfdisk: { debian: 'fdisk', fedora: 'util-linux', suse: 'util-linux' },
  partx: same('util-linux'),
  iscsiadm: { debian: 'open-iscsi', fedora: 'iscsi-initiator-utils', suse: 'open-iscsi' },
  zfs: { debian: 'zfsutils-linux', fedora: 'zfs (zfsonlinux.org)', suse: 'zfs (filesystems repository)' },
  zpool: { debian: 'zfsutils-linux', fedora: 'zfs (zfsonlinux.org)', suse: 'zfs (filesystems repository)' },
  gluster: { debian: 'glusterfs-cli', fedora: 'glusterfs-cli', suse: 'glusterfs' },
  showmount: { debian: 'nfs-common', fedora: 'nfs-utils', suse: 'nfs-client' },
}

/** How a message goes on that has said that a program is missing. */
export function install(program: string, packages: Packages | undefined = PACKAGES[program]): string {
  if (packages === undefined) return `install ${program}`
  const { debian, fedora, suse } = packages
  return `install ${debian} (Debian, Ubuntu), ${fedora} (Fedora) or ${suse} (SUSE)`
}

/** Words of programs, in the order in which they count, and the codes that they mean. */
const CODES: readonly (readonly [RegExp, RpcCode])[] = [
  [/busy|in use|already mounted/i, 'EBUSY'],
  [/no space left/i, 'ENOSPC'],
  [/permission denied|must be superuser|only root|not permitted|access denied/i, 'EPERM'],
  [/no such file|does not exist|not found/i, 'ENOENT'],
  [/timed out|did not end within/i, 'ETIMEDOUT'],
  [/already exists/i, 'EEXIST'],
]

interface Explanation {
  /** Where the program is found, when it is not among those that are known. */
  readonly packages?: Packages | undefined
  /** What is to be done about what the program said, if that is known. */
  readonly remedy?: ((stderr: string) => string | undefined) | undefined
}

export interface ToolOptions extends ProgramOptions, Explanation {}

/** Runs a program for `what` ("pool vms cannot be mounted"). Throws `RpcError` with its words and what to do. */
export function runTool(
  what: string,
  program: string,
  args: readonly string[],
  { packages, remedy, ...options }: ToolOptions = {},
): Promise<string> {
  return explained(what, runProgram(program, args, options), { packages, remedy })
}

/** What a program comes to that was started for `what`. Throws as `runTool`. */
export async function explained<T>(
  what: string,
  work: Promise<T>,
  { packages, remedy }: Explanation = {},
): Promise<T> {
  try {
    return await work
  } catch (cause) {
    if (!(cause instanceof ProgramError)) throw cause
    if (cause.isMissing) {
      const { program } = cause
      throw new RpcError(
        'ENOENT',
        `${what}: there is no ${program} on this machine; ${install(program, packages)}`,
        { cause },
      )
    }
    const said =
      cause.stderr === '' ? cause.message : cause.stderr.replaceAll(/\.?\s*\n\s*/g, '; ').replace(/\.$/, '')
    const hint = remedy?.(cause.stderr)
    const code = CODES.find(([pattern]) => pattern.test(said))?.[1] ?? 'EIO'
    throw new RpcError(code, `${what}: ${said}${hint === undefined ? '' : `. ${hint}`}`, { cause })
  }
}
