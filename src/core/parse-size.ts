import { RpcError } from './errors.ts'

const LETTERS = 'KMGTPE'

/**
 * Bytes from `10G`, `512M`, `4096`, as virsh has them: G and GiB are powers of 1024, GB is one of 1000. Throws `RpcError`
 * EINVAL naming `what`.
 */
export function parseSize(text: string, what: string): number {
  const [, number, letter = '', suffix = ''] =
    /^(\d+(?:\.\d+)?)\s*([KMGTPE]?)(i?B)?$/i.exec(text.trim()) ?? []
  const factor = (letter !== '' && suffix.toLowerCase() === 'b' ? 1000 : 1024) ** powerOf(letter)
  const bytes = number === undefined ? Number.NaN : Number(number) * factor
  if (!Number.isSafeInteger(bytes) || bytes < 1) {
    throw new RpcError(
      'EINVAL',
      `${what} ${text} is no size: give bytes, or a number with K, M, G or T such as 10G`,
    )
  }
  return bytes
}

/** The same for the memory of a guest: a number alone is MiB, as QEMU and virt-install have it. */
export const parseMemorySize = (text: string, what: string): number =>
  parseSize(/^\s*\d+\s*$/.test(text) ? `${text}M` : text, what)

const BLOCK_SIZE = 512

/** A disk has whole blocks, and 100MB is none: rounded up, as QEMU does it. */
export const wholeBlocks = (bytes: number): number => Math.ceil(bytes / BLOCK_SIZE) * BLOCK_SIZE

const powerOf = (letter: string): number => (letter === '' ? 0 : LETTERS.indexOf(letter.toUpperCase()) + 1)
