/** What was measured on a host with QEMU 2.2, row by row, and what each rule makes of the same disks. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { type Explanation, explain, type Question, type Ruling } from '../../../src/rbd/cache/explain.ts'
import { CACHE_MODES, type CacheMode, RULES, type Rule } from '../../../src/rbd/cache/rules.ts'
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
}

/** What `before24` has is the table; QEMU from 2.4 follows the mode. */
const ROWS: Row[] = [
  { row: 1, lines: TRUE, mode: 'writeback', before24: true, from24: true },
  { row: 2, lines: TRUE, mode: 'none', before24: true, from24: false },
  { row: 3, lines: FALSE, mode: 'none', before24: false, from24: false },
  { row: 4, lines: FALSE, mode: 'writeback', before24: false, from24: true },
  { row: 5, lines: [], mode: 'none', before24: false, from24: false },
  { row: 6, lines: [], mode: 'writeback', before24: true, from24: true },
  ...CACHE_MODES.map(mode => {
    const isOn = mode !== 'none' && mode !== 'directsync'
    return { row: 7, lines: undefined, mode, before24: isOn, from24: isOn }
  }),
]

describe.each(ROWS)('row $row, cache mode $mode', ({ row, lines, mode, ...effective }) => {
  const file = lines === undefined ? undefined : confFile(...lines)

  it.each([
    ['qemu-before-2.4', effective.before24],
    ['qemu-2.4', effective.from24],
    ['qpair', false],
  ] as const)('under %s: %s', async (rule, isOn) => {
    const { judgement } = await under(rule, { mode }, { file })
    expect(judgement.enabled).toBe(isOn)
  })

  it.each(['true', 'false'])('is under qpair what its own option says: %s', async rbd_cache => {
    const { judgement } = await under('qpair', { mode }, { file, options: { rbd_cache } })
    expect(judgement.enabled).toBe(rbd_cache === 'true')
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
    for (const value of ['false', 'true']) {
      const stored = { rbd_cache: { value, kind: 'image', from: 'rbd config image' } } as const
      const options = { rbd_cache: value === 'true' ? 'false' : 'true' }
      const { judgement } = await under(rule, { live: { stored, config: {} } }, { options })
      expect(judgement.enabled).toBe(value === 'true')
    }
  })

  it('believes an open image more than what nothing here accounts for', async () => {
    const live = { stored: {}, config: { rbd_cache_size: '4096' } }
    const { values } = await under('qpair', { live })
    expect(values.rbd_cache_size).toMatchObject({ value: '4096', kind: 'config' })
  })

  it('tells that a file has changed since the image was opened', async () => {
    const file = confFile('rbd cache size = 8192')
    const live = { stored: {}, config: { rbd_cache_size: '4096' } }
    const { values } = await under('qpair', { live }, { file })
    expect(values.rbd_cache_size).toMatchObject({ value: '4096', kind: 'config' })
    expect(values.rbd_cache_size.from).toContain(`${file}:4 says 8192 now`)
  })

  it('asks what another file would do, whatever is open', async () => {
    const live = { stored: {}, config: { rbd_cache_size: '4096' } }
    const file = confFile('rbd cache size = 8192')
    const { values } = await under('qpair', { live, isOtherFile: true }, { file })
    expect(values.rbd_cache_size).toMatchObject({ value: '8192', kind: 'file' })
  })

  it('warns of a value and of a name that Ceph does not take', async () => {
    const file = confFile('rbd cache = off', 'rbd-cache-size = 1')
    const { problems, rulings } = await ask({}, { file, options: { rbd_cache_policy: 'none' } })
    expect(problems).toEqual([
      `${file}:4 has rbd_cache = off, which Ceph does not take`,
      `${file}:5 has rbd-cache-size, which Ceph does not know: write rbd_cache_size`,
      'the option rbd_cache_policy = none is one that Ceph does not take',
    ])
    const { rbd_cache_size, rbd_cache_policy } = rulings[2]!.values
    expect([rbd_cache_size.kind, rbd_cache_policy.kind]).toEqual(['default', 'default'])
  })

  it('counts nothing of a file that librados refuses', async () => {
    const file = confFile('rbd cache size = 8192', 'junk')
    const { problems, rulings } = await ask({}, { file })
    expect(problems).toEqual([expect.stringMatching(/:5 is neither .* refuses the whole file/)])
    expect(rulings[2]!.values.rbd_cache_size.kind).toBe('default')
  })

  it('refuses a named file that is not there', async () => {
    await expect(ask({}, { file: '/nowhere/ceph.conf' })).rejects.toThrow(
      '/nowhere/ceph.conf cannot be read: ENOENT',
    )
  })
})

