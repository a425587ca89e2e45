/**
 * A QEMU that outlives whoever starts it: it leads a session of its own, writes what it complains of to a file, and is known
 * again by its process number together with the time at which that process started.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { startHere, startProgram } from '../../core/program.ts'

export interface QemuStart {
  readonly program: string
  readonly args: readonly string[]
  readonly logPath: string
  /** It inherits these as 3, 4 … */
  readonly descriptors: readonly number[]
}

export interface QemuProcess {
  readonly pid: number
  /** In the kernel's ticks since it has booted: with the number this names one process for good. */
  readonly startTicks: number
}

/** Throws `ProgramError`. */
export async function startQemu({ program, args, logPath, descriptors }: QemuStart): Promise<QemuProcess> {
  // An open file cannot be sent to the process that starts programs: its guest is started here, where a server of files that is
  // gone may be waited for.
  const hasFiles = descriptors.length > 0
  const pid = await (hasFiles
    ? startHere(program, args, logPath, descriptors)
    : startProgram(program, args, logPath))
  return processOf(pid)
}

/** Whether that very process still runs; one that has ended and that nobody has waited for does not. */
export function isRunning({ pid, startTicks }: QemuProcess): boolean {
  const found = startTicksOf(pid)
  return found !== undefined && found === startTicks
}

/** Waits until the process has ended; false when it has not within the time. */
export async function hasEnded(qemu: QemuProcess, timeoutMs: number): Promise<boolean> {
  const deadlineMs = performance.now() + timeoutMs
  while (isRunning(qemu)) {
    if (performance.now() >= deadlineMs) return false
    await delay(50)
  }
  return true
}

export function kill(qemu: QemuProcess): void {
  if (isRunning(qemu)) process.kill(qemu.pid, 'SIGKILL')
}

/** The first process whose arguments pass the test; undefined when there is none, or it cannot be seen. */
export function findProcess(
  matches: (words: readonly string[]) => boolean,
  proc = '/proc',
): number | undefined {
  return readdirSync(proc)
    .filter(name => /^\d+$/.test(name))
    .map(Number)
    .find(pid => {
      try {
        return matches(readFileSync(join(proc, String(pid), 'cmdline'), 'utf8').split('\0'))
      } catch {
        // It has ended while it was looked at.
        return false
      }
    })
}

/** One that is known by its number alone. */
export const processOf = (pid: number): QemuProcess => ({ pid, startTicks: startTicksOf(pid) ?? 0 })

/** Member 22 of proc_pid_stat(5), counted behind the name, which may contain anything; undefined when it has ended. */
function startTicksOf(pid: number): number | undefined {
  try {
    const members = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)!.split(' ')
    return members[0] === 'Z' || members[0] === 'X' ? undefined : Number(members[19])
  } catch {
    // There is no such process, or it has gone while it was looked at.
    return undefined
  }
}
