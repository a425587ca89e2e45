import { readdirSync, readFileSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Storage } from '../support.ts'

const MIB = 2 ** 20
let storage: Storage
beforeEach(async () => {
  storage = new Storage()
  await storage.directoryPool('vms')
})
afterEach(() => storage.close())

describe('moving volumes', () => {
  const content = Buffer.concat([Buffer.alloc(3 * MIB, 0x11), Buffer.alloc(5 * MIB), Buffer.alloc(700, 0x22)])
  beforeEach(() => writeFileSync(storage.path('source'), content))

  const moved = (name: string, params: object = {}) =>
    storage.job('volume_import', { pool: 'vms', name, source: storage.path('source'), ...params })

  it('imports a file as it is', async () => {
    expect(await moved('a')).toMatchObject({ state: 'completed', error: undefined })
    expect(readFileSync(storage.path('vms/a')).equals(content)).toBe(true)
    expect(readdirSync(storage.path('vms'))).toEqual(['a'])
  })

  it('goes by way of qcow2 and comes back the same', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    expect(await moved('q', { format: 'qcow2' })).toMatchObject({ state: 'completed', error: undefined })
    expect(await storage.info('q')).toMatchObject({ format: 'qcow2', capacity: 9 * MIB })
    expect(await moved('r', { source: 'vms/q', format: 'raw' })).toMatchObject({ state: 'completed' })
    expect(readFileSync(storage.path('vms/r')).equals(readFileSync(storage.path('source')))).toBe(true)
    expect(statSync(storage.path('vms/r')).blocks * 512).toBeLessThan(5 * MIB)
  })

  it('keeps the volume that it copies as it is meanwhile', async () => {
    await moved('a')
    const { job_id } = await storage.call<{ job_id: number }>('volume_import', {
      ...{ pool: 'vms', name: 'b', source: 'vms/a', format: 'qcow2' },
    })
    await expect(storage.call('volume_delete', { volume: 'a' })).rejects.toThrow(
      'volume vms/a is used by volume_import of b, a job that qpair job list shows: wait for its end',
    )
    await storage.reactors.run(storage.jobs.wait(job_id, 60_000))
    await storage.call('volume_delete', { volume: 'a' })
  })

  it('keeps it also when it is named by a path that leads to it', async () => {
    await moved('a')
    symlinkSync(storage.path('vms/a'), storage.path('way'))
    const { job_id } = await storage.call<{ job_id: number }>('volume_import', {
      ...{ pool: 'vms', name: 'b', source: storage.path('way'), format: 'qcow2' },
    })
    await expect(storage.call('volume_delete', { volume: 'a' })).rejects.toThrow(
      'is used by volume_import of b',
    )
    await storage.reactors.run(storage.jobs.wait(job_id, 60_000))
  })

  it('refuses a source that somebody has open for writing, and says who', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    await storage.call('bdev_uring_create', { name: 'b0', filename: storage.path('source') })
    const claim = storage.bdevs.claim('b0', 'subsystem nqn.x', 'write')
    await expect(moved('a')).rejects.toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining('bdev b0 has it open for subsystem nqn.x'),
    })
    claim.release()
    await storage.call('bdev_uring_delete', { name: 'b0' })
  })

  it('takes no copy of what was changed while it was made', async () => {
    const { job_id } = await storage.call<{ job_id: number }>('volume_import', {
      ...{ pool: 'vms', name: 'a', source: storage.path('source'), format: 'qcow2' },
    })
    writeFileSync(storage.path('source'), 'another', { flag: 'r+' })
    expect(await storage.reactors.run(storage.jobs.wait(job_id, 60_000))).toMatchObject({
      ...{ state: 'failed', error: { code: 'ESTALE' } },
    })
    expect(readdirSync(storage.path('vms'))).toEqual([])
  })

  it('takes no copy of what became shorter while it was made', async () => {
    const { job_id } = await storage.call<{ job_id: number }>('volume_import', {
      ...{ pool: 'vms', name: 'a', source: storage.path('source'), format: 'qcow2' },
    })
    truncateSync(storage.path('source'), 10)
    expect(await storage.reactors.run(storage.jobs.wait(job_id, 60_000))).toMatchObject({ state: 'failed' })
    expect(readdirSync(storage.path('vms'))).toEqual([])
  })

  it.each(['1f8b08', '28b52ffd', 'fd377a585a00', '425a68'])(
    'refuses a file that is packed (%s)',
    async magic => {
      writeFileSync(storage.path('source'), Buffer.concat([Buffer.from(magic, 'hex'), Buffer.alloc(MIB)]))
      await expect(moved('a')).rejects.toThrow('is packed: unpack it first')
      expect(await moved('a', { format: 'raw' })).toMatchObject({ state: 'completed' })
    },
  )

  it('takes from a server no image that stands on a file of this machine', async () => {
    await storage.call('volume_create', { pool: 'vms', name: 'base', capacity: '1M' })
    await storage.call('volume_create', {
      pool: 'vms',
      name: 'top',
      capacity: '1M',
      format: 'qcow2',
      backing: 'base',
    })
    const image = readFileSync(storage.path('vms/top'))
    const server = createServer((_, response) => response.end(image))
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    const source = `http://127.0.0.1:${(server.address() as AddressInfo).port}/x`
    expect(await moved('a', { source })).toMatchObject({
      ...{ state: 'failed', error: { message: expect.stringContaining('is an image that stands on') } },
    })
    server.close()
    expect(readdirSync(storage.path('vms')).sort()).toEqual(['base', 'top'])
  })

  it('copies one volume several times at once, and never to one name', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    await moved('q', { format: 'qcow2' })
    const wanted = ['a', 'b', 'a', 'c'].map(name =>
      storage.call<{ job_id: number }>('volume_import', {
        ...{ pool: 'vms', name, source: 'vms/q', format: 'raw' },
      }),
    )
    const started = await storage.reactors.run(Promise.allSettled(wanted))
    expect(started.map(({ status }) => status).filter(status => status === 'rejected')).toHaveLength(1)
    for (const { id } of storage.jobs.list()) await storage.reactors.run(storage.jobs.wait(id, 60_000))
    expect(storage.jobs.list().map(({ state }) => state)).toEqual(Array(4).fill('completed'))
    const source = readFileSync(storage.path('source'))
    for (const name of ['a', 'b', 'c']) {
      expect(readFileSync(storage.path('vms', name)).equals(source), name).toBe(true)
    }
  })

  it('is done at once when it had been whole before the daemon was killed', async () => {
    await moved('a')
    expect(await moved('a', { resume: true })).toMatchObject({ state: 'completed', error: undefined })
    await expect(moved('a')).rejects.toMatchObject({ code: 'EEXIST' })
    const done = [
      ['volume_clone', { volume: 'a', name: 'b' }],
      ['volume_save', { volume: 'a', file: storage.path('out') }],
    ] as const
    for (const [method, params] of done) {
      for (const resume of [false, true]) {
        expect(await storage.job(method, { ...params, resume }), method).toMatchObject({
          ...{ state: 'completed', error: undefined },
        })
      }
      await expect(storage.job(method, params), method).rejects.toMatchObject({ code: 'EEXIST' })
    }
  })

  it('saves a volume to a file, in another format', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    await moved('q', { format: 'qcow2' })
    const saved = { volume: 'q', file: storage.path('out.raw'), format: 'raw' }
    expect(await storage.job('volume_save', saved)).toMatchObject({ state: 'completed', error: undefined })
    expect(readFileSync(storage.path('out.raw')).equals(readFileSync(storage.path('source')))).toBe(true)
    await expect(storage.call('volume_save', saved)).rejects.toMatchObject({ code: 'EEXIST' })
    await expect(storage.call('volume_save', { ...saved, file: 'out' })).rejects.toThrow('is relative')
  })

  it('flattens an image that has another beneath it', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    await moved('base')
    await storage.create('top', { capacity: undefined, format: 'qcow2', backing: 'base' })
    expect(await moved('flat', { source: 'vms/top', format: 'qcow2' })).toMatchObject({ state: 'completed' })
    expect(await storage.info('flat')).not.toHaveProperty('backing')
    await moved('r', { source: 'vms/flat', format: 'raw' })
    expect(readFileSync(storage.path('vms/r')).equals(readFileSync(storage.path('source')))).toBe(true)
  })

  it.each([
    ['/nowhere/x', 'ENOENT', '/nowhere/x cannot be read'],
    ['ftp://h/x', 'ENOTSUP', 'nbd+unix'],
    ['nbds://h/x', 'EINVAL', 'without TLS'],
    ['rbd:volumes/x', 'ENOTSUP', 'Define one of type rbd'],
    ['nix', 'ENOENT', 'nix is neither a volume nor a path (/DIR/FILE, or ./FILE where you are)'],
    ['/tmp', 'EINVAL', 'neither a file nor a block device'],
  ])('refuses the source %s', async (source, code, message) => {
    await expect(storage.call('volume_import', { pool: 'vms', name: 'a', source })).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
  })

  it('leaves nothing of an import that fails', async () => {
    const job = await moved('a', { source: 'nbd+unix:///x?socket=/nowhere/socket' })
    expect(job).toMatchObject({ state: 'failed', error: { code: 'ECONNREFUSED' } })
    expect(readdirSync(storage.path('vms'))).toEqual([])
    expect(storage.bdevs.list()).toEqual([])
  })

  it('saves no device that is there only for a copy', async () => {
    const seen: unknown[] = []
    storage.bdevs.listen({ added: () => void seen.push(...storage.bdevs.config()) })
    await moved('q', { format: 'qcow2' })
    expect([seen, storage.bdevs.list()]).toEqual([[], []])
  })
})
