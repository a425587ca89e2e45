/** The file under an image as the engine sees it: the ring's, or a simulated one that loses power. */
import type { Segments } from '../../io.ts'
import type { FileWaiter } from './task.ts'

/**
 * Every call ends with one `fileDone`, never inside the call. What lies behind the file's end reads as zeroes; what does so
 * because somebody else has made the file shorter is -EIO.
 */
export interface ImageFile {
  /** In bytes, when it was opened. */
  readonly sizeBytes: number
  /** Where it ends by what is known here: where it did when it was opened, or the end of what was written since. */
  readonly endBytes: number
  read(offset: number, address: number, length: number, waiter: FileWaiter): void
  write(offset: number, address: number, length: number, waiter: FileWaiter): void
  /** To and from the part of a list that starts at `skip` bytes. `isFua`: on stable storage when it ends. */
  readTo(offset: number, length: number, segments: Segments, skip: number, waiter: FileWaiter): void
  writeFrom(
    offset: number,
    length: number,
    segments: Segments,
    skip: number,
    isFua: boolean,
    waiter: FileWaiter,
  ): void
  /** Writes zeroes. */
  zero(offset: number, length: number, waiter: FileWaiter): void
  /** Gives the range back to the file system, if that can; it reads as anything afterwards. */
  punch(offset: number, length: number, waiter: FileWaiter): void
  /** What has ended before is on stable storage when this ends. */
  sync(waiter: FileWaiter): void
}
