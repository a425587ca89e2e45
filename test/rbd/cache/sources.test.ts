import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { builtInDefaults, parseValue } from '../../../src/rbd/cache/options.ts'
import { readConf, readDefaults, searchOf } from '../../../src/rbd/cache/sources.ts'

let home: string
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'qpair-home-'))
  mkdirSync(join(home, '.ceph'))
})
afterEach(() => rmSync(home, { recursive: true }))

const places = (env: Record<string, string> = {}) => ({ env, home, directory: join(home, 'cwd') })
const searching = { user: undefined, file: undefined, searches: true }

describe('the search for a ceph.conf', () => {
  it('is for $CEPH_CONF alone, when that is set', () => {
    expect(searchOf(places({ CEPH_CONF: '/a, /b' }))).toEqual(['/a', '/b'])
  })

  it('is in /etc, at home, and in the current directory', () => {
    expect(searchOf(places())).toEqual([
      '/etc/ceph/ceph.conf',
      join(home, '.ceph/ceph.conf'),
      join(home, 'cwd/ceph.conf'),
    ])
  })

  it('takes the first that is there', () => {
    const path = join(home, 'b')
    writeFileSync(path, '[client]\nrbd cache = 0\n')
    const conf = readConf(searching, places({ CEPH_CONF: `${home}/a,${path}` }))
    expect(conf).toMatchObject({ path, values: { rbd_cache: { value: 'false', from: `${path}:2` } } })
  })

  it('finds it no error that there is none', () => {
    const conf = readConf(searching, places({ CEPH_CONF: join(home, 'a') }))
    expect(conf).toMatchObject({ path: undefined, values: {}, problems: [] })
  })

  it('does not take place when options came without a file', () => {
    expect(readConf({ ...searching, searches: false }, places()).searched).toEqual([])
  })

  it("warns of a file that has the name in Ceph's documentation", () => {
    writeFileSync(join(home, '.ceph/config'), '[client]\nrbd cache = 0\n')
    const conf = readConf(searching, places({ CEPH_CONF: join(home, 'a') }))
    expect(conf.problems).toEqual([expect.stringMatching(/\.ceph\/config is not read/)])
  })

  it('knows a file that would end the daemon from one that is refused', () => {
    const path = join(home, 'a')
    writeFileSync(path, '[client]\nname = Zoë\n')
    const fatal = readConf({ user: undefined, file: path, searches: false })
    expect(fatal).toMatchObject({ isFatal: true, values: {} })
    expect(fatal.problems).toEqual([
      expect.stringMatching(/a:2 has a character that is not ASCII.* whole process/),
    ])
    writeFileSync(path, '[client]\nrbd cache = false')
    expect(readConf({ user: undefined, file: path, searches: false })).toMatchObject({
      isFatal: false,
      values: {},
    })
  })

  it('refuses what librados would read until memory is used up, or wait for', () => {
    const [huge, pipe] = [join(home, 'huge'), join(home, 'pipe')]
    writeFileSync(huge, '')
    truncateSync(huge, 2 ** 20 + 1)
    execFileSync('mkfifo', [pipe])
    for (const file of ['/dev/zero', huge, pipe]) {
      const read = (): unknown => readConf({ user: undefined, file, searches: false })
      expect(read).toThrow(`${file} is no ceph.conf: give a file, of at most 1048576 bytes`)
    }
    const empty = { user: undefined, file: '/dev/null', searches: false }
    expect(readConf(empty)).toMatchObject({ values: {}, problems: [] })
  })

  it("takes the user's own section first", () => {
    const path = join(home, 'a')
    writeFileSync(path, '[client]\nrbd cache = 0\n[client.cinder]\nrbd cache = 1\n')
    expect(readConf({ user: 'cinder', file: path, searches: false }).values.rbd_cache?.value).toBe('true')
    expect(readConf({ user: 'nova', file: path, searches: false }).values.rbd_cache?.value).toBe('false')
  })
})

describe('defaults', () => {
  it.each([
    ['0.80', 'false', 'false', 'writeback'],
    ['0.87', 'true', 'true', 'writeback'],
    ['14.2.22', 'true', 'true', 'writeback'],
    ['15', 'true', 'true', 'writearound'],
  ])('of Ceph %s: cache %s, until flush %s, %s', (release, cache, untilFlush, policy) => {
    expect(builtInDefaults(release)).toEqual({
      rbd_cache: cache,
      rbd_cache_policy: policy,
      rbd_cache_writethrough_until_flush: untilFlush,
      rbd_cache_size: '33554432',
      rbd_cache_max_dirty: '25165824',
      rbd_cache_target_dirty: '16777216',
      rbd_cache_max_dirty_age: '1',
    })
  })

  it('are those of the librbd on this machine, or say that there is none', async () => {
    const { values, from } = await readDefaults(undefined)
    expect(from).toMatch(/^built into librbd (\d+\.\d+\.\d+$|of Ceph 15 and newer \(there is none)/)
    expect(values).toEqual(builtInDefaults('16'))
  })
})

describe('values', () => {
  it.each([
    ['rbd_cache', 'TRUE', 'true'],
    ['rbd_cache', '2', 'true'],
    ['rbd_cache', '+00', 'false'],
    ['rbd_cache', 'yes', undefined],
    ['rbd_cache', '', undefined],
    ['rbd_cache_size', '64M', '67108864'],
    ['rbd_cache_size', '64KB', '65536'],
    ['rbd_cache_size', '1Gi', '1073741824'],
    ['rbd_cache_size', '16E', undefined],
    ['rbd_cache_size', '15E', '17293822569102704640'],
    ['rbd_cache_size', '64m', undefined],
    ['rbd_cache_size', '-1', undefined],
    ['rbd_cache_max_dirty_age', '1.000000', '1'],
    ['rbd_cache_max_dirty_age', '1s', undefined],
    ['rbd_cache_policy', 'writeback', 'writeback'],
    ['rbd_cache_policy', 'WriteBack', undefined],
  ] as const)('%s = %j is %s', (option, text, value) => {
    expect(parseValue(option, text)).toBe(value)
  })
})
