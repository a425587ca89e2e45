/** Asking about jobs, and ending them. */
import { z } from 'zod'
import type { JobStatus, Jobs } from './jobs.ts'
import { method } from './method.ts'

export interface NeedsJobs {
  readonly jobs: Jobs
}

/** What a method answers that starts a job. */
export const jobStarted = z.object({ job_id: z.int().describe('See job_get') })

const jobStatus = z.object({
  id: z.int(),
  kind: z.string().describe('What is done'),
  name: z.string().describe('To what'),
  state: z.enum(['running', 'completed', 'failed', 'cancelled']),
  unit: z.enum(['bytes', 'objects']).describe('Of done, total and rate'),
  done: z.number(),
  total: z.number().optional().describe('Absent as long as nobody knows'),
  percent: z.int().optional(),
  rate: z.number().describe('A second'),
  eta_seconds: z.number().optional().describe('How long it still takes at this rate'),
  started: z.string().describe('As in ISO 8601'),
  elapsed_seconds: z.number(),
  cancellable: z.boolean(),
  error: z.object({ code: z.int(), message: z.string() }).optional().describe('Why it failed'),
})
/** A job as it travels. */
export type WireJob = z.output<typeof jobStatus>

const id = z.int().min(1).describe('The job')
const NO_JOB = { ENOENT: 'there is no job of that number; of those that ended, the last hundred are kept' }
const columns = [
  'id',
  'kind',
  'name',
  'state',
  { title: '%', value: ({ percent }: WireJob) => percent },
  { title: 'seconds left', value: ({ eta_seconds }: WireJob) => eta_seconds },
  { title: 'error', value: ({ error }: WireJob) => error?.message },
]

const jobList = method({
  name: 'job_list',
  summary: 'Lists what takes long: jobs that run, and those that ended lately.',
  params: z.object({}),
  result: z.array(jobStatus),
  cli: { columns },
  run: (_, { jobs }: NeedsJobs) => jobs.list().map(toWire),
})

const jobGet = method({
  name: 'job_get',
  summary: 'Tells how far a job is.',
  params: z.object({ id }),
  result: jobStatus,
  errors: NO_JOB,
  cli: { positional: ['id'], columns },
  run: (params, { jobs }: NeedsJobs) => toWire(jobs.get(params.id)),
})

const jobWait = method({
  name: 'job_wait',
  summary: 'Answers when a job has ended, or when the time is over, with how far it is.',
  params: z.object({
    id,
    timeout_ms: z.int().min(0).max(3_600_000).default(1000).describe('How long to wait'),
  }),
  result: jobStatus,
  errors: NO_JOB,
  cli: { positional: ['id'], job: ({ id: number }) => number },
  run: async (params, { jobs }: NeedsJobs) => toWire(await jobs.wait(params.id, params.timeout_ms)),
})

const jobCancel = method({
  name: 'job_cancel',
  summary: 'Ends a job, and answers when it has ended. Nothing half done is left of it.',
  params: z.object({ id }),
  result: jobStatus,
  errors: { ...NO_JOB, EINVAL: 'it has ended before', ENOTSUP: 'it cannot be stopped half-way' },
  concurrent: true,
  cli: { positional: ['id'], columns },
  run: async (params, { jobs }: NeedsJobs) => toWire(await jobs.cancel(params.id)),
})

function toWire(job: JobStatus): WireJob {
  const { id: number, kind, name, state, unit, done, total, percent, rate, etaS, error } = job
  return {
    ...{ id: number, kind, name, state, unit, done },
    ...(total === undefined ? {} : { total }),
    ...(percent === undefined ? {} : { percent }),
    rate: Math.round(rate),
    ...(etaS === undefined ? {} : { eta_seconds: etaS }),
    started: job.started.toISOString(),
    elapsed_seconds: Math.round(job.elapsedS * 10) / 10,
    cancellable: job.isCancellable,
    ...(error === undefined ? {} : { error: { code: error.number, message: error.message } }),
  }
}

export const jobMethods = [jobList, jobGet, jobWait, jobCancel]
