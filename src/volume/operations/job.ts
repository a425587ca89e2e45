/** Long work on volumes: a job, which has them to itself until it ends. */
import type { MethodCall } from '../../rpc/config.ts'
import type { JobOptions } from '../../rpc/jobs.ts'
import type { Progress } from '../pool.ts'
import type { Pool } from '../storage-pool.ts'
import type { Volumes } from '../volumes.ts'

export interface VolumeJob {
  readonly kind: string
  readonly name: string
  /** Names in the pool. */
  readonly takes: readonly string[]
  /** Volumes of any pool, as POOL/NAME. */
  readonly holds?: readonly string[]
  readonly total?: number | undefined
  readonly resume?: MethodCall
  /** Absent: it is. */
  readonly isCancellable?: boolean
  /** Refuses by throwing, when nobody else can begin anything with these volumes any more. */
  readonly check?: () => Promise<void>
}

export interface JobStarted {
  readonly job_id: number
}

/** How long the end of work is waited for that is mostly short. */
const PATIENCE_MS = 5000

/** Of work that is mostly short the job is answered only when it has not ended soon. Throws what it has failed for. */
export async function unlessSoon(volumes: Volumes, { job_id }: JobStarted): Promise<Partial<JobStarted>> {
  const { state, error } = await volumes.jobs.wait(job_id, PATIENCE_MS)
  if (error !== undefined) throw error
  return state === 'completed' ? {} : { job_id }
}

/** Long work on a pool's volumes, which has `takes` of them, or names to be, to itself. Throws `RpcError` EBUSY. */
export async function startJob(
  volumes: Volumes,
  pool: Pool,
  { kind, name, takes, holds = [], total, resume, isCancellable = true, check }: VolumeJob,
  work: (progress: Progress) => Promise<void>,
): Promise<JobStarted> {
  const doing = `${kind} of ${name}`
  const giveBack = volumes.claims.take(
    pool,
    takes,
    holds,
    `is used by ${doing}, a job that qpair job list shows`,
  )
  const letGo = pool.hold(doing)
  const free = (): void => {
    letGo()
    giveBack()
  }
  const job = {
    kind,
    name: `${pool.name}/${name}`,
    unit: 'bytes',
    isCancellable,
    ...(total === undefined ? {} : { total }),
    ...(resume === undefined ? {} : { resume }),
  } satisfies JobOptions
  try {
    await check?.()
    return volumes.jobs.start(job, async (report, signal) => {
      try {
        await work({ report, signal })
      } finally {
        free()
        await pool.lookAgain()
      }
    })
  } catch (error) {
    free()
    throw error
  }
}

/**
 * For work whose result has its name only when it is whole: it has it, so the daemon was killed between that and the job's end,
 * and nothing is left to do.
 */
export const startDone = (volumes: Volumes, pool: Pool, job: VolumeJob): Promise<JobStarted> =>
  startJob(volumes, pool, job, async () => {})
