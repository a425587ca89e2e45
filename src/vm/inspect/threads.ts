/** The threads of a QEMU process by what they do, and what each of them has of a processor, from /proc. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { findProcess } from '../run/qemu-process.ts'

/** USER_HZ: Linux shows times to programs in hundredths of a second, whatever the kernel counts in. */
const TICKS_PER_SECOND = 100

export interface ThreadReading {
  readonly tid: number
  /** As the thread calls itself: at most 15 characters. */
  readonly comm: string
  /** User and system time since it started. */
  readonly ticks: number
}

/** proc_pid_stat(5): the name may contain anything, so that the members are counted behind its last parenthesis. */
export function readThreads(pid: number, proc = '/proc'): ThreadReading[] {
  const tasks = join(proc, String(pid), 'task')
  return readdirSync(tasks).flatMap(name => {
    try {
      const stat = readFileSync(join(tasks, name, 'stat'), 'utf8')
      const comm = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'))
      const members = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      return [{ tid: Number(name), comm, ticks: Number(members[11]) + Number(members[12]) }]
    } catch (error) {
      // Workers come and go.
      if (isGone(error)) return []
      throw error
    }
  })
}

const isGone = (error: unknown): boolean =>
  ['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')

/** What QEMU's monitor knows of its threads by their numbers. */
export interface KnownThreads {
  readonly pid: number
  readonly vcpus: ReadonlyMap<number, number>
  readonly iothreads: ReadonlyMap<number, string>
}

const NAMED: readonly (readonly [pattern: RegExp, role: (match: RegExpExecArray) => string])[] = [
  [/^CPU (\d+)\//, ([, index]) => `vCPU ${index}`],
  [/^IO mon_iothread/, () => 'monitor'],
  [/^IO (.+)/, ([, name]) => `I/O thread ${name}`],
  [/^SPICE Worker/, () => 'SPICE'],
  [/^vnc_worker/, () => 'VNC'],
  [/^call_rcu/, () => 'RCU'],
  [/^(?:worker|thread-pool)/, () => 'worker'],
  [/^iou-(?:wrk|sqp)/, () => 'io_uring'],
  [/^vhost-/, () => 'vhost in the kernel'],
  [/^kvm-/, () => 'KVM'],
  [/^(?:gmain|gdbus|pool-)/, () => 'GLib'],
]

export function roleOf({ tid, comm }: Pick<ThreadReading, 'tid' | 'comm'>, known: KnownThreads): string {
  if (tid === known.pid) return 'main loop'
  const vcpu = known.vcpus.get(tid)
  if (vcpu !== undefined) return `vCPU ${vcpu}`
  const iothread = known.iothreads.get(tid)
  if (iothread !== undefined) return iothread === 'mon_iothread' ? 'monitor' : `I/O thread ${iothread}`
  for (const [pattern, role] of NAMED) {
    const match = pattern.exec(comm)
    if (match !== null) return role(match)
  }
  return 'other'
}

/** Percent of one processor between two readings; 0 for a thread that was not there before. */
export function cpuPercent(before: readonly ThreadReading[], now: ThreadReading, elapsedMs: number): number {
  const earlier = before.find(({ tid }) => tid === now.tid)
  if (earlier === undefined) return 0
  const seconds = (now.ticks - earlier.ticks) / TICKS_PER_SECOND
  return Math.round((seconds * 100_000) / elapsedMs)
}

export interface MemoryReading {
  /** All in bytes. What of the guest's memory is in the machine's. */
  readonly resident: number
  /** The same, what several processes share counted in parts. */
  readonly proportional: number
  /** Huge pages that the kernel has made by itself. */
  readonly transparentHuge: number
  /** Huge pages that were reserved for this. */
  readonly reservedHuge: number
  readonly locked: number
  readonly swapped: number
}

/** proc_pid_smaps_rollup; undefined when this user may not look. */
export function readMemory(pid: number, proc = '/proc'): MemoryReading | undefined {
  let text: string
  try {
    text = readFileSync(join(proc, String(pid), 'smaps_rollup'), 'utf8')
  } catch (error) {
    if (['EACCES', 'EPERM'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  }
  const bytes = (...names: readonly string[]): number =>
    names.reduce(
      (sum, name) => sum + 1024 * Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0),
      0,
    )
  return {
    resident: bytes('Rss', 'Shared_Hugetlb', 'Private_Hugetlb'),
    proportional: bytes('Pss', 'Private_Hugetlb'),
    transparentHuge: bytes('AnonHugePages', 'ShmemPmdMapped', 'FilePmdMapped'),
    reservedHuge: bytes('Shared_Hugetlb', 'Private_Hugetlb'),
    locked: bytes('Locked'),
    swapped: bytes('Swap'),
  }
}

/** The QEMU process of a domain, by the UUID among its arguments; undefined when there is none, or it cannot be seen. */
export const processOfUuid = (uuid: string, proc = '/proc'): number | undefined =>
  findProcess(words => words.includes('-uuid') && words[words.indexOf('-uuid') + 1] === uuid, proc)
