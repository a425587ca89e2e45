/** What was measured on a host with QEMU 2.2, row by row, and what each rule makes of the same disks. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { type Explanation, explain, type Question, type Ruling } from '../../../src/rbd/cache/explain.ts'
import {
  CACHE_MODES,
  type CacheMode,
  losesUnflushed,
  RULES,
  type Rule,
} from '../../../src/rbd/cache/rules.ts'
import type { ClusterOptions } from '../../../src/rbd/cluster.ts'

const directory = mkdtempSync(join(tmpdir(), 'qpair-cache-'))
afterAll(() => rmSync(directory, { recursive: true }))
let files = 0

function confFile(...lines: string[]): string {
  const path = join(directory, `${files++}.conf`)
  writeFileSync(path, ['[global]', 'fsid = 1', '[client]', ...lines, ''].join('\n'))
  return path
}

/** No file at all, unless one is named. */
const reach = (cluster: Partial<ClusterOptions>): ClusterOptions => ({
  user: undefined,
  options: {},
  file: undefined,
  searches: false,
  keyFile: undefined,
  ...cluster,
})

const ask = (question: Partial<Question>, cluster: Partial<ClusterOptions> = {}): Promise<Explanation> =>
  explain({
    cluster: reach(cluster),
    mode: 'writeback',
    rules: RULES,
    release: '0.87',
    live: undefined,
    isOtherFile: false,
    ...question,
  })

async function under(
  rule: Rule,
  question: Partial<Question>,
  cluster: Partial<ClusterOptions> = {},
): Promise<Ruling> {
  return (await ask({ ...question, rules: [rule] }, cluster)).rulings[0]!
}

const TRUE = ['rbd cache = true']
const FALSE = ['rbd cache = false']

interface Row {
  readonly row: number
  readonly lines: string[] | undefined
  readonly mode: CacheMode
  readonly before24: boolean
  readonly from24: boolean
  readonly qpair: boolean
}

/** What `before24` has is the table; QEMU from 2.4 follows the mode, and qpair the file or else the default. */
const ROWS: Row[] = [
  { row: 1, lines: TRUE, mode: 'writeback', before24: true, from24: true, qpair: true },
  { row: 2, lines: TRUE, mode: 'none', before24: true, from24: false, qpair: true },
  { row: 3, lines: FALSE, mode: 'none', before24: false, from24: false, qpair: false },
  { row: 4, lines: FALSE, mode: 'writeback', before24: false, from24: true, qpair: false },
  { row: 5, lines: [], mode: 'none', before24: false, from24: false, qpair: true },
  { row: 6, lines: [], mode: 'writeback', before24: true, from24: true, qpair: true },
  ...CACHE_MODES.map(mode => {
    const isOn = mode !== 'none' && mode !== 'directsync'
    return { row: 7, lines: undefined, mode, before24: isOn, from24: isOn, qpair: true }
  }),
]

describe.each(ROWS)('row $row, cache mode $mode', ({ row, lines, mode, ...effective }) => {
  const file = lines === undefined ? undefined : confFile(...lines)

  it.each([
    ['qemu-before-2.4', effective.before24],
    ['qemu-2.4', effective.from24],
    ['qpair', effective.qpair],
  ] as const)('under %s: %s', async (rule, isOn) => {
    const { judgement } = await under(rule, { mode }, { file })
    expect(judgement.enabled).toBe(isOn)
  })

  it('is dangerous under the old rule only in row 2', async () => {
    const { judgement, danger } = await under('qemu-before-2.4', { mode }, { file })
    expect(judgement.isDangerous).toBe(row === 2)
    expect(danger).toMatch(row === 2 ? /cache mode none promises/ : /^$/)
  })
})

describe('where a value comes from', () => {
  it('names the line of a file, the option, the mode and the default', async () => {
    const file = confFile('# why', 'rbd cache = true', 'rbd cache size = 64M')
    const { values } = await under('qemu-2.4', {}, { file, options: { rbd_cache_max_dirty: '0' } })
    expect(values.rbd_cache).toEqual({ value: 'true', kind: 'cache mode', from: 'cache mode writeback' })
    expect(values.rbd_cache_size).toEqual({ value: '67108864', kind: 'file', from: `${file}:6` })
    expect(values.rbd_cache_max_dirty).toEqual({
      value: '0',
      kind: 'option',
      from: 'the option rbd_cache_max_dirty',
    })
    expect(values.rbd_cache_max_dirty_age).toEqual({
      value: '1',
      kind: 'default',
      from: 'built into librbd of Ceph 0.87',
    })
  })

  it.each([
    ['qemu-before-2.4', false],
    ['qemu-2.4', true],
    ['qpair', false],
  ] as const)('under %s an option of the name makes it %s', async (rule, isOn) => {
    const options = { rbd_cache: 'false' }
    const { judgement } = await under(rule, {}, { file: confFile(...TRUE), options })
    expect(judgement.enabled).toBe(isOn)
  })

  it.each(RULES)('under %s the image has the last word', async rule => {
    const stored = { rbd_cache: { value: 'false', kind: 'image', from: 'rbd config image' } } as const
    const { judgement } = await under(rule, { live: { stored, config: {} } }, { file: confFile(...TRUE) })
    expect(judgement.enabled).toBe(false)
  })

  it('believes an open image more than what nothing here accounts for', async () => {
    const live = { stored: {}, config: { rbd_cache: 'false' } }
    const { values } = await under('qpair', { live })
    expect(values.rbd_cache).toMatchObject({ value: 'false', kind: 'config' })
  })

  it('tells that a file has changed since the image was opened', async () => {
    const file = confFile(...FALSE)
    const live = { stored: {}, config: { rbd_cache: 'true' } }
    const { values } = await under('qpair', { live }, { file })
    expect(values.rbd_cache).toMatchObject({ value: 'true', kind: 'config' })
    expect(values.rbd_cache.from).toContain(`${file}:4 says false now`)
  })

  it('asks what another file would do, whatever is open', async () => {
    const live = { stored: {}, config: { rbd_cache: 'true' } }
    const { values } = await under('qpair', { live, isOtherFile: true }, { file: confFile(...FALSE) })
    expect(values.rbd_cache).toMatchObject({ value: 'false', kind: 'file' })
  })

  it('warns of a value and of a name that Ceph does not take', async () => {
    const file = confFile('rbd cache = off', 'rbd-cache-size = 1')
    const { problems, rulings } = await ask({}, { file, options: { rbd_cache_policy: 'none' } })
    expect(problems).toEqual([
      `${file}:4 has rbd_cache = off, which Ceph does not take`,
      `${file}:5 has rbd-cache-size, which Ceph does not know: write rbd_cache_size`,
      'the option rbd_cache_policy = none is one that Ceph does not take',
    ])
    expect(rulings[2]!.judgement.enabled).toBe(true)
  })

  it('counts nothing of a file that librados refuses', async () => {
    const file = confFile('rbd cache = false', 'junk')
    const { problems, rulings } = await ask({}, { file })
    expect(problems).toEqual([expect.stringMatching(/:5 is neither .* refuses the whole file/)])
    expect(rulings[2]!.judgement.enabled).toBe(true)
  })

  it('refuses a named file that is not there', async () => {
    await expect(ask({}, { file: '/nowhere/ceph.conf' })).rejects.toThrow(
      '/nowhere/ceph.conf cannot be read: ENOENT',
    )
  })
})

