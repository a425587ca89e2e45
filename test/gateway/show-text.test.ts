import { expect, it } from 'vitest'
import { showText } from '../../src/gateway/show-text.ts'

const NQN = 'nqn.2021-06.io.spdk:ctc_rbd0'
const member = { state: 'alive', is_self: false, config_version: 3, ana_groups: [], unable: [] }
const shown = {
  ...{ group: 'prod', pool: 'volumes', cluster_name: 'ceph', name: 'b', state: 'serving', problem: '' },
  ...{ lease_ms: 5000, lease_left_ms: 3605, config_version: 3 },
}

it('shows a group as a table, with what each member serves and what is amiss under it', () => {
  const members = [
    {
      ...{ ...member, name: 'a', address: '192.0.2.1:4420', silent_ms: 402, config_version: 2 },
      ana_groups: [
        { nqn: NQN, anagrpid: 1 },
        { nqn: NQN, anagrpid: 3 },
      ],
      unable: [`${NQN} 2`],
    },
    { ...member, name: 'b', address: '192.0.2.2:4420', silent_ms: 0, is_self: true },
    {
      ...{ ...member, name: 'c', address: '192.0.2.30:4420', silent_ms: 65_400, state: 'gone' },
      gone_since: '2026-01-31T23:59:59.000Z',
    },
  ]
  expect(showText({ ...shown, members }).split('\n')).toEqual([
    'Group prod, in the pool volumes of cluster ceph; configuration 3',
    'This member, b, is serving, 3.6 s left of its lease of 5.0 s',
    '',
    'MEMBER    STATE  ADDRESS          HEARD OF   SERVES',
    `a         alive  192.0.2.1:4420   0.4 s ago  ${NQN} (ANA groups 1, 3)`,
    '  still has configuration 2',
    `  cannot serve ${NQN} 2`,
    'b (this)  alive  192.0.2.2:4420   0.0 s ago  -',
    'c         gone   192.0.2.30:4420  65 s ago   -',
    '  gone since 2026-01-31T23:59:59.000Z',
    '',
  ])
})

it('says why this daemon is no member at the moment', () => {
  const away = { ...shown, state: 'rejoining', problem: 'Ceph does not answer', lease_ms: 0, members: [] }
  expect(showText(away)).toMatch(/This member, b, is rejoining\nProblem: Ceph does not answer\n$/)
})
