/** Sets of processors, as SPDK's command line and methods have them. */
import { RpcError } from './errors.ts'

/**
 * The processors in a core mask: `0x5`, `5`, `[0,2]` or `[0-3,6]`. `option` is
 * where it was given, for the message. Throws `RpcError` EINVAL for what is none.
 */
export function parseCoreMask(mask: string, option: string): number[] {
  const wrong = (why: string): RpcError =>
    new RpcError(
      'EINVAL',
      `core mask ${JSON.stringify(mask)} (${option}) ${why}: give a hexadecimal mask such as 0x3, or a list such as [0,2-3]`,
    )
  const list = /^\[([\d,\s-]+)\]$/.exec(mask.trim())
  const cpus = new Set<number>()
  if (list !== null) {
    for (const part of list[1]!.split(',')) {
      const range = /^\s*(\d+)(?:\s*-\s*(\d+))?\s*$/.exec(part)
      if (range === null) throw wrong(`has "${part.trim()}", which is no processor number`)
      const first = Number(range[1])
      const last = Number(range[2] ?? first)
      if (last < first || last > 1023) throw wrong(`has the range ${part.trim()}`)
      for (let cpu = first; cpu <= last; cpu++) cpus.add(cpu)
    }
  } else {
    if (!/^(0x)?[\da-f]+$/i.test(mask.trim())) throw wrong('is no number')
    let bits = BigInt(`0x${mask.trim().replace(/^0x/i, '')}`)
    for (let cpu = 0; bits > 0n; cpu++, bits >>= 1n) if (bits & 1n) cpus.add(cpu)
  }
  if (cpus.size === 0) throw wrong('names no processor')
  return [...cpus].sort((a, b) => a - b)
}
