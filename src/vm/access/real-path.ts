/** What a path leads to: the kernel's security modules look at that, not at links. */
import { realpath } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

/** What is no more had a directory, at least. */
export const realPath = (path: string): Promise<string> =>
  realpath(path)
    .catch(async () => join(await realpath(dirname(path)), basename(path)))
    .catch(() => path)
