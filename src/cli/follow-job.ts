/** Follows a job of the daemon until it ends: with a progress bar on a terminal, silently elsewhere. */
import { formatSize } from '../core/format-size.ts'
import { RpcCallError } from '../rpc/client.ts'
import type { WireJob } from '../rpc/job-methods.ts'
import type { AnyClient } from './config-file.ts'
import type { Terminal } from './output.ts'

/** How often the bar moves. */
const TURN_MS = 500
const BAR_WIDTH = 24
const DEFAULT_COLUMNS = 80
/** What a shell says of a program that was ended by SIGINT. */
const INTERRUPTED = 130
/** Clears the line that the bar is on. */
const CLEAR = '\r\u001b[K'

/**
 * Resolves with the exit code and, unless Ctrl-C ended it, the job as it ended. Ctrl-C leaves the job running, as a lost
 * terminal would, and says how to go on. Throws `RpcCallError` when the job failed.
 */
export async function followJob(
  terminal: Terminal,
  client: AnyClient,
  id: number,
  showsBar: boolean,
): Promise<{ readonly code: number; readonly ended?: WireJob }> {
  let interrupt = (): void => {}
  const interrupted = new Promise<undefined>(resolve => {
    interrupt = () => resolve(undefined)
  })
  const restore = terminal.onInterrupt?.(interrupt)
  let isCancellable = false
  try {
    for (;;) {
      // The daemon answers with what job_wait's declaration says.
      const asked = client.request('job_wait', { id, timeout_ms: TURN_MS }) as Promise<WireJob>
      const job = await Promise.race([asked, interrupted])
      if (job === undefined) {
        // The answer is not waited for any more; that the connection ends under it is no news.
        asked.catch(() => {})
        const end = isCancellable ? `, "qpair job cancel ${id}" ends it` : ''
        terminal.writeError(`\njob ${id} goes on in the daemon: "qpair job wait ${id}" follows it${end}\n`)
        return { code: INTERRUPTED }
      }
      if (job.state === 'running') {
        isCancellable = job.cancellable
        if (showsBar) terminal.write(CLEAR + progressLine(job, terminal.columns))
        continue
      }
      if (showsBar) terminal.write(`${CLEAR}${endLine(job)}\n`)
      if (job.error !== undefined) throw new RpcCallError(job.kind, job.error.code, job.error.message)
      if (job.state === 'completed') return { code: 0, ended: job }
      terminal.writeError(`job ${id} was ended: ${job.kind} of ${job.name} is not done\n`)
      return { code: 1, ended: job }
    }
  } finally {
    restore?.()
  }
}

/** `bdev_rbd_flatten c0 [=====>    ]  52 %  1.2 GiB of 2.3 GiB, 110 MiB/s, 0:10 left`, cut to the width. */
export function progressLine(job: WireJob, columns: number = DEFAULT_COLUMNS): string {
  const { kind, name, percent, done, total, rate, eta_seconds } = job
  const amount = (value: number): string =>
    job.unit === 'bytes' ? formatSize(Math.round(value)) : `${value}`
  const facts = [
    total === undefined ? amount(done) : `${amount(done)} of ${amount(total)}`,
    ...(job.unit === 'bytes' ? [`${amount(rate)}/s`] : []),
    ...(eta_seconds === undefined ? [] : [`${formatTime(eta_seconds)} left`]),
  ].join(', ')
  const bar = percent === undefined ? '' : ` [${barOf(percent)}] ${String(percent).padStart(3)} %`
  // A line as wide as the terminal would wrap, and could not be cleared.
  return `${kind} ${name}${bar}  ${facts}`.slice(0, columns - 1)
}

function endLine({ kind, name, state, elapsed_seconds }: WireJob): string {
  return `${kind} ${name}: ${state} after ${formatTime(Math.round(elapsed_seconds))}`
}

function barOf(percent: number): string {
  const full = Math.floor((percent * BAR_WIDTH) / 100)
  return `${'='.repeat(full)}${full < BAR_WIDTH ? '>' : ''}`.padEnd(BAR_WIDTH)
}

/** `0:07`, `12:30`, `1:02:03`. */
function formatTime(seconds: number): string {
  const two = (value: number): string => String(value).padStart(2, '0')
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60]
  const clock = `${hours > 0 ? two(minutes) : minutes}:${two(seconds % 60)}`
  return hours > 0 ? `${hours}:${clock}` : clock
}