describe('what is lost when killed or without power', () => {
  const ASKED = { rbd_cache: 'true' }

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
    ['qpair', 'unsafe', {}, 'nothing', 'nothing'],
    ['qpair', 'unsafe', ASKED, 'unflushed', 'nothing'],
    ['qpair', 'none', { ...ASKED, rbd_cache_policy: 'writearound' }, 'unflushed', 'nothing'],
    ['qpair', 'none', { ...ASKED, rbd_cache_max_dirty: '0' }, 'nothing', 'nothing'],
    ['qpair', 'none', { ...ASKED, rbd_cache_policy: 'writethrough' }, 'nothing', 'nothing'],
    ['qpair', 'none', { ...ASKED, rbd_cache_writethrough_until_flush: '0' }, 'unflushed', 'unflushed'],
  ] as const)('%s, %s, %j: %s of a guest that flushes, %s of one that does not', async (...row) => {
    const [rule, mode, options, loss, lossWithoutFlushes] = row
    const { judgement } = await under(rule, { mode }, { options })
    expect(judgement).toMatchObject({ loss, lossWithoutFlushes })
  })

  it('is all that the guest never flushed, with the librbd of old', async () => {
    const old = await under('qemu-2.4', { release: '0.80' })
    expect(old.judgement).toMatchObject({ lossWithoutFlushes: 'unflushed', isDangerous: true })
    expect(old.advice[0]).toMatch(/rbd_cache_writethrough_until_flush = true \(now false: built into/)
  })

  it('is as much as may be dirty', async () => {
    const { judgement } = await under('qpair', {}, { options: { ...ASKED, rbd_cache_max_dirty: '1M' } })
    expect(judgement.lossBytesMax).toBe(2 ** 20)
  })

  it.each([
    ['qemu-2.4', 'none', true],
    ['qemu-2.4', 'writethrough', false],
    ['qemu-2.4', 'unsafe', true],
    ['qpair', 'writethrough', true],
  ] as const)('%s, %s: the guest is told of a cache: %s', async (rule, mode, sees) => {
    expect((await under(rule, { mode }, { options: ASKED })).judgement.guestSeesCache).toBe(sees)
  })

  it('tells a guest of qpair of no cache when there is none', async () => {
    const { judgement } = await under('qpair', {})
    expect(judgement).toMatchObject({ guestSeesCache: false, flushesHonoured: true })
  })
})

describe('what qpair says beside its rule', () => {
  it('names the line of a file that does not count, and how to ask for the cache', async () => {
    const file = confFile(...TRUE)
    const { values, notes } = await under('qpair', {}, { file })
    expect(values.rbd_cache).toEqual({
      value: 'false',
      kind: 'qpair',
      from: 'qpair, unless an option asks for the cache',
    })
    expect(notes).toContainEqual(expect.stringMatching(`${file}:4 does not count here; .*rbd_cache=true`))
  })

  it('takes an option whose words are apart by blanks, as Ceph does', async () => {
    const { values } = await under('qpair', {}, { options: { 'rbd cache': 'true' } })
    expect(values.rbd_cache).toMatchObject({ value: 'true', kind: 'option' })
  })

  it.each([
    [{}, false, false],
    [{ rbd_cache: 'true', rbd_cache_policy: 'writethrough' }, true, false],
    [{ rbd_cache: 'true', rbd_cache_policy: 'writearound', rbd_cache_max_dirty: '0' }, false, false],
    [{ rbd_cache: 'true' }, true, true],
  ])(
    'tells who refuses the device, and that nobody hears of a loss: %j',
    async (options, refuses, isLost) => {
      const notes = (await under('qpair', {}, { options })).notes.join()
      expect(notes.includes('several gateways may serve refuses the device')).toBe(refuses)
      expect(notes.includes('is not told what is lost')).toBe(isLost)
    },
  )
})
