/** The jobs of one reactor, started and read by message. */
import type { ReactorBdevs } from '../bdev/reactor-bdevs.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Job, type JobOptions, type JobReport } from './job.ts'

export class ReactorWorkloads {
  readonly #jobs = new Map<number, { readonly job: Job; close(): void }>()

  constructor(reactor: Reactor, bdevs: ReactorBdevs) {
    reactor.control.on<{ id: number; options: JobOptions }>('workload.start', ({ id, options }) => {
      const channel = bdevs.open(options.bdev)
      const close = (): void => bdevs.close(channel)
      try {
        const job = new Job(reactor, channel, options)
        this.#jobs.set(id, { job, close })
        job.start()
      } catch (error) {
        close()
        throw error
      }
    })
    reactor.control.on<number>('workload.report', id => this.#jobs.get(id)!.job.report())
    reactor.control.on<number>('workload.forget-pause', id => this.#jobs.get(id)!.job.forgetPause())
    reactor.control.on<number>('workload.stop', id => this.#stop(id))
  }

  #stop(id: number): Promise<JobReport> {
    const { job, close } = this.#jobs.get(id)!
    return new Promise(resolve => {
      job.stop(() => {
        this.#jobs.delete(id)
        close()
        resolve(job.report())
      })
    })
  }
}
