import { expect, it } from 'vitest'
import { type CachedImage, openCacheOf } from '../../../src/rbd/cache/open-cache.ts'
import type { LiveConfig, SourceKind, Value } from '../../../src/rbd/cache/rules.ts'

const stored = (value: string, kind: SourceKind): Value => ({ value, kind, from: `rbd config ${kind} set` })
const of = (live: Partial<LiveConfig>, image: Partial<CachedImage> = {}) =>
  openCacheOf(
    { stored: {}, config: {}, ...live },
    { path: 'volumes/a', isSnapshot: false, isReadOnly: false, ...image },
  )

const MIB_24 = 24 << 20
/** Undefined: no cache that could do harm elsewhere. */
type Held = number | undefined

it.each<[string, Partial<LiveConfig>, string, Held]>([
  ['is not known', {}, 'after a flush', MIB_24],
  ['has write-back', { config: { rbd_cache_policy: 'writeback' } }, 'after a flush', MIB_24],
  ['has write-around', { config: { rbd_cache_policy: 'writearound' } }, 'after a flush', MIB_24],
  ['waits for no flush', { config: { rbd_cache_writethrough_until_flush: 'false' } }, 'always', MIB_24],
  ['has write-through', { config: { rbd_cache_policy: 'writethrough' } }, 'nothing', 0],
  ['keeps only reads', { config: { rbd_cache_policy: 'writeback', rbd_cache_max_dirty: '0' } }, 'nothing', 0],
  [
    'keeps neither',
    { config: { rbd_cache_policy: 'writearound', rbd_cache_max_dirty: '0' } },
    'nothing',
    undefined,
  ],
  ['has no cache', { config: { rbd_cache: 'false' } }, 'nothing', undefined],
  [
    'has none by its own setting',
    { stored: { rbd_cache: stored('false', 'image') }, config: { rbd_cache: 'true' } },
    'nothing',
    undefined,
  ],
  [
    'has one by its own setting',
    { stored: { rbd_cache: stored('true', 'image') }, config: { rbd_cache: 'false' } },
    'after a flush',
    MIB_24,
  ],
])('knows what an image keeps that %s', (_what, live, retention, held) => {
  const cache = of(live)
  expect(cache.retention).toBe(retention)
  expect(cache.privateCache?.heldBytesMax).toBe(held)
})

it.each<[string, Partial<CachedImage>, string, Held]>([
  ['a snapshot keeps nothing that could change', { isSnapshot: true }, 'writeback', undefined],
  ['what is read only keeps no writes', { isReadOnly: true }, 'writearound', undefined],
  ['what is read only keeps what others may replace', { isReadOnly: true }, 'writeback', 0],
])('%s', (_what, image, rbd_cache_policy, held) => {
  const cache = of({ config: { rbd_cache_policy } }, image)
  expect(cache.retention).toBe('nothing')
  expect(cache.privateCache?.heldBytesMax).toBe(held)
})

it('tells how much it is, by whose word, and how to end that', () => {
  expect(of({ config: { rbd_cache: 'true', rbd_cache_max_dirty: '4096' } }).privateCache).toEqual({
    heldBytesMax: 4096,
    what: "RBD's cache, which is on by the option rbd_cache",
    remedy: expect.stringContaining('--config-param rbd_cache=false'),
  })
})

it.each(['pool', 'image'] as const)('names a setting of the %s, and what is stronger', kind => {
  expect(of({ stored: { rbd_cache: stored('true', kind) } }).privateCache).toMatchObject({
    what: `RBD's cache, which is on by "rbd config ${kind} set"`,
    remedy: expect.stringContaining('rbd config image set volumes/a rbd_cache false'),
  })
})
