/** What other programs do to the storage of a pool meanwhile, and between two lives of the daemon: nothing of theirs is touched. */
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { FileVolumes } from '../../src/volume/file-volumes.ts'
import { renameFree } from '../../src/volume/formats/raw.ts'
import { identityOf } from '../../src/volume/transfer/source.ts'
import { checkNoteName, nameOwner, partialName, partialStateName } from '../../src/volume/volume-name.ts'
import { directoryXml, Storage } from './support.ts'

const MIB = 2 ** 20
const PRECIOUS = Buffer.alloc(MIB, 0x11)
let storage: Storage
beforeEach(async () => {
  storage = new Storage()
  await storage.directoryPool('vms')
})
afterEach(() => storage.close())

const inPool = (...names: readonly string[]): string => storage.path('vms', ...names)
const create = (name: string, params: object = {}): Promise<unknown> =>
  storage.call('volume_create', { pool: 'vms', name, capacity: '1M', ...params })

interface Saved {
  readonly method: string
  readonly params: Readonly<Record<string, unknown>>
}

/** The call that would go on with a job if the daemon were killed now. */
async function begun(method: string, params: object): Promise<Saved> {
  const { job_id } = await storage.call<{ job_id: number }>(method, params)
  const [call] = storage.jobs.config()
  await storage.reactors.run(storage.jobs.wait(job_id, 60_000))
  return call as Saved
}

describe('a volume that another program has changed since the last look', () => {
  it('is not cut off by what would have been its growth', async () => {
    await create('a')
    truncateSync(inPool('a'), 8 * MIB)
    await expect(storage.call('volume_resize', { volume: 'a', capacity: '4M' })).rejects.toThrow(
      'has 8 MiB and would shrink to 4 MiB',
    )
    expect(statSync(inPool('a')).size).toBe(8 * MIB)
  })

  it.each([
    ['volume_delete', {}],
    ['volume_rename', { name: 'b' }],
    ['volume_resize', { capacity: '4M' }],
    ['volume_wipe', {}],
  ])('is left alone when it is another: %s', async (method, params) => {
    await create('a')
    // So that it does not get the same inode.
    writeFileSync(inPool('.other'), '')
    rmSync(inPool('a'))
    writeFileSync(inPool('a'), PRECIOUS)
    await expect(storage.call(method, { volume: 'a', ...params })).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining('volume vms/a is not the one that it was'),
    })
    expect(readFileSync(inPool('a')).equals(PRECIOUS)).toBe(true)
    await storage.call('volume_delete', { volume: 'a' })
  })
})

describe('a file of two names', () => {
  beforeEach(async () => {
    await create('a')
    linkSync(inPool('a'), storage.path('backup'))
    writeFileSync(inPool('a'), PRECIOUS)
    await storage.call('pool_refresh', { pool: 'vms' })
  })

  it('is changed in place only when that is said', async () => {
    for (const [method, params] of [
      ['volume_wipe', {}],
      ['volume_resize', { capacity: '2M' }],
    ] as const) {
      await expect(storage.call(method, { volume: 'a', ...params })).rejects.toThrow('the file has 2 names')
    }
    expect(readFileSync(storage.path('backup')).equals(PRECIOUS)).toBe(true)
    await storage.call('volume_resize', { volume: 'a', capacity: '2M', follow_link: true })
  })

  it('is in use by both when one is open', async () => {
    await storage.call('bdev_uring_create', { name: 'b0', filename: storage.path('backup') })
    await expect(storage.call('volume_delete', { volume: 'a' })).rejects.toThrow('bdev b0 has it open')
  })
})

it('refuses to start a pool whose storage another has by another name', async () => {
  await storage.call('pool_define', { xml: directoryXml('alias', storage.path('alias')) })
  symlinkSync(inPool(), storage.path('alias'))
  writeFileSync(inPool(partialName('a')), PRECIOUS)
  await expect(storage.call('pool_start', { pool: 'alias' })).rejects.toMatchObject({
    code: 'EEXIST',
    message: expect.stringContaining("conflict with pool: 'vms'"),
  })
  expect(existsSync(inPool(partialName('a')))).toBe(true)
})

