/** The process of `program-process.ts`: runs what it is asked for until the daemon is gone. */
import { ProgramError, type ProgramFailure, runHere, startHere } from './program.ts'
import type { Answer, Question } from './program-process.ts'

const running = new Map<number, AbortController>()

const answer = (message: Answer): void => {
  // A daemon that is gone needs no answer.
  process.send?.(message, undefined, undefined, () => {})
}

async function start({ id, program, args, logPath }: Extract<Question, { logPath: string }>): Promise<void> {
  try {
    answer({ id, pid: await startHere(program, args, logPath) })
  } catch (error) {
    answer({ id, failure: failureOf(error) })
  }
}

async function run(question: Extract<Question, { isFollowed: boolean }>): Promise<void> {
  const { id, program, args, options, isFollowed } = question
  const { timeoutMs, ...rest } = options
  const cancel = new AbortController()
  running.set(id, cancel)
  try {
    const stdout = await runHere(program, args, {
      ...rest,
      ...(timeoutMs === undefined ? {} : { timeoutMs: timeoutMs ?? Number.POSITIVE_INFINITY }),
      signal: cancel.signal,
      ...(isFollowed ? { onOutput: output => answer({ id, output }) } : {}),
    })
    answer({ id, stdout })
  } catch (error) {
    answer({ id, failure: failureOf(error) })
  } finally {
    running.delete(id)
  }
}

function failureOf(error: unknown): ProgramFailure {
  if (error instanceof ProgramError) return error.failure
  // Memory or a disk that is full, a word that no program can be given: others that run here are not to end with it.
  return { reason: (error as Error).message, exitCode: null, stderr: '', isMissing: false }
}

process.on('message', (question: Question) => {
  if ('logPath' in question) void start(question)
  else if ('isCancelled' in question) running.get(question.id)?.abort()
  else void run(question)
})
// It goes when the daemon has gone, which may still need it after a signal to both.
process.on('disconnect', () => process.exit())
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {})
