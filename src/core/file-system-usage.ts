/**
 * How full a file system is, asked by a program. A file system on a server that has gone makes whoever touches it wait in the kernel,
 * maybe for ever: that is to be no thread of ours, which nobody can take back.
 */
import { runProgram } from './program.ts'

/** In bytes. Blocks that are reserved are neither allocated nor available. */
export interface FileSystemUsage {
  readonly capacityBytes: number
  readonly allocationBytes: number
  readonly availableBytes: number
}

/** Of the file system that a path is on. `signal` ends the program, if that can be ended. Throws `ProgramError`. */
export async function fileSystemUsage(path: string, signal?: AbortSignal): Promise<FileSystemUsage> {
  const args = ['--file-system', '--format=%S %b %f %a', '--', path]
  const said = await runProgram('stat', args, signal === undefined ? {} : { signal })
  const [size = 0, total = 0, free = 0, available = 0] = said.trim().split(' ').map(Number)
  return {
    capacityBytes: total * size,
    allocationBytes: (total - free) * size,
    availableBytes: available * size,
  }
}
