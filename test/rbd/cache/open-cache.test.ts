import { expect, it } from 'vitest'
import { openCacheOf } from '../../../src/rbd/cache/open-cache.ts'
import type { LiveConfig, SourceKind, Value } from '../../../src/rbd/cache/rules.ts'

const stored = (value: string, kind: SourceKind): Value => ({ value, kind, from: `rbd config ${kind} set` })
const of = (live: Partial<LiveConfig>) => openCacheOf({ stored: {}, config: {}, ...live }, 'volumes/a')

it.each<[string, Partial<LiveConfig>, string]>([
  ['is not known', {}, 'after a flush'],
  ['has write-back', { config: { rbd_cache: 'true', rbd_cache_policy: 'writeback' } }, 'after a flush'],
  ['has write-around', { config: { rbd_cache_policy: 'writearound' } }, 'after a flush'],
  ['does not wait for a flush', { config: { rbd_cache_writethrough_until_flush: 'false' } }, 'always'],
  ['has write-through', { config: { rbd_cache_policy: 'writethrough' } }, 'nothing'],
  ['may keep back no byte', { config: { rbd_cache_max_dirty: '0' } }, 'nothing'],
  ['has no cache', { config: { rbd_cache: 'false' } }, 'nothing'],
  [
    'has none by its own setting',
    { stored: { rbd_cache: stored('false', 'image') }, config: { rbd_cache: 'true' } },
    'nothing',
  ],
  [
    'has one by its own setting',
    { stored: { rbd_cache: stored('true', 'image') }, config: { rbd_cache: 'false' } },
    'after a flush',
  ],
])('knows what an image keeps back that %s', (_what, live, retention) => {
  const cache = of(live)
  expect(cache.retention).toBe(retention)
  expect(cache.heldWrites === undefined).toBe(retention === 'nothing')
})

it('tells how much it is, by whose word, and how to end that', () => {
  expect(of({ config: { rbd_cache: 'true', rbd_cache_max_dirty: '4096' } }).heldWrites).toEqual({
    bytesMax: 4096,
    by: "RBD's cache, which is on by the option rbd_cache",
    remedy: expect.stringContaining('--config-param rbd_cache=false'),
  })
})

it.each(['pool', 'image'] as const)('names a setting of the %s, and what is stronger', kind => {
  expect(of({ stored: { rbd_cache: stored('true', kind) } }).heldWrites).toMatchObject({
    by: `RBD's cache, which is on by "rbd config ${kind} set"`,
    remedy: expect.stringContaining('rbd config image set volumes/a rbd_cache false'),
  })
})