describe('what is lost when killed or without power', () => {
  it.each([
    ['qemu-2.4', 'none', {}, 'nothing', 'nothing'],
    ['qemu-2.4', 'directsync', {}, 'nothing', 'nothing'],
    ['qemu-2.4', 'writethrough', {}, 'nothing', 'nothing'],
    ['qemu-2.4', 'writeback', {}, 'unflushed', 'nothing'],
    ['qemu-2.4', 'unsafe', {}, 'nothing', 'nothing'],
    ['qemu-2.4', 'writeback', { rbd_cache_writethrough_until_flush: 'false' }, 'unflushed', 'unflushed'],
    ['qemu-2.4', 'unsafe', { rbd_cache_writethrough_until_flush: 'false' }, 'flushed', 'unflushed'],
    ['qemu-2.4', 'writethrough', { rbd_cache_writethrough_until_flush: 'false' }, 'nothing', 'nothing'],
    ['qemu-2.4', 'writeback', { rbd_cache_max_dirty: '0' }, 'nothing', 'nothing'],
    ['qpair', 'unsafe', {}, 'unflushed', 'nothing'],
    ['qpair', 'none', { rbd_cache: 'false' }, 'nothing', 'nothing'],
    ['qpair', 'none', { rbd_cache_policy: 'writethrough' }, 'nothing', 'nothing'],
    ['qpair', 'none', { rbd_cache_writethrough_until_flush: '0' }, 'unflushed', 'unflushed'],
  ] as const)('%s, %s, %j: %s of a guest that flushes, %s of one that does not', async (...row) => {
    const [rule, mode, options, loss, lossWithoutFlushes] = row
    const { judgement } = await under(rule, { mode }, { options })
    expect(judgement).toMatchObject({ loss, lossWithoutFlushes })
  })

  it('is all that the guest never flushed, with the librbd of old', async () => {
    const old = await under('qemu-2.4', { release: '0.80' })
    expect(old.judgement).toMatchObject({ lossWithoutFlushes: 'unflushed', isDangerous: true })
    expect(old.advice[0]).toMatch(/rbd_cache_writethrough_until_flush = true \(now false by built into/)
    expect((await under('qpair', { release: '0.80' })).judgement.enabled).toBe(false)
  })

  it('is as much as may be dirty', async () => {
    const { judgement } = await under('qpair', {}, { options: { rbd_cache_max_dirty: '1M' } })
    expect(judgement.lossBytesMax).toBe(2 ** 20)
  })

  it.each([
    ['qemu-2.4', 'none', true],
    ['qemu-2.4', 'writethrough', false],
    ['qemu-2.4', 'unsafe', true],
    ['qpair', 'writethrough', true],
  ] as const)('%s, %s: the guest is told of a cache: %s', async (rule, mode, sees) => {
    expect((await under(rule, { mode })).judgement.guestSeesCache).toBe(sees)
  })

  it('tells a guest of qpair of no cache when there is none', async () => {
    const { judgement } = await under('qpair', {}, { options: { rbd_cache: 'false' } })
    expect(judgement).toMatchObject({ guestSeesCache: false, flushesHonoured: true })
  })
})

describe('whether an open image loses what was not flushed', () => {
  const off = { rbd_cache: { value: 'false', kind: 'image', from: '' } } as const

  it.each([
    ['is not known', { stored: {}, config: {} }, true],
    ['has write-back', { stored: {}, config: { rbd_cache: 'true', rbd_cache_policy: 'writeback' } }, true],
    ['has write-around', { stored: {}, config: { rbd_cache_policy: 'writearound' } }, true],
    ['has write-through', { stored: {}, config: { rbd_cache_policy: 'writethrough' } }, false],
    ['may keep back no byte', { stored: {}, config: { rbd_cache_max_dirty: '0' } }, false],
    ['has no cache', { stored: {}, config: { rbd_cache: 'false' } }, false],
    ['has none by its own setting', { stored: off, config: { rbd_cache: 'true' } }, false],
  ])('when it %s', (_what, live, loses) => {
    expect(losesUnflushed(live)).toBe(loses)
  })
})
