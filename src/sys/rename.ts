/** renameat2(2) where it must not take the place of another file. */
import koffi from 'koffi'
import { blocking } from './blocking.ts'

const AT_FDCWD = -100
const RENAME_NOREPLACE = 1

const renameat2 = blocking(
  koffi.load('libc.so.6').func('int renameat2(int, const char *, int, const char *, uint)'),
)

/** Gives a file a name that nothing has, in one step. False when that could not be done: also where it cannot be one step. */
export const renameToFree = async (from: string, to: string): Promise<boolean> =>
  (await renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE)) === 0
