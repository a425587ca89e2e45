/**
 * Where a lab keeps what it makes: a temporary directory, locked as long as the lab lives. One whose lab was killed is removed by
 * the next lab: its disks may have grown large.
 */
import { existsSync, lstatSync, readdirSync } from 'node:fs'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type RpcCode, RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { lockFile } from '../../sys/file-lock.ts'

const PREFIX = 'qpair-lab-'
/** As mkdtemp names it. */
const MADE = new RegExp(`^${PREFIX}[A-Za-z0-9]{6}$`)
const LOCK = 'lock'

export class LabDirectory {
  readonly path: string
  readonly #unlock: () => void

  private constructor(path: string, unlock: () => void) {
    this.path = path
    this.#unlock = unlock
  }

  /** Throws `RpcError` when there can be none. `parent`: where temporary files are, in TMPDIR. */
  static async make(parent = tmpdir()): Promise<LabDirectory> {
    const path = await withReason(parent, () => mkdtemp(join(parent, PREFIX)))
    const unlock = lockFile(join(path, LOCK))
    // Another lab has taken it for one that was left.
    if (unlock === undefined) return LabDirectory.make(parent)
    return new LabDirectory(path, unlock)
  }

  /** Thin files of these sizes. */
  async makeImages(sizes: readonly number[]): Promise<string[]> {
    const images: string[] = []
    for (const [index, size] of sizes.entries()) {
      const path = join(this.path, `nvme${index}.raw`)
      await withReason(`${path}, a file of ${formatSize(size)}`, async () => {
        const file = await open(path, 'w')
        try {
          await file.truncate(size)
        } finally {
          await file.close()
        }
      })
      images.push(path)
    }
    return images
  }

  async remove(): Promise<void> {
    await rm(this.path, { recursive: true, force: true })
    this.#unlock()
  }
}

/** Removes the directories of this user's labs that were killed; answers which. */
export async function removeLeftLabs(parent = tmpdir()): Promise<string[]> {
  const removed: string[] = []
  for (const name of readdirSync(parent).filter(each => MADE.test(each))) {
    const path = join(parent, name)
    if (!isOurs(path)) continue
    const unlock = lockFile(join(path, LOCK))
    // It is in use.
    if (unlock === undefined) continue
    await rm(path, { recursive: true, force: true })
    unlock()
    removed.push(path)
  }
  return removed
}

/** A lab's directory, and none that somebody else has put there. */
function isOurs(path: string): boolean {
  const stat = lstatSync(path, { throwIfNoEntry: false })
  return stat?.isDirectory() === true && stat.uid === process.geteuid?.() && existsSync(join(path, LOCK))
}

const REASONS: Readonly<Record<string, readonly [code: RpcCode, reason: string]>> = {
  ENOSPC: ['ENOSPC', 'the file system is full'],
  EDQUOT: ['ENOSPC', 'the quota is used up'],
  EFBIG: ['EINVAL', 'the file system has no files that large'],
  EACCES: ['EACCES', 'it may not be written to'],
  EROFS: ['EACCES', 'it may not be written to'],
  ENOENT: ['ENOENT', 'there is no such directory'],
}

/** Says what a file system has against the lab's files, and that there are others. */
export async function withReason<Result>(what: string, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work()
  } catch (cause) {
    const found = REASONS[(cause as NodeJS.ErrnoException).code ?? '']
    if (found === undefined || cause instanceof RpcError) throw cause
    throw new RpcError(
      found[0],
      `${what}: ${found[1]}; TMPDIR=DIR before the command chooses another place`,
      {
        cause,
      },
    )
  }
}
