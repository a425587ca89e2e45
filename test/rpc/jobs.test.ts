import { beforeEach, describe, expect, it } from 'vitest'
import { TimerHeap } from '../../src/core/clock.ts'
import { RpcError, SysError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import { type JobOptions, type JobStatus, Jobs, type ReportProgress } from '../../src/rpc/jobs.ts'

let lines: string[]
let nowUs: number
let ended: { readonly status: JobStatus; readonly wasSaved: boolean }[]
let jobs: Jobs
let clock: TimerHeap

beforeEach(() => {
  lines = []
  logSettings.write = line => void lines.push(line)
  nowUs = 1_000_000
  ended = []
  clock = new TimerHeap(() => nowUs)
  jobs = new Jobs((status, wasSaved) => void ended.push({ status, wasSaved }), clock)
})

const FILL: JobOptions = { kind: 'fill', name: 'v', unit: 'bytes', total: 1000, isCancellable: true }

/** Work that the test reports for, and ends. */
class Work {
  report: ReportProgress = () => {}
  signal: AbortSignal | undefined
  finish: () => void = () => {}
  fail: (error: unknown) => void = () => {}

  readonly run = (report: ReportProgress, signal: AbortSignal): Promise<void> => {
    this.report = report
    this.signal = signal
    return new Promise((resolve, reject) => {
      this.finish = resolve
      this.fail = reject
      signal.addEventListener('abort', () => reject(signal.reason))
    })
  }
}

function start(options: Partial<JobOptions> = {}): { work: Work; id: number } {
  const work = new Work()
  const { job_id } = jobs.start({ ...FILL, ...options }, work.run)
  return { work, id: job_id }
}

const pass = (seconds: number): void => {
  nowUs += seconds * 1e6
}

describe('a job', () => {
  it('runs from its start to its end, and says so in the log', async () => {
    const { work, id } = start()
    expect(jobs.get(id)).toMatchObject({ state: 'running', done: 0, total: 1000, percent: 0, rate: 0 })
    expect(jobs.get(id).etaS).toBeUndefined()
    pass(4)
    work.finish()
    expect(await jobs.wait(id, 1000)).toMatchObject({
      ...{ state: 'completed', done: 1000, percent: 100, rate: 250, elapsedS: 4 },
      error: undefined,
    })
    expect(lines.map(line => line.split('rpc: ')[1])).toEqual([
      `job ${id}: fill of v started\n`,
      `job ${id}: fill of v completed after 4 s\n`,
    ])
    expect(ended).toMatchObject([{ status: { id }, wasSaved: false }])
  })

  it('tells rate and time left by what it did in the last ten seconds', () => {
    const { work, id } = start()
    for (let second = 1; second <= 20; second++) {
      pass(1)
      work.report(second <= 10 ? second * 10 : 100 + (second - 10) * 50)
    }
    expect(jobs.get(id)).toMatchObject({ done: 600, percent: 60, rate: 50, etaS: 8, elapsedS: 20 })
  })

  it('that stands still has no rate, and nobody can tell when it ends', () => {
    const { work, id } = start()
    pass(1)
    work.report(500)
    expect(jobs.get(id)).toMatchObject({ rate: 500, etaS: 1 })
    pass(60)
    expect(jobs.get(id)).toMatchObject({ rate: 0, percent: 50, etaS: undefined })
  })

  it('that goes on where an earlier run was counts only what it does itself', async () => {
    const { work, id } = start({ done: 800 })
    expect(jobs.get(id)).toMatchObject({ percent: 80, rate: 0 })
    pass(2)
    work.report(900)
    expect(jobs.get(id)).toMatchObject({ percent: 90, rate: 50, etaS: 2 })
    work.finish()
    expect((await jobs.wait(id, 0)).rate).toBe(100)
  })

  it('may learn late how much there is, and never goes back', () => {
    const { total: _, ...unknown } = FILL
    const work = new Work()
    const id = jobs.start(unknown, work.run).job_id
    work.report(10)
    expect(jobs.get(id)).toMatchObject({ done: 10, total: undefined, percent: undefined, etaS: undefined })
    work.report(20, 40)
    work.report(15)
    expect(jobs.get(id)).toMatchObject({ done: 20, total: 40, percent: 50 })
    work.report(50)
    expect(jobs.get(id)).toMatchObject({ done: 40, percent: 100 })
  })

  it.each([
    [new RpcError('ENOSPC', 'v has no room'), 'ENOSPC', 'v has no room'],
    [new SysError('pwrite', 5), 'EIO', 'pwrite: EIO'],
    [new Error('oh'), 'INTERNAL', 'Internal error: oh'],
  ])('that fails with %s keeps the reason', async (error, code, message) => {
    const { work, id } = start()
    work.report(10)
    work.fail(error)
    expect(await jobs.wait(id, 0)).toMatchObject({ state: 'failed', done: 10, error: { code, message } })
    expect(lines.at(-1)).toContain(`job ${id}: fill of v failed after 0 s: ${message}`)
  })

  it('is refused beside one of its kind on the same object', async () => {
    const { work, id } = start()
    expect(() => start()).toThrow(`job ${id} does fill to v already: see job_get`)
    start({ name: 'w' })
    start({ kind: 'wipe' })
    work.finish()
    await jobs.wait(id, 0)
    start()
    expect(jobs.list().map(({ id: number, state }) => `${number} ${state}`)).toEqual([
      '1 completed',
      '2 running',
      '3 running',
      '4 running',
    ])
  })

  it('that nobody knows is refused with those there are', () => {
    start()
    expect(() => jobs.get(7)).toThrow('there is no job 7: there are 1')
  })
})

describe('waiting for a job', () => {
  it('ends after the time that was given', async () => {
    const { id } = start()
    const waiting = jobs.wait(id, 500)
    pass(0.5)
    expect(clock.fireDue()).toBe(1)
    expect((await waiting).state).toBe('running')
  })
})

describe('cancelling a job', () => {
  it('ends it, and is no failure', async () => {
    const { work, id } = start()
    expect(await jobs.cancel(id)).toMatchObject({ state: 'cancelled', error: undefined })
    expect(work.signal?.aborted).toBe(true)
    await expect(jobs.cancel(id)).rejects.toThrow(`job ${id} (fill of v) has ended already: cancelled`)
  })

  it('is refused for one that cannot be stopped half-way', async () => {
    const { id } = start({ isCancellable: false })
    await expect(jobs.cancel(id)).rejects.toMatchObject({ code: 'ENOTSUP' })
    expect(jobs.get(id).state).toBe('running')
  })

  it('does not hide another failure', async () => {
    const id = jobs.start(FILL, async (_, signal) => {
      await new Promise(resolve => signal.addEventListener('abort', resolve))
      throw new RpcError('EIO', 'v cannot be cleaned up')
    }).job_id
    expect(await jobs.cancel(id)).toMatchObject({ state: 'failed', error: { code: 'EIO' } })
  })
})

describe('a job that is resumed', () => {
  const resume = { method: 'volume_fill', params: { name: 'v' } }

  it('is in the saved configuration as long as it runs', async () => {
    const { work, id } = start({ resume })
    start({ name: 'w' })
    expect(jobs.config()).toEqual([resume])
    work.finish()
    await jobs.wait(id, 0)
    expect(jobs.config()).toEqual([])
    expect(ended).toMatchObject([{ status: { id }, wasSaved: true }])
  })

  it('begins its work when the call that goes on with it is safe', async () => {
    let save = (): void => {}
    const saved = new Promise<void>(resolve => {
      save = resolve
    })
    const begun: string[] = []
    const saving = new Jobs(undefined, clock, () => saved)
    const resume = { method: 'volume_fill', params: {} }
    const { job_id } = saving.start({ ...FILL, resume }, async () => void begun.push('resumable'))
    saving.start({ ...FILL, name: 'v2' }, async () => void begun.push('other'))
    await Promise.resolve()
    expect(begun).toEqual(['other'])
    expect(saving.config()).toEqual([resume])
    save()
    expect(await saving.wait(job_id, 1000)).toMatchObject({ state: 'completed' })
    expect(begun).toEqual(['other', 'resumable'])
  })

  it('stays there when the daemon ends it, which does not wait for what cannot be ended', async () => {
    const { id } = start({ resume })
    start({ kind: 'flatten', isCancellable: false })
    await jobs.stop()
    expect(jobs.get(id).state).toBe('cancelled')
    expect(ended).toEqual([])
  })
})

describe('jobs that have ended', () => {
  it('are forgotten, the oldest first, but not those that run', async () => {
    const { id: running } = start({ name: 'long' })
    for (let count = 0; count < 101; count++) {
      const { work, id } = start({ name: `v${count}` })
      work.finish()
      await jobs.wait(id, 0)
    }
    const ids = jobs.list().map(({ id }) => id)
    expect(ids).toHaveLength(101)
    expect(ids.slice(0, 2)).toEqual([running, 3])
  })
})