describe('work that goes on', () => {
  it.each([
    ['volume_wipe', {}],
    ['volume_clone', { name: 'b' }],
    ['volume_save', { file: '/nowhere/x' }],
  ])('is that on the volume that was named, in its pool: %s', async (method, params) => {
    await create('a')
    const given = { ...params, ...('file' in params ? { file: storage.path('out') } : {}) }
    const call = await begun(method, { volume: 'a', ...given })
    expect(call).toMatchObject({ method, params: { volume: 'a', pool: 'vms', resume: true } })
    expect(call.params['identity']).toMatch(/^\d+:/)
  })

  it('is not done to another volume that has the name by then', async () => {
    await create('a')
    const { method, params } = await begun('volume_wipe', { volume: 'a' })
    writeFileSync(inPool('.other'), '')
    rmSync(inPool('a'))
    writeFileSync(inPool('a'), PRECIOUS)
    await storage.call('pool_refresh', { pool: 'vms' })
    await expect(storage.call(method, params)).rejects.toThrow('volume vms/a is not the one that it was')
    expect(readFileSync(inPool('a')).equals(PRECIOUS)).toBe(true)
  })

  it('waits for the file system that it was begun on', async () => {
    writeFileSync(storage.path('source'), PRECIOUS)
    const imported = { pool: 'vms', name: 'b', source: storage.path('source') }
    const saved = { volume: 'b', file: storage.path('out') }
    for (const [method, given] of [
      ['volume_import', imported],
      ['volume_save', saved],
    ] as const) {
      const { params } = await begun(method, given)
      expect(storage.path()).toContain(params['mount'])
      rmSync(method === 'volume_save' ? storage.path('out') : inPool('b'))
      await storage.call('pool_refresh', { pool: 'vms' })
      const elsewhere = { ...params, mount: inPool() }
      await expect(storage.call(method, elsewhere), method).rejects.toMatchObject({ code: 'EAGAIN' })
      expect(await storage.job(method, params)).toMatchObject({ state: 'completed' })
    }
  })

  it('waits for its pool, and takes none from another that has one of that name', async () => {
    await create('a')
    const { method, params } = await begun('volume_wipe', { volume: 'a' })
    await storage.directoryPool('other')
    writeFileSync(storage.path('other', 'a'), PRECIOUS)
    await storage.call('pool_refresh', { pool: 'other' })
    await storage.call('pool_destroy', { pool: 'vms' })
    // What it fails with may pass, so that it is tried again.
    await expect(storage.call(method, params)).rejects.toMatchObject({ code: 'EAGAIN' })
    const resumed = { pool: 'vms', name: 'b', source: storage.path('other', 'a'), resume: true }
    await expect(storage.call('volume_import', resumed)).rejects.toMatchObject({ code: 'EAGAIN' })
    expect(readFileSync(storage.path('other', 'a')).equals(PRECIOUS)).toBe(true)
    await storage.call('pool_start', { pool: 'vms' })
    expect(await storage.job(method, params)).toMatchObject({ state: 'completed' })
  })
})

describe('what lies in the directory of a pool', () => {
  const restart = async (): Promise<void> => {
    await storage.call('pool_destroy', { pool: 'vms' })
    await storage.call('pool_start', { pool: 'vms' })
  }
  afterEach(() => nameOwner(''))

  it('is not cleared up by another daemon of this machine, which may be at work there', async () => {
    nameOwner('/var/lib/one')
    const theirs = [partialName('a'), checkNoteName('q'), partialStateName('b')]
    for (const name of theirs) writeFileSync(inPool(name), PRECIOUS)
    nameOwner('/var/lib/other')
    await restart()
    expect(readdirSync(inPool()).sort()).toEqual(theirs.toSorted())
    nameOwner('/var/lib/one')
    await restart()
    expect(readdirSync(inPool())).toEqual([])
    expect(storage.logged.join('')).toContain(`${inPool(partialName('a'))} is removed: it was being made`)
  })

  it.each(['.x.partial', '.x.partial.json', '.x.check', 'x.partial'])(
    'is left alone when it is called %s',
    async name => {
      writeFileSync(inPool(name), PRECIOUS)
      await restart()
      await create('x')
      await storage.call('volume_delete', { volume: 'x' })
      expect(readFileSync(inPool(name)).equals(PRECIOUS)).toBe(true)
    },
  )

  it('is left alone when another program keeps its own snapshots there', async () => {
    mkdirSync(inPool('.snapshots/1/snapshot'), { recursive: true })
    mkdirSync(inPool('.snapshots/2'))
    writeFileSync(inPool('.snapshots/1/info.xml'), PRECIOUS)
    writeFileSync(inPool('.snapshots/1/snapshot/file'), PRECIOUS)
    await restart()
    await create('1', { format: 'qcow2' })
    await storage.call('volume_delete', { volume: '1' })
    expect(readdirSync(inPool('.snapshots')).sort()).toEqual(['1', '2'])
    expect(readdirSync(inPool('.snapshots/1')).sort()).toEqual(['info.xml', 'snapshot'])
    expect(existsSync(inPool('.snapshots/1/snapshot/file'))).toBe(true)
  })

  it('stays when it is an empty directory for snapshots', async () => {
    mkdirSync(inPool('.snapshots'))
    await restart()
    await create('a')
    await storage.call('volume_delete', { volume: 'a' })
    expect(existsSync(inPool('.snapshots'))).toBe(true)
  })

  it('is not written to through a link in the place of a half', async () => {
    const [source, outside] = [storage.path('source'), storage.path('outside')]
    writeFileSync(source, Buffer.alloc(MIB, 0x22))
    writeFileSync(outside, PRECIOUS)
    const note = { source, format: 'raw', identity: await identityOf(source), doneBytes: 4096 }
    writeFileSync(inPool(partialStateName('a')), JSON.stringify(note))
    symlinkSync(outside, inPool(partialName('a')))
    const imported = await storage.job('volume_import', { pool: 'vms', name: 'a', source })
    expect(imported).toMatchObject({ state: 'completed' })
    expect(readFileSync(outside).equals(PRECIOUS)).toBe(true)
    expect(readFileSync(inPool('a')).equals(readFileSync(source))).toBe(true)
  })

  it('keeps the name that it got in the last moment', async () => {
    const files = new FileVolumes('vms', inPool(), async () => undefined)
    await expect(
      files.make('a', undefined, async path => {
        writeFileSync(path, 'ours')
        writeFileSync(inPool('a'), PRECIOUS)
      }),
    ).rejects.toMatchObject({ code: 'EEXIST' })
    expect(readFileSync(inPool('a')).equals(PRECIOUS)).toBe(true)
    await expect(renameFree(inPool('a'), storage.path('vms'))).rejects.toMatchObject({ code: 'EEXIST' })
  })
})

