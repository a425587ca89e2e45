/**
 * Reactors as masks name them: by the processor that each stays on, or by its number when it may run anywhere.
 */
import { parseCoreMask } from '../core/core-mask.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'

const log = logger('vhost')

/** `cpus`: the processor of each reactor, -1 for any. All reactors without a mask. Throws `RpcError` EINVAL. */
export function reactorsOfMask(mask: string | undefined, cpus: readonly number[]): number[] {
  const all = cpus.map((_, index) => index)
  if (mask === undefined) return all
  const wanted = parseCoreMask(mask, 'cpumask')
  const there = all.map(index => cpuOf(cpus, index))
  const found = all.filter(index => wanted.includes(there[index]!))
  if (found.length === 0) {
    throw new RpcError(
      'EINVAL',
      `cpumask ${mask} has no reactor: it names ${wanted.join(', ')}, and there are reactors on ${there.join(', ')}. ` +
        'Choose among these, or start the daemon with others (serve -m)',
    )
  }
  const without = wanted.filter(cpu => !there.includes(cpu))
  if (without.length > 0) {
    log.warning(`cpumask ${mask} also names ${without.join(', ')}, where no reactor is: left out`)
  }
  return found
}

/** As SPDK prints masks. */
export function maskOfReactors(indexes: readonly number[], cpus: readonly number[]): string {
  const mask = indexes.reduce((bits, index) => bits | (1n << BigInt(cpuOf(cpus, index))), 0n)
  return `0x${mask.toString(16)}`
}

const cpuOf = (cpus: readonly number[], index: number): number => (cpus[index]! < 0 ? index : cpus[index]!)
