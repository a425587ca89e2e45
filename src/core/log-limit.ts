/**
 * For lines that a peer can cause as often as it likes: whoever connects and hangs up in a loop would fill the log's disk,
 * and the lines of others would be lost in between.
 */
import type { Logger, LogLevelName } from './log.ts'

/** So many lines at once … */
const BURST = 100
/** … and then one in this time. */
const PAUSE_MS = 1000

/** The same logger at a bounded rate, over all levels. The next line that is written says how many were left out. */
export function limitLines(log: Logger, nowMs: () => number = () => performance.now()): Logger {
  let allowed = BURST
  let countedMs = nowMs()
  let leftOut = 0
  const isAllowed = (): boolean => {
    const pauses = Math.floor((nowMs() - countedMs) / PAUSE_MS)
    allowed = Math.min(allowed + pauses, BURST)
    countedMs += pauses * PAUSE_MS
    if (allowed === 0) return false
    allowed--
    return true
  }
  const write = (level: Lowercase<LogLevelName>, message: string): void => {
    if (!isAllowed()) {
      leftOut++
      return
    }
    log[level](leftOut === 0 ? message : `${message} (${leftOut} before this one left out)`)
    leftOut = 0
  }
  return {
    error: message => write('error', message),
    warning: message => write('warning', message),
    notice: message => write('notice', message),
    info: message => write('info', message),
    debug: message => write('debug', message),
  }
}
