/** What front ends do that mean harm is their own affair: the daemon and another guest's disk do not notice. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Prng } from '../../src/core/prng.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { HostileFrontEnd } from './lab/hostile-front-end.ts'
import { type Controller, startVhost, type VhostTarget } from './lab/vhost.ts'

const SESSIONS = 120
const AT_ONCE = 3

interface Report {
  readonly reads: number
  readonly errors: number
  readonly miscompares: number
}

describe('hundreds of hostile front ends', () => {
  let target: VhostTarget
  let host: Daemon
  let workload: number

  /** A disk of another front end, used and verified all the time. */
  beforeEach(async () => {
    target = await startVhost({ args: ['--reactors', '2'] })
    host = await startDaemon({ args: ['--reactors', '1'] })
    const { daemon } = target
    const filename = target.image('image', 64 << 20)
    await daemon.rpc('bdev_aio_create', { name: 'file', filename, block_size: 512 })
    for (const name of ['memory', 'other']) {
      await daemon.rpc('bdev_malloc_create', { name, block_size: 512, num_blocks: 131_072 })
    }
    const latencies = ['avg_read', 'p99_read', 'avg_write', 'p99_write'].map(name => [
      `${name}_latency`,
      20_000,
    ])
    await daemon.rpc('bdev_delay_create', {
      base_bdev_name: 'other',
      name: 'slow',
      ...Object.fromEntries(latencies),
    })
    await target.serveBlk('good', 'file')
    const traddr = join(target.sockets, 'good')
    await host.rpc('bdev_virtio_attach_controller', { name: 'V0', trtype: 'user', traddr, dev_type: 'blk' })
    workload = await host.rpc('workload_start', {
      bdev_name: 'V0',
      verify: true,
      read_percent: 50,
      queue_depth: 8,
    })
  })
  afterEach(async () => {
    await host.stop()
    await target.stop()
  })

  const reads = async (): Promise<number> =>
    (await host.rpc<Report[]>('workload_get', { id: workload }))[0]!.reads
  const descriptors = (): number => readdirSync(`/proc/${target.daemon.pid}/fd`).length
  const sharedMappings = (): number =>
    readFileSync(`/proc/${target.daemon.pid}/maps`, 'utf8')
      .split('\n')
      .filter(line => line.includes('/memfd:')).length

  /** Resolves when nobody is connected to it any more. */
  async function untilLeft(ctrlr: string): Promise<void> {
    for (;;) {
      const [controller] = await target.daemon.rpc<Controller[]>('vhost_get_controllers', { name: ctrlr })
      if (controller!.sessions.length === 0) return
      await delay(5)
    }
  }

  it.each([
    ['a disk in memory', 1, () => target.serveBlk('bad', 'memory')],
    [
      'a disk that is slow, over rings of both kinds',
      2,
      () => target.serveBlk('bad', 'slow', { packed_ring: true }),
    ],
    ['a SCSI adapter', 3, () => target.serveScsi('bad', ['memory', 'slow'])],
  ])('of %s', async (_, seed, serve) => {
    const path = await serve()
    const before = { descriptors: descriptors(), mappings: sharedMappings() }
    const prng = new Prng(seed)
    for (let done = 0; done < SESSIONS; done += AT_ONCE) {
      const frontEnds = Array.from({ length: AT_ONCE }, () => new HostileFrontEnd(path, prng))
      await Promise.all(frontEnds.map(frontEnd => frontEnd.run()))
      for (const frontEnd of frontEnds) frontEnd.hangUp()
      await untilLeft('bad')
    }
    // A descriptor of this test's own last call may be among them for a while.
    while (descriptors() > before.descriptors) await delay(5)
    expect(sharedMappings()).toBe(before.mappings)
    const sofar = await reads()
    while ((await reads()) < sofar + 100) await delay(5)
    expect(await host.rpc('workload_stop', { id: workload })).toMatchObject({ errors: 0, miscompares: 0 })
    expect(host.output).not.toContain('goes on')
    // It has something to say about nearly each of them, and never that it failed itself.
    expect(target.daemon.output).toContain('is disconnected')
    expect(target.daemon.output).not.toMatch(/ failed: |did not end in order/)
  })
})
