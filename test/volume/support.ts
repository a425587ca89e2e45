/** Pools and volumes with everything beneath them real, in a directory of their own, on a reactor that is polled here. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { vi } from 'vitest'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { bdevMethods } from '../../src/bdev/methods.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import type { Clock } from '../../src/core/clock.ts'
import { logSettings } from '../../src/core/log.ts'
import { RbdImages } from '../../src/rbd/images.ts'
import { Dispatcher } from '../../src/rpc/dispatcher.ts'
import { jobMethods } from '../../src/rpc/job-methods.ts'
import { type JobStatus, Jobs } from '../../src/rpc/jobs.ts'
import { storageMethods } from '../../src/volume/methods.ts'
import type { PoolBackendType } from '../../src/volume/pool.ts'
import { StoragePools } from '../../src/volume/pools.ts'
import { Secrets } from '../../src/volume/secrets.ts'
import { ReactorDisks } from '../../src/volume/transfer/reactor-disk.ts'
import { Volumes, type VolumesOptions } from '../../src/volume/volumes.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

const methods = [...bdevMethods, ...storageMethods, ...jobMethods]

interface StorageOptions {
  readonly types?: readonly PoolBackendType[]
  readonly isStarting?: boolean
  /** For jobs, and for those who wait for them. */
  readonly clock?: Clock
  readonly guestsOf?: VolumesOptions['guestsOf']
}

export class Storage {
  readonly directory = mkdtempSync(join(tmpdir(), 'qpair-volume-'))
  readonly reactors = new LocalReactorGroup({ ring: true, time: 'real' })
  readonly bdevs = new BdevRegistry(this.reactors, drivers)
  readonly jobs: Jobs
  readonly secrets = new Secrets(join(this.directory, 'secrets'))
  /** What was notified of. */
  readonly notified: string[] = []
  /** What was logged. */
  readonly logged: string[] = []
  readonly pools: StoragePools
  readonly volumes: Volumes
  readonly #dispatcher

  constructor(options: StorageOptions = {}) {
    this.jobs = new Jobs(() => {}, options.clock)
    for (const reactor of this.reactors.reactors) {
      new ReactorDisks(reactor, new ReactorBdevs(reactor, drivers))
    }
    vi.spyOn(logSettings, 'write').mockImplementation(line => void this.logged.push(line))
    const call = (method: string, params?: unknown): Promise<unknown> => this.#dispatcher.call(method, params)
    const replay = (method: string, params?: unknown): Promise<unknown> =>
      this.#dispatcher.replay(method, params)
    this.pools = new StoragePools({
      services: { call, rbd: new RbdImages(this.bdevs, this.reactors), secrets: this.secrets },
      notify: (type, context) => void this.notified.push(`${type} ${context}`),
      ...(options.types === undefined ? {} : { types: options.types }),
    })
    if (options.isStarting !== true) this.pools.daemonIsUp()
    const { bdevs, jobs, pools, reactors, secrets } = this
    this.volumes = new Volumes({
      ...{ bdevs, jobs, pools, reactors, call, replay },
      ...(options.guestsOf === undefined ? {} : { guestsOf: options.guestsOf }),
    })
    this.#dispatcher = new Dispatcher({
      methods,
      context: {
        ...{ bdevs, jobs, pools, secrets, volumes: this.volumes },
        rpc: { state: 'runtime' as const, methods },
      },
    })
  }

  path(...names: readonly string[]): string {
    return join(this.directory, ...names)
  }

  /** Calls a method as a client would. */
  call<T = unknown>(method: string, params: object = {}): Promise<T> {
    return this.reactors.run(this.#dispatcher.call(method, params)) as Promise<T>
  }

  /** Calls a method that starts a job, and resolves with how that ended. */
  async job(method: string, params: object = {}): Promise<JobStatus> {
    const { job_id } = await this.call<{ job_id: number }>(method, params)
    return this.reactors.run(this.jobs.wait(job_id, 60_000))
  }

  /** A pool of a directory of its own, running. */
  async directoryPool(name: string): Promise<void> {
    await this.call('pool_define', { xml: directoryXml(name, this.path(name)) })
    await this.call('pool_start', { pool: name, build: true })
  }

  /** A volume of 64 MiB, unless told otherwise. */
  create(name: string, params: object = {}, pool = 'vms'): Promise<unknown> {
    return this.call('volume_create', { pool, name, capacity: '64M', ...params })
  }

  /** A bdev `b0` over a volume of the pool `vms`, as an export would make it. */
  async open(volume: string): Promise<void> {
    await this.call('bdev_uring_create', { name: 'b0', filename: this.path('vms', volume) })
  }

  /** Of volumes. */
  async names(params: object = {}): Promise<string[]> {
    return (await this.call<{ name: string }[]>('volume_list', params)).map(({ name }) => name)
  }

  /** Of a volume. */
  info(volume: string): Promise<Record<string, unknown>> {
    return this.call('volume_info', { volume })
  }

  close(): void {
    this.pools.stop()
    this.reactors.close()
    rmSync(this.directory, { recursive: true })
    vi.restoreAllMocks()
  }
}

export const directoryXml = (name: string, path: string): string =>
  `<pool type='dir'><name>${name}</name><target><path>${path}</path></target></pool>`
