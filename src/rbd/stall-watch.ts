/**
 * Tells the operator when I/O to images stands still. Ceph lets I/O wait rather than fail (a full cluster or pool, too few
 * OSDs, a pause, a network that is cut), and nothing else says so on this machine.
 */
import type { IostatAnswer } from '../bdev/messages.ts'
import { logger } from '../core/log.ts'

const log = logger('rbd')

/** Longer than Ceph takes to find out about an OSD that has died, which is no news. */
const STALLED_MS = 30_000

interface Watched {
  /** Operations that have ended so far. */
  ended: number
  /** When the last one was seen to end, or nothing was outstanding. */
  movedMs: number
  isTold: boolean
}

export class StallWatch {
  readonly #watched = new Map<string, Watched>()

  /** What the devices' counters are at this time, by reactor and in the order of the names. Called every few seconds. */
  look(nowMs: number, names: readonly string[], answers: readonly IostatAnswer[]): void {
    for (const name of this.#watched.keys()) {
      if (!names.includes(name)) this.#watched.delete(name)
    }
    const stalled: string[] = []
    const moving: string[] = []
    let longestMs = 0
    for (const [index, name] of names.entries()) {
      const { ended, outstanding } = sum(answers.map(answer => answer[index]))
      const watched = this.#watched.get(name) ?? { ended, movedMs: nowMs, isTold: false }
      this.#watched.set(name, watched)
      const waitedMs = nowMs - watched.movedMs
      if (outstanding > 0 && ended === watched.ended) {
        if (waitedMs < STALLED_MS || watched.isTold) continue
        watched.isTold = true
        stalled.push(name)
        continue
      }
      if (watched.isTold) {
        moving.push(name)
        longestMs = Math.max(longestMs, waitedMs)
      }
      Object.assign(watched, { ended, movedMs: nowMs, isTold: false })
    }
    if (stalled.length > 0) {
      log.warning(
        `I/O to ${stalled.join(', ')} has been waiting for Ceph for ${STALLED_MS / 1000} s, and goes on by itself once Ceph does: ` +
          '"ceph -s" says why (a full cluster or pool, too few OSDs, a pause); if that does not answer either, see to the network',
      )
    }
    if (moving.length > 0) {
      log.notice(`I/O to ${moving.join(', ')} goes on, after about ${Math.round(longestMs / 1000)} s`)
    }
  }
}

function sum(all: readonly (IostatAnswer[number] | undefined)[]): { ended: number; outstanding: number } {
  let [ended, waiting] = [0, 0]
  for (const each of all) {
    if (each === undefined) continue
    const { counters, outstanding } = each
    ended += counters.num_read_ops + counters.num_write_ops + counters.num_unmap_ops
    waiting += outstanding
  }
  return { ended, outstanding: waiting }
}
