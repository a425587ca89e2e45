/** What a path leads to, links followed. */
import { realpath } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

/** What is not there has a directory, at least; else it is the path as it was given. */
export const realPath = (path: string): Promise<string> =>
  realpath(path)
    .catch(async () => join(await realpath(dirname(path)), basename(path)))
    .catch(() => path)
