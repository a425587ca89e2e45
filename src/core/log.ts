/**
 * One line per event to stderr, filtered by level, and by flag below that. A line has a stable shape:
 * `2026-11-21T10:00:00.000Z WARNING nvmf: what happened and what it means`. What follows in a message of several lines
 * (a stack) is indented.
 */
export const LogLevel = { ERROR: 0, WARNING: 1, NOTICE: 2, INFO: 3, DEBUG: 4 } as const
export type LogLevelName = keyof typeof LogLevel

/** Components that may be made to speak at DEBUG level one by one (`-L`, `log_set_flag`). */
export const LOG_FLAGS = [
  'app',
  'bdev',
  'gateway',
  'iscsi',
  'nbd',
  'nvme',
  'nvmf',
  'nvmf_tcp',
  'rbd',
  'reactor',
  'rpc',
  'vhost',
  'virtio',
  'volume',
  'vm',
] as const
export type LogFlag = (typeof LOG_FLAGS)[number]

/** What the operator may change while the daemon runs. Each thread has its own copy, kept equal by message. */
export const logSettings = {
  printLevel: 'NOTICE' as LogLevelName,
  /** Applies instead of `printLevel` when stderr is the system journal. */
  level: 'NOTICE' as LogLevelName,
  timestamps: true,
  flags: new Set<LogFlag>(),
  /** Where lines go; tests replace it. */
  write: (line: string): void => void process.stderr.write(line),
}

/** systemd sets this when it reads stderr; lines then carry their priority (sd-daemon(3)) and the journal has the time. */
const isJournal = process.env['JOURNAL_STREAM'] !== undefined

/** syslog's numbers, by `LogLevel`. */
const PRIORITIES = [3, 4, 5, 6, 7] as const

export interface Logger {
  error(message: string): void
  warning(message: string): void
  notice(message: string): void
  info(message: string): void
  debug(message: string): void
}

/** The settings as plain data, for other threads. */
export interface LogSettings {
  readonly printLevel: LogLevelName
  readonly level: LogLevelName
  readonly timestamps: boolean
  readonly flags: readonly LogFlag[]
}

export function currentLogSettings(): LogSettings {
  const { printLevel, level, timestamps, flags } = logSettings
  return { printLevel, level, timestamps, flags: [...flags] }
}

export function applyLogSettings({ flags, ...plain }: LogSettings): void {
  Object.assign(logSettings, plain, { flags: new Set(flags) })
}

/** Peers choose some of the words. They begin no line of their own, and steer no terminal. */
const harmless = (message: string): string =>
  message
    .replace(/\n */g, '\n    ')
    .replace(/[^\P{Cc}\n]/gu, control => `\\x${control.charCodeAt(0).toString(16).padStart(2, '0')}`)

export function logger(flag: LogFlag): Logger {
  const print = (level: LogLevelName, message: string): void => {
    const least = isJournal ? logSettings.level : logSettings.printLevel
    const wanted =
      LogLevel[level] <= LogLevel[least] || (LogLevel[level] >= LogLevel.INFO && logSettings.flags.has(flag))
    if (!wanted) return
    const text = harmless(message)
    if (isJournal) {
      logSettings.write(`<${PRIORITIES[LogLevel[level]]}>${flag}: ${text}\n`)
      return
    }
    const time = logSettings.timestamps ? `${new Date().toISOString()} ` : ''
    logSettings.write(`${time}${level} ${flag}: ${text}\n`)
  }
  return {
    error: message => print('ERROR', message),
    warning: message => print('WARNING', message),
    notice: message => print('NOTICE', message),
    info: message => print('INFO', message),
    debug: message => print('DEBUG', message),
  }
}
