/** The daemon is killed at points that a seed chooses, in the middle of whatever is done to volumes that share blocks. */
import { execFile } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { settled } from './lab/json-rpc.ts'
import { CAN_MOUNT, MountNamespace } from './lab/namespace.ts'
import { findProgram } from './lab/packages.ts'

const MIB = 1 << 20
const PROGRAMS = [
  ...(['setpriv', 'unshare', 'nsenter', 'mount', 'umount', 'blkid', 'losetup', 'mkfs.xfs'] as const),
  'qemu-img',
] as const

/** How long after the request the daemon is killed, in ms, for each of the runs of one operation. */
function* killPoints(seed: number, longestMs: number): Generator<number> {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff
    yield (state / 0x7fff_ffff) * longestMs
  }
}

const RUNS = 2
const SEED = 4711

describe.skipIf(!CAN_MOUNT)('a daemon that is killed (needs root, to mount a file system)', async () => {
  await describeWith(PROGRAMS, 'a daemon that is killed', () => {
    let space: MountNamespace
    let daemon: Daemon
    const content = randomBytes(24 * MIB)
    const other = randomBytes(24 * MIB)

    /** As the daemon sees it. */
    const path = (...names: string[]): string =>
      join(`/proc/${daemon.pid}/root`, daemon.directory, 'target', ...names)
    const digest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
    const digestOf = (name: string): string => digest(readFileSync(path(name)))
    const job = async (method: string, params: object): Promise<void> => {
      const { job_id } = await daemon.rpc<{ job_id: number }>(method, params)
      const ended = await daemon.rpc('job_wait', { id: job_id, timeout_ms: 60_000 })
      expect(ended, method).toMatchObject({ state: 'completed' })
    }
    const volumes = async (): Promise<Map<string, { capacity: number; allocation: number }>> => {
      const rows = await daemon.rpc<{ name: string; capacity: number; allocation: number }[]>('volume_list')
      return new Map(rows.map(row => [row.name, row]))
    }

    beforeAll(async () => {
      space = await MountNamespace.open()
      daemon = await startDaemon({ within: space.enter })
      const medium = join(daemon.directory, 'medium')
      writeFileSync(medium, '')
      truncateSync(medium, 800 * MIB)
      const source = { source_dev: medium, source_format: 'xfs', target: join(daemon.directory, 'target') }
      await daemon.rpc('pool_define_as', { name: 'fast', type: 'fs', ...source })
      await daemon.rpc('pool_build', { pool: 'fast', overwrite: false })
      await daemon.rpc('pool_start', { pool: 'fast' })
      await daemon.rpc('pool_autostart', { pool: 'fast' })
    })
    afterAll(async () => {
      await daemon?.stop()
      await space?.close()
    })

    afterEach(async () => {
      for (const volume of (await volumes()).keys()) {
        await settled(daemon.socket, 'volume_delete', { volume, delete_snapshots: true })
      }
    })

    /** Asks for something, kills the daemon while it does it, and waits until what goes on has ended. */
    async function killDuring(afterMs: number, method: string, params: object): Promise<void> {
      const asked = daemon.rpc(method, params).catch(() => undefined)
      await delay(afterMs)
      await daemon.restart('SIGKILL')
      await asked
      // What goes on may have to wait for the pool, which the daemon starts first.
      const kept = (): Promise<unknown> => daemon.rpc('config_get_kept')
      await expect.poll(kept, { timeout: 120_000 }).toEqual([])
      const jobs = await daemon.rpc<{ id: number }[]>('job_list')
      for (const { id } of jobs) {
        const ended = await daemon.rpc('job_wait', { id, timeout_ms: 60_000 })
        expect(ended, `${method}, killed after ${afterMs} ms`).toMatchObject({ state: 'completed' })
      }
      expect(await daemon.rpc('framework_get_config', { name: 'job' })).toEqual([])
      expect(await kept()).toEqual([])
      // Nothing hidden is left, and what is there is what is listed.
      const listed = await volumes()
      expect(
        readdirSync(path())
          .filter(name => name !== '.snapshots')
          .sort(),
      ).toEqual([...listed.keys()])
      for (const [name, { capacity }] of listed) {
        if (!name.startsWith('q')) expect(statSync(path(name)).size, name).toBe(capacity)
        else await promisify(execFile)(findProgram('qemu-img')!, ['check', path(name)])
      }
    }

    /** Runs of one operation, each on volumes of its own, which are gone after it. */
    function during(what: string, longestMs: number, run: (afterMs: number) => Promise<void>): void {
      it(`${what} leaves nothing half done`, async () => {
        const points = killPoints(SEED, longestMs)
        for (let i = 0; i < RUNS; i++) {
          await run(points.next().value!)
          for (const volume of (await volumes()).keys()) {
            await settled(daemon.socket, 'volume_delete', { volume, delete_snapshots: true })
          }
          expect(readdirSync(path())).toEqual([])
        }
      })
    }

    async function make(name: string, format: string, bytes: Uint8Array): Promise<void> {
      const file = join(daemon.directory, 'source')
      writeFileSync(file, bytes)
      await job('volume_import', { pool: 'fast', name, source: file, format })
    }

    during('while it preallocates', 150, async afterMs => {
      await killDuring(afterMs, 'volume_create', {
        ...{ pool: 'fast', name: 'a', capacity: '400M', preallocation: 'full' },
      })
      const made = (await volumes()).get('a')
      if (made !== undefined) expect(made.allocation).toBeGreaterThanOrEqual(400 * MIB)
    })

    during('while it grows a volume', 100, async afterMs => {
      await make('a', 'raw', content)
      await killDuring(afterMs, 'volume_resize', { volume: 'a', capacity: '400M', allocate: true })
      const { capacity, allocation } = (await volumes()).get('a')!
      expect([content.length, 400 * MIB]).toContain(capacity)
      if (capacity === 400 * MIB) expect(allocation).toBeGreaterThanOrEqual(capacity)
    })

    during('while it copies a volume', 60, async afterMs => {
      await make('a', 'raw', content)
      await killDuring(afterMs, 'volume_clone', { volume: 'a', name: 'a2' })
      if ((await volumes()).has('a2')) expect(digestOf('a2')).toBe(digestOf('a'))
    })

    describe.each(['raw', 'qcow2'])('of a %s volume', format => {
      const name = format === 'raw' ? 'a' : 'q'

      during('while it makes a snapshot', 40, async afterMs => {
        await make(name, format, content)
        await killDuring(afterMs, 'volume_snapshot_create', { volume: name, snapshot: 'one' })
        const rows = await daemon.rpc<{ name: string }[]>('volume_snapshot_list', { volume: name })
        expect(rows.map(row => row.name)).toEqual(rows.length === 0 ? [] : ['one'])
      })

      during('while it goes back to a snapshot', 40, async afterMs => {
        await make(name, format, content)
        const before = digestOf(name)
        await daemon.rpc('volume_snapshot_create', { volume: name, snapshot: 'one' })
        if (format === 'raw') writeFileSync(path(name), other)
        await killDuring(afterMs, 'volume_snapshot_revert', { volume: name, snapshot: 'one' })
        if (format === 'raw') expect([before, digest(other)]).toContain(digestOf(name))
        expect(await daemon.rpc('volume_snapshot_list', { volume: name })).toMatchObject([{ name: 'one' }])
      })

      during('while it wipes a volume', 60, async afterMs => {
        await make(name, format, content)
        const before = digestOf(name)
        await daemon.rpc('volume_snapshot_create', { volume: name, snapshot: 'one' })
        const untouched = format === 'raw' ? before : digestOf(name)
        await killDuring(afterMs, 'volume_wipe', { volume: name })
        if (digestOf(name) !== untouched)
          expect(readFileSync(path(name)).includes(content.subarray(0, 64))).toBe(false)
        else expect(digestOf(name)).toBe(untouched)
      })

      during('while it imports', 150, async afterMs => {
        const source = join(daemon.directory, 'source')
        writeFileSync(source, content)
        await killDuring(afterMs, 'volume_import', { pool: 'fast', name, source, format })
        if (!(await volumes()).has(name)) return
        const words = ['compare', '-f', 'raw', '-F', format, source, path(name)]
        await promisify(execFile)(findProgram('qemu-img')!, words)
      })
    })

    it('says of a file system that has become read only that it is', async () => {
      const target = join(daemon.directory, 'target')
      const source = join(daemon.directory, 'source')
      writeFileSync(source, content)
      await space.run('mount', '-o', 'remount,ro', target)
      try {
        for (const format of ['raw', 'qcow2']) {
          const wanted = { pool: 'fast', name: 'a', capacity: '1M', format }
          await expect(daemon.rpc('volume_create', wanted)).rejects.toThrow(
            /^cannot open .*EROFS|cannot be written: EROFS/,
          )
          const { job_id } = await daemon.rpc<{ job_id: number }>('volume_import', {
            ...{ pool: 'fast', name: 'a', source, format },
          })
          expect(await daemon.rpc('job_wait', { id: job_id, timeout_ms: 60_000 })).toMatchObject({
            ...{ state: 'failed', error: { message: expect.stringContaining('EROFS') } },
          })
        }
      } finally {
        await space.run('mount', '-o', 'remount,rw', target)
      }
      expect(readdirSync(path())).toEqual([])
    })

    it('makes nothing in a mount point from which somebody has taken the file system', async () => {
      const target = join(daemon.directory, 'target')
      const source = join(daemon.directory, 'source')
      writeFileSync(source, randomBytes(300 * MIB))
      await daemon.rpc('volume_create', { pool: 'fast', name: 'kept', capacity: '1M' })
      const wanted = { pool: 'fast', name: 'a', source, format: 'qcow2' }
      const { job_id } = await daemon.rpc<{ job_id: number }>('volume_import', wanted)
      // Or a copy that is quick has ended before a busy machine has started the program.
      daemon.signal('SIGSTOP')
      await space.run('umount', '--lazy', target).finally(() => daemon.signal('SIGCONT'))
      const ended = await daemon.rpc('job_wait', { id: job_id, timeout_ms: 60_000 })
      expect(ended).toMatchObject({
        state: 'failed',
        error: { message: expect.stringContaining('is not mounted on') },
      })
      for (const [method, params] of [
        ['volume_create', { pool: 'fast', name: 'b', capacity: '1M' }],
        ['volume_resize', { volume: 'kept', capacity: '2M' }],
        ['volume_list', { pool: 'fast' }],
      ] as const) {
        await expect(daemon.rpc(method, params), method).rejects.toThrow('is not mounted on')
      }
      expect(readdirSync(path())).toEqual([])
      await daemon.rpc('pool_destroy', { pool: 'fast' })
      await daemon.rpc('pool_start', { pool: 'fast' })
      expect([...(await volumes()).keys()]).toEqual(['kept'])
    })

    it('while it renames a volume keeps its snapshots with it', async () => {
      const points = killPoints(SEED, 25)
      for (let i = 0; i < RUNS; i++) {
        await make('a', 'raw', content)
        await daemon.rpc('volume_snapshot_create', { volume: 'a', snapshot: 'one' })
        await killDuring(points.next().value!, 'volume_rename', { volume: 'a', name: 'b' })
        const [name] = (await volumes()).keys()
        expect(await daemon.rpc('volume_snapshot_list', { volume: name })).toMatchObject([{ name: 'one' }])
        await settled(daemon.socket, 'volume_delete', { volume: name, delete_snapshots: true })
        expect(readdirSync(path())).toEqual([])
      }
    })
  })
})
