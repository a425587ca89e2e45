import { describe, expect, it } from 'vitest'
import { render, type Terminal } from '../../../src/cli/output.ts'
import { answerOf, answerText } from '../../../src/rbd/cache/answer.ts'
import { explain } from '../../../src/rbd/cache/explain.ts'
import type { Rule } from '../../../src/rbd/cache/rules.ts'
import { rbdCacheExplain } from '../../../src/rbd/methods/cache.ts'

const terminal = (isTerminal: boolean): Terminal => ({
  write: () => {},
  writeError: () => {},
  isTerminal,
  env: {},
  readStdin: async () => '',
})

async function answer(rule: Rule, options: Record<string, string> = {}) {
  const explanation = await explain({
    cluster: { user: undefined, options, file: undefined, searches: false, keyFile: undefined },
    mode: 'none',
    rules: [rule],
    release: '16',
    live: undefined,
    isOtherFile: false,
  })
  return answerOf({ path: 'volumes/a', bdev: null, user: 'admin', mode: 'none' }, explanation)
}

describe('for a terminal', () => {
  it('says what is in force, from where, what is lost and what to do', async () => {
    expect(answerText(await answer('qemu-before-2.4', { rbd_cache: 'true' })).split('\n')).toEqual([
      'volumes/a as client.admin, defaults built into librbd of Ceph 16',
      'ceph.conf: none is read',
      '',
      'QEMU before 2.4, where the file wins, cache mode none',
      '  RBD cache: on, write-around (write-back that caches no reads), write-through until the first flush',
      '  The guest: told of a volatile write cache, its flushes are honoured.',
      '  Killed or without power: up to 24 MiB that was acknowledged and not yet flushed is lost; a guest that never flushes loses nothing.',
      expect.stringMatching(/^ {2}DANGEROUS: cache mode none promises that the host keeps nothing back/),
      '  To do: set rbd_cache = false (now true: the option rbd_cache), or use cache mode writeback and let the guest flush.',
      '  To do: open the image again on a new connection: before that no change counts.',
      expect.stringMatching(/^ {2}Note: what monitors, pool or image have set/),
      '    rbd_cache                           true         the option rbd_cache',
      '    rbd_cache_policy                    writearound  built into librbd of Ceph 16',
      '    rbd_cache_writethrough_until_flush  true         built into librbd of Ceph 16',
      '    rbd_cache_size                      33554432     built into librbd of Ceph 16',
      '    rbd_cache_max_dirty                 25165824     built into librbd of Ceph 16',
      '    rbd_cache_target_dirty              16777216     built into librbd of Ceph 16',
      '    rbd_cache_max_dirty_age             1            built into librbd of Ceph 16',
      '',
    ])
  })

  it('is short when there is nothing to say', async () => {
    const text = answerText(await answer('qemu-2.4'))
    expect(text).toContain('  RBD cache: off\n')
    expect(text).toContain('  Killed or without power: nothing that was acknowledged is lost.\n')
    expect(text).not.toMatch(/DANGEROUS|To do/)
  })

  it('is text there and JSON elsewhere', async () => {
    const result = await answer('qpair')
    expect(render(terminal(true), rbdCacheExplain, result)).toMatch(/^volumes\/a as client\.admin/)
    expect(JSON.parse(render(terminal(false), rbdCacheExplain, result))).toEqual(result)
  })

  it('does not let a name steer it', async () => {
    const result = { ...(await answer('qpair')), image: 'volumes/\u001b[2J' }
    expect(render(terminal(true), rbdCacheExplain, result)).toMatch(/^volumes\/\?\[2J as/)
  })
})
