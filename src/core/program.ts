/** Other programs: started without a shell, with their whole answer or the reason why there is none. */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { closeSync, openSync, unlinkSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export interface ProgramOptions {
  /** What it reads from its standard input; nothing when absent. */
  readonly input?: string
  /** Ends it with SIGTERM. */
  readonly signal?: AbortSignal
  /** On top of the daemon's own environment, whose language is replaced: answers are parsed. */
  readonly env?: Readonly<Record<string, string>>
  /** When it has not ended by then it is ended; by default one minute. Infinity for what may take any time. */
  readonly timeoutMs?: number
  /** Hears its standard output as it comes: for what tells progress. */
  readonly onOutput?: (text: string) => void
}

const TIMEOUT_MS = 60_000
/** A tool that says more than this is not answering a question of ours. */
const OUTPUT_BYTES_MAX = 64 << 20

/** How a program failed. */
export interface ProgramFailure {
  readonly reason: string
  readonly exitCode: number | null
  readonly stderr: string
  readonly isMissing: boolean
}

/** A program could not be started, or did not succeed. */
export class ProgramError extends Error {
  override readonly name = 'ProgramError'
  readonly program: string
  readonly args: readonly string[]
  /** Null when it was ended by a signal or never ran. */
  readonly exitCode: number | null
  /** What it wrote to its standard error, trimmed. */
  readonly stderr: string
  /** There is no such program on this machine: its package is missing. */
  readonly isMissing: boolean
  readonly #reason: string

  static of(program: string, args: readonly string[], { reason, ...outcome }: ProgramFailure): ProgramError {
    return new ProgramError(program, args, reason, outcome)
  }

  constructor(
    program: string,
    args: readonly string[],
    reason: string,
    outcome: {
      readonly exitCode: number | null
      readonly stderr: string
      readonly isMissing?: boolean
      readonly cause?: unknown
    },
  ) {
    super(`${program} ${args.join(' ')}: ${reason}`, { cause: outcome.cause })
    this.program = program
    this.args = args
    this.exitCode = outcome.exitCode
    this.stderr = outcome.stderr
    this.isMissing = outcome.isMissing ?? false
    this.#reason = reason
  }

  get failure(): ProgramFailure {
    const { exitCode, stderr, isMissing } = this
    return { reason: this.#reason, exitCode, stderr, isMissing }
  }
}

type Run = (program: string, args: readonly string[], options?: ProgramOptions) => Promise<string>
/** See `startProgram`. */
type Start = (program: string, args: readonly string[], logPath: string) => Promise<number>

interface Runner {
  readonly run: Run
  readonly start: Start
}

const HERE: Runner = { run: runHere, start: (program, args, logPath) => startHere(program, args, logPath) }
let { run, start } = HERE

/** Has all programs run by this from now on, by default by this very process again: see `program-process.ts`. */
export function runProgramsBy(runner = HERE): void {
  run = runner.run
  start = runner.start
}

/**
 * Runs a program to its end and answers what it wrote to its standard output. Throws `ProgramError` when it cannot be
 * started, ends with another code than 0, is too slow, or is ended by `signal`.
 */
export const runProgram: Run = (program, args, options) => run(program, args, options)

/**
 * Starts a program that goes on without whoever has started it: it leads a session of its own, and all that it says goes to the
 * file `logPath`, which is emptied. Resolves with its process number. Throws `ProgramError` when it cannot be started.
 */
export const startProgram: Start = (program, args, logPath) => start(program, args, logPath)

/** The same by this very process, which may leave it open files: as 3, 4 … */
export async function startHere(
  program: string,
  args: readonly string[],
  logPath: string,
  descriptors: readonly number[] = [],
): Promise<number> {
  let log: number
  try {
    log = openSync(logPath, 'w', 0o600)
  } catch (cause) {
    const reason = `what it says cannot be kept: ${(cause as Error).message}`
    throw new ProgramError(program, args, reason, { exitCode: null, stderr: '', cause })
  }
  try {
    const child = spawn(program, args, {
      detached: true,
      env: { ...process.env, LC_ALL: 'C.UTF-8' },
      stdio: ['ignore', log, log, ...descriptors],
    })
    const spawned = new Promise(resolve => child.once('spawn', resolve))
    await Promise.race([spawned, failed(child, program, args)])
    child.unref()
    return child.pid!
  } finally {
    closeSync(log)
  }
}

/** `runProgram` by this very process. */
export async function runHere(
  program: string,
  args: readonly string[],
  options: ProgramOptions = {},
): Promise<string> {
  const { signal, timeoutMs = TIMEOUT_MS } = options
  const input = options.input === undefined ? 'ignore' : unnamedFile(options.input)
  const child = spawn(program, args, {
    env: { ...process.env, LC_ALL: 'C.UTF-8', LANGUAGE: 'C', ...options.env },
    stdio: [input, 'pipe', 'pipe'],
  })
  if (input !== 'ignore') closeSync(input)
  let reason = ''
  const end = (why: string): void => {
    reason ||= why
    child.kill('SIGTERM')
  }
  const timer = Number.isFinite(timeoutMs)
    ? setTimeout(() => end(`did not end within ${timeoutMs / 1000} s`), timeoutMs)
    : undefined
  const abort = (): void => end('was cancelled')
  signal?.addEventListener('abort', abort)
  if (signal?.aborted) abort()
  try {
    const stdout = collect(child.stdout!, end, options.onOutput)
    const stderr = collect(child.stderr!, end)
    const { exitCode, killedBy } = await ended(child, program, args)
    const said = stderr().trim()
    if (exitCode === 0 && reason === '') return stdout()
    reason ||= said || (killedBy === null ? `exit code ${exitCode}` : `was ended by ${killedBy}`)
    throw new ProgramError(program, args, reason, { exitCode, stderr: said })
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', abort)
  }
}

/**
 * A file without a name that holds a text. Node's pipes are sockets, which a program that opens /dev/stdin cannot open; and
 * nobody else can read what may be a secret.
 */
function unnamedFile(text: string): number {
  const path = join(tmpdir(), `qpair-input-${randomUUID()}`)
  const fd = openSync(path, 'wx+', 0o600)
  try {
    unlinkSync(path)
    // At a position of its own, so that the program begins to read at the beginning.
    for (let rest = Buffer.from(text), at = 0; rest.length > 0; ) {
      const written = writeSync(fd, rest, 0, rest.length, at)
      rest = rest.subarray(written)
      at += written
    }
    return fd
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/** Gathers a stream; the function answers what has come. */
function collect(
  stream: NodeJS.ReadableStream,
  end: (why: string) => void,
  onOutput?: (text: string) => void,
): () => string {
  const chunks: string[] = []
  let size = 0
  stream.setEncoding('utf8')
  stream.on('data', (text: string) => {
    size += text.length
    if (size > OUTPUT_BYTES_MAX) return end(`wrote more than ${OUTPUT_BYTES_MAX >> 20} MiB`)
    chunks.push(text)
    onOutput?.(text)
  })
  return () => chunks.join('')
}

function ended(
  child: ChildProcess,
  program: string,
  args: readonly string[],
): Promise<{ exitCode: number | null; killedBy: string | null }> {
  return new Promise((resolve, reject) => {
    failed(child, program, args).catch(reject)
    child.on('close', (exitCode, killedBy) => resolve({ exitCode, killedBy }))
  })
}

/** Rejects when it cannot be started. */
function failed(child: ChildProcess, program: string, args: readonly string[]): Promise<never> {
  return new Promise((_, reject) => {
    child.on('error', cause => {
      const isMissing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
      const reason = isMissing ? 'there is no such program on this machine' : cause.message
      reject(new ProgramError(program, args, reason, { exitCode: null, stderr: '', isMissing, cause }))
    })
  })
}