describe('an import into storage whose volumes cannot be hidden', () => {
  const xml = "<pool type='zfs'><name>tank</name><source><name>tank</name></source></pool>"
  let path: string | undefined
  beforeEach(() => {
    path = process.env['PATH']
    process.env['PATH'] = `${storage.path('bin')}:${path}`
    mkdirSync(storage.path('bin'))
    writeFileSync(storage.path('source'), PRECIOUS)
    // A ZFS of one volume, whose list is a file.
    const script = `#!/bin/sh
printf '%s\\n' "$*" >> '${storage.path('words')}'
case "$*" in
  *'-t volume'*) cat '${storage.path('zvols')}' 2>/dev/null ;;
  get*) printf '0\\n1000\\n' ;;
esac
exit 0
`
    writeFileSync(storage.path('bin', 'zfs'), script)
    chmodSync(storage.path('bin', 'zfs'), 0o755)
  })
  afterEach(() => {
    process.env['PATH'] = path
  })

  const changes = (): string[] =>
    readFileSync(storage.path('words'), 'utf8')
      .split('\n')
      .filter(line => /^(create|destroy|rename|set)/.test(line))

  it.each([
    ['when it is begun', {}, 'EEXIST'],
    ['when it is gone on with', { resume: true, identity: 'ours' }, 'EEXIST'],
  ])('neither overwrites nor deletes what somebody has made there meanwhile: %s', async (_, again, code) => {
    await storage.call('pool_define', { xml })
    await storage.call('pool_start', { pool: 'tank' })
    const zvol = storage.path('theirs')
    writeFileSync(zvol, PRECIOUS)
    writeFileSync(storage.path('zvols'), `tank/a\t${MIB}\t0\t-\t4711\t-\n`)
    const source = storage.path('source')
    const asked = storage.job('volume_import', { pool: 'tank', name: 'a', source, ...again })
    expect(await asked).toMatchObject({ state: 'failed', error: { code } })
    expect(changes()).toEqual([])
  })

  it('gives nobody what is filled in part, but to whoever deletes it, while its source is away', async () => {
    writeFileSync(storage.path('zvols'), `tank/a\t${MIB}\t0\t-\t4711\tours\n`)
    await storage.call('pool_define', { xml })
    await storage.call('pool_start', { pool: 'tank' })
    const again = { pool: 'tank', name: 'a', source: '/nowhere/source', resume: true, identity: 'ours' }
    await expect(storage.call('volume_import', again)).rejects.toMatchObject({ code: 'ENOENT' })
    for (const [method, params] of [
      ['volume_export', { nbd: true }],
      ['volume_rename', { name: 'b' }],
      ['volume_save', { file: storage.path('out') }],
    ] as const) {
      await expect(storage.call(method, { volume: 'tank/a', ...params }), method).rejects.toThrow(
        'an import that was interrupted',
      )
    }
    await storage.call('volume_delete', { volume: 'tank/a' })
    expect(changes()).toEqual(['destroy -r -- tank/a'])
  })

  it('does not take one of another identity for what it had begun', async () => {
    writeFileSync(storage.path('zvols'), `tank/a\t${MIB}\t0\t-\t4711\tsomebody\n`)
    await storage.call('pool_define', { xml })
    await storage.call('pool_start', { pool: 'tank' })
    const source = storage.path('source')
    await expect(
      storage.call('volume_import', { pool: 'tank', name: 'a', source, resume: true, identity: 'ours' }),
    ).rejects.toMatchObject({ code: 'EEXIST' })
    expect(changes()).toEqual([])
  })
})
