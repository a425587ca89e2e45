import { beforeEach, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { complete } from '../../src/cli/completion.ts'
import { progressLine } from '../../src/cli/follow-job.ts'
import { main } from '../../src/cli/main.ts'
import { RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import { Dispatcher, type RpcInfo } from '../../src/rpc/dispatcher.ts'
import { jobMethods, jobStarted, type NeedsJobs, type WireJob } from '../../src/rpc/job-methods.ts'
import { Jobs, type JobWork } from '../../src/rpc/jobs.ts'
import { method } from '../../src/rpc/method.ts'
import { serveMethods } from '../rpc/support.ts'
import { loaded, RecordingTerminal } from './support.ts'

beforeEach(() => {
  logSettings.write = () => {}
})

interface Context extends NeedsJobs {
  readonly rpc: RpcInfo
  readonly work: JobWork
}

const paint = method({
  name: 'wall_paint',
  summary: 'Paints a wall.',
  params: z.object({ name: z.string() }),
  result: jobStarted,
  cli: { positional: ['name'], job: ({ job_id }) => job_id },
  run: ({ name }, { jobs, work }: Context) =>
    jobs.start({ kind: 'wall_paint', name, unit: 'bytes', total: 2048, isCancellable: true }, work),
})
const table = [paint, ...jobMethods]

/** A daemon whose walls are painted by `work`, and a command line that finds it. */
async function wall(work: JobWork, isTerminal: boolean) {
  const jobs = new Jobs()
  const rpc: RpcInfo = { state: 'runtime', methods: table }
  const { address } = await serveMethods(
    new Dispatcher<Context>({ methods: table, context: { rpc, jobs, work } }),
  )
  const terminal = new RecordingTerminal({ isTerminal, env: { QPAIR_SOCKET: address, NO_COLOR: '1' } })
  return { jobs, terminal, qpair: (...args: string[]) => main(args, terminal, loaded(table)) }
}

describe('a command that starts a job', () => {
  it('waits for its end and prints nothing, unless somebody reads along', async () => {
    const { qpair, terminal } = await wall(async () => {}, false)
    expect(await qpair('wall', 'paint', 'north')).toBe(0)
    expect([terminal.out, terminal.error]).toEqual(['', ''])
  })

  it('shows on a terminal how far it is, and that it has ended', async () => {
    let shown = (): void => {}
    const seen = new Promise<void>(resolve => {
      shown = resolve
    })
    const { qpair, terminal } = await wall(async report => {
      report(1024)
      await seen
    }, true)
    terminal.interruptsAt = text => {
      if (text.includes('50 %')) shown()
      return false
    }
    expect(await qpair('wall', 'paint', 'north')).toBe(0)
    expect(terminal.out).toContain(
      '\r\u001b[Kwall_paint north [============>           ]  50 %  1 KiB of 2 KiB',
    )
    expect(terminal.out.slice(terminal.out.lastIndexOf('\r'))).toMatch(
      /wall_paint north: completed after 0:0\d\n$/,
    )
  })

  it('exits with 1 and says why when the job fails', async () => {
    const { qpair, terminal } = await wall(async () => {
      throw new RpcError('ENOSPC', 'there is no paint left')
    }, false)
    expect(await qpair('wall', 'paint', 'north')).toBe(1)
    expect([terminal.out, terminal.error]).toEqual(['', 'qpair: there is no paint left\n'])
  })

  it('prints the job as it ended with --json', async () => {
    const { qpair, terminal } = await wall(async () => {}, true)
    expect(await qpair('wall', 'paint', 'north', '--json')).toBe(0)
    expect(JSON.parse(terminal.out)).toMatchObject({ id: 1, state: 'completed', percent: 100, total: 2048 })
  })

  it('leaves the job to itself with --no-wait, and another follows it or ends it', async () => {
    const { qpair, terminal, jobs } = await wall(
      (_, signal) =>
        new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
      false,
    )
    expect(await qpair('wall', 'paint', 'north', '--no-wait')).toBe(0)
    expect(JSON.parse(terminal.out)).toEqual({ job_id: 1 })
    const followed = qpair('job', 'wait', '1')
    expect(await qpair('job', 'cancel', '1')).toBe(0)
    expect(await followed).toBe(1)
    expect(terminal.error).toBe('job 1 was ended: wall_paint of north is not done\n')
    expect(jobs.get(1).state).toBe('cancelled')
  })

  it('is left by Ctrl-C while the job goes on, and says how to look at it', async () => {
    let finish = (): void => {}
    const { qpair, terminal, jobs } = await wall(
      () =>
        new Promise(resolve => {
          finish = resolve
        }),
      true,
    )
    terminal.interruptsAt = text => text.includes('wall_paint north')
    expect(await qpair('wall', 'paint', 'north')).toBe(130)
    expect(terminal.error).toContain(
      'job 1 goes on in the daemon: "qpair job wait 1" follows it, "qpair job cancel 1" ends it\n',
    )
    expect(jobs.get(1).state).toBe('running')
    finish()
  })

  it('has --no-wait in its help and among its completions', async () => {
    const { qpair, terminal } = await wall(async () => {}, false)
    expect(await complete(loaded(table), ['wall', 'paint', ''])).toContain('--no-wait')
    expect(await qpair('wall', 'paint', '--help')).toBe(0)
    expect(terminal.out).toContain('--no-wait')
  })
})

describe('the line of a job', () => {
  const job: WireJob = {
    ...{ id: 1, kind: 'volume_fill', name: 'v', state: 'running', unit: 'bytes', cancellable: true },
    ...{ done: 3 * 2 ** 20, total: 2 ** 30, percent: 0, rate: 2 ** 20, eta_seconds: 3725 },
    ...{ started: '2026-11-21T10:00:00.000Z', elapsed_seconds: 3 },
  }

  it('tells amounts, rate and time left', () => {
    expect(progressLine(job, 120)).toBe(
      'volume_fill v [>                       ]   0 %  3 MiB of 1 GiB, 1 MiB/s, 1:02:05 left',
    )
  })

  it('has no bar when nobody knows how much there is', () => {
    const { total: _total, percent: _percent, eta_seconds: _eta, ...rest } = job
    expect(progressLine(rest, 120)).toBe('volume_fill v  3 MiB, 1 MiB/s')
  })

  it('counts objects where they are what is counted, and is full at the end', () => {
    expect(
      progressLine({ ...job, unit: 'objects', done: 7, total: 7, percent: 100, eta_seconds: 0 }, 120),
    ).toBe('volume_fill v [========================] 100 %  7 of 7, 0:00 left')
  })

  it('is narrower than the terminal', () => {
    expect(progressLine(job, 40)).toHaveLength(39)
  })
})
