/**
 * A process that starts programs for this one. fork(2) gives a program every file that is open here, and execve(2) closes them
 * there; to close a file of a server is to flush it, which waits for that server. Who starts a program waits for execve: with
 * a server that has gone no program could be started any more, not even umount, and all of the daemon would stand still. This
 * process has no such files, as it is started before there are any.
 *
 *     daemon  -- question: id, program, words, options -->  process  -- fork, exec -->  program
 *             <-- output: id, text ----------------------            <-- output, end --
 *             <-- answer: id, output or error ------------
 *
 * One that goes on without the daemon is answered at once, with its number.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { logger } from './log.ts'
import { ProgramError, type ProgramFailure, type ProgramOptions, runProgramsBy } from './program.ts'

const log = logger('app')

/** What can be sent of the options of a program. */
type SentOptions = Omit<ProgramOptions, 'signal' | 'onOutput' | 'timeoutMs'> & {
  /** Null for any time: JSON has no Infinity. */
  readonly timeoutMs?: number | null
}

export type Question =
  | {
      readonly id: number
      readonly program: string
      readonly args: readonly string[]
      readonly options: SentOptions
      /** Its output is sent as it comes. */
      readonly isFollowed: boolean
    }
  | { readonly id: number; readonly isCancelled: true }
  /** See `startProgram`. */
  | {
      readonly id: number
      readonly program: string
      readonly args: readonly string[]
      readonly logPath: string
    }

export type Answer =
  | { readonly id: number; readonly output: string }
  | { readonly id: number; readonly stdout: string }
  | { readonly id: number; readonly pid: number }
  | { readonly id: number; readonly failure: ProgramFailure }

interface Call {
  readonly program: string
  readonly args: readonly string[]
  readonly onOutput?: ((text: string) => void) | undefined
  readonly resolve: (answer: Extract<Answer, { stdout: string } | { pid: number }>) => void
  readonly reject: (error: ProgramError) => void
}

let apart: ProgramProcess | undefined

/**
 * Has programs started by a process of their own from now on, if they are not yet.
 * @param entry the compiled `program-main.ts`.
 */
export function startProgramsApart(entry: URL): void {
  if (apart === undefined) apart = new ProgramProcess(entry)
}

class ProgramProcess {
  readonly #child: ChildProcess
  readonly #calls = new Map<number, Call>()
  #lastId = 0

  constructor(entry: URL) {
    // It passes on texts, and needs next to no memory for that.
    const execArgv = ['--max-old-space-size=64', '--max-semi-space-size=1']
    this.#child = fork(entry, [], { execArgv, stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
    this.#child.on('message', message => this.#hear(message as Answer))
    this.#child.on('error', error => this.#end(error.message))
    this.#child.on('exit', (code, signal) => this.#end(`it ended, ${signal ?? `with code ${code}`}`))
    this.#child.unref()
    this.#child.channel?.unref()
    runProgramsBy({ run: (...call) => this.run(...call), start: (...call) => this.start(...call) })
  }

  async run(program: string, args: readonly string[], options: ProgramOptions = {}): Promise<string> {
    const id = ++this.#lastId
    const { signal, onOutput, timeoutMs, ...rest } = options
    const limit = timeoutMs === undefined ? {} : { timeoutMs: Number.isFinite(timeoutMs) ? timeoutMs : null }
    const cancel = (): void => this.#send({ id, isCancelled: true })
    const sent = { ...rest, ...limit }
    const isFollowed = onOutput !== undefined
    const answer = this.#ask({ id, program, args, options: sent, isFollowed }, onOutput)
    signal?.addEventListener('abort', cancel)
    if (signal?.aborted) cancel()
    try {
      return ((await answer) as { stdout: string }).stdout
    } finally {
      signal?.removeEventListener('abort', cancel)
    }
  }

  async start(program: string, args: readonly string[], logPath: string): Promise<number> {
    const answer = await this.#ask({ id: ++this.#lastId, program, args, logPath })
    return (answer as { pid: number }).pid
  }

  async #ask(
    question: Exclude<Question, { isCancelled: true }>,
    onOutput?: (text: string) => void,
  ): Promise<Parameters<Call['resolve']>[0]> {
    const { id, program, args } = question
    // A program that runs keeps this process alive, as its own child does.
    this.#child.channel?.ref()
    try {
      return await new Promise((resolve, reject) => {
        this.#calls.set(id, { program, args, onOutput, resolve, reject })
        this.#send(question)
      })
    } finally {
      if (this.#calls.size === 0) this.#child.channel?.unref()
    }
  }

  #send(question: Question): void {
    // One that cannot be sent has no answer because the process ends, which is heard of.
    this.#child.send(question, () => {})
  }

  #hear(answer: Answer): void {
    const call = this.#calls.get(answer.id)
    if (call === undefined) return
    if ('output' in answer) {
      call.onOutput?.(answer.output)
      return
    }
    this.#calls.delete(answer.id)
    if ('failure' in answer) call.reject(ProgramError.of(call.program, call.args, answer.failure))
    else call.resolve(answer)
  }

  /** From then on programs are started here again. */
  #end(reason: string): void {
    runProgramsBy()
    apart = undefined
    if (this.#calls.size > 0) log.error(`the process that starts programs is gone: ${reason}`)
    for (const { program, args, reject } of this.#calls.values()) {
      const why = `nobody knows how it ended: the process that started it is gone (${reason})`
      reject(new ProgramError(program, args, why, { exitCode: null, stderr: '' }))
    }
    this.#calls.clear()
  }
}
