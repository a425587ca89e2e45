/** `qpair serve`: starts the daemon, says how to use it, and ends it in order on SIGTERM or SIGINT. */
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError, SysError } from '../core/errors.ts'
import { foldLines } from '../core/fold-lines.ts'
import { logger, logSettings } from '../core/log.ts'
import { isWaiting } from '../sys/blocking.ts'
import { exitNow } from '../sys/libc.ts'
import { Daemon } from './daemon.ts'
import { flagsNamed } from './methods/log.ts'
import { parseServeOptions, SERVE_HELP, type ServeOptions } from './options.ts'
import { openQuickDisk } from './quick-disk.ts'
import { VERSION } from './version.ts'

const log = logger('app')

/** How long the end of the daemon may take, when a peer does not answer. */
const STOP_MS = 15_000

/** Resolves with the exit code: 0 after an ordered end, 1 when the daemon could not start, 2 for a wrong command line. */
export async function serve(argv: readonly string[]): Promise<number> {
  let options: ServeOptions | 'help'
  try {
    options = parseServeOptions(argv)
    if (options === 'help') {
      process.stdout.write(foldLines(SERVE_HELP, process.stdout.columns))
      return 0
    }
    logSettings.printLevel = options.logLevel
    logSettings.level = options.logLevel
    for (const name of options.logFlags) {
      for (const flag of flagsNamed(name)) logSettings.flags.add(flag)
    }
  } catch (error) {
    if (!(error instanceof RpcError)) throw error
    process.stderr.write(`qpair serve: ${error.message}\n`)
    return 2
  }
  try {
    return await run(options)
  } catch (error) {
    if (!(error instanceof RpcError || error instanceof SysError)) throw error
    process.stderr.write(`qpair serve: ${error.message}\n`)
    return 1
  }
}

async function run(options: ServeOptions): Promise<number> {
  const stopped = new Promise<NodeJS.Signals>(resolve => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGQUIT', 'SIGHUP'] as const) process.once(signal, resolve)
  })
  const daemon = await Daemon.start(options)
  log.notice(`qpair ${VERSION} serves RPC on ${daemon.rpcAddress} (process ${process.pid})`)
  if (options.waitForRpc) log.notice('waiting for framework_start_init')
  if (options.disk !== undefined) {
    try {
      process.stdout.write(await openQuickDisk(daemon, options.disk))
    } catch (error) {
      // What is left running would keep the process alive.
      await daemon.stop()
      throw error
    }
  }
  const signal = await stopped
  log.notice(`${signal}: closing connections and devices`)
  const late = `${STOP_MS / 1000} s have passed`
  const obstacle = await Promise.race([
    daemon.stop().catch((error: Error) => error.message),
    delay(STOP_MS, late, { ref: false }),
  ])
  if (obstacle !== undefined) log.warning(`not everything is closed (${obstacle}): ending all the same`)
  // What is still open, or a thread that waits for a peer (a Ceph cluster that is gone), would keep the process alive.
  if (obstacle !== undefined || isWaiting()) exitNow(0)
  return 0
}
