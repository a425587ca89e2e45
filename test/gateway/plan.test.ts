import { describe, expect, it } from 'vitest'
import { Prng } from '../../src/core/prng.ts'
import { isSame, mergeChanges, planChanges } from '../../src/gateway/plan.ts'
import { groupsOf, localCall, missingGroups, sharedCalls } from '../../src/gateway/shared-calls.ts'
import type { MethodCall } from '../../src/rpc/config.ts'

const NQN = 'nqn.2016-06.io.example:a'
const call = (method: string, params: Record<string, unknown>): MethodCall => ({ method, params })
const image = (name: string, rest = {}): MethodCall =>
  call('bdev_rbd_create', { name, pool_name: 'p', rbd_name: name, block_size: 4096, ...rest })
const subsystem = (nqn = NQN, rest = {}): MethodCall =>
  call('nvmf_create_subsystem', { nqn, serial_number: 's', ...rest })
const namespace = (nsid: number, bdev_name: string, nqn = NQN): MethodCall[] => [
  call('nvmf_subsystem_add_ns', { nqn, namespace: { nsid, bdev_name } }),
  call('nvmf_subsystem_set_ns_ana_group', { nqn, nsid, anagrpid: nsid }),
]
const host = (name: string, nqn = NQN): MethodCall => call('nvmf_subsystem_add_host', { nqn, host: name })
const names = (calls: readonly MethodCall[]): string[] =>
  calls.map(({ method, params = {} }) =>
    `${method} ${params['name'] ?? params['nsid'] ?? params['host'] ?? ''}`.trim(),
  )

describe('the shared part of a configuration', () => {
  it('leaves out what is the member’s own, and splits off what changes by itself', () => {
    const config = [
      call('bdev_rbd_register_cluster', { name: 'c' }),
      image('i', { cluster_name: 'c', uuid: 'u', config: undefined }),
      image('other', { cluster_name: 'd' }),
      call('bdev_malloc_create', { name: 'm' }),
      call('nvmf_create_transport', { trtype: 'TCP' }),
      call('nvmf_subsystem_add_host', { nqn: 'nqn.2014-08.org.nvmexpress.discovery', host: 'h' }),
      subsystem(NQN, { allow_any_host: true, min_cntlid: 1, max_cntlid: 9, ana_reporting: true }),
      call('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { nsid: 3, bdev_name: 'i', anagrpid: 7 } }),
      call('nvmf_ns_add_host', { nqn: NQN, nsid: 3, host: 'h' }),
      call('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: {} }),
    ]
    expect(sharedCalls(config, 'c')).toEqual([
      image('i', { uuid: 'u' }),
      subsystem(),
      call('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: true }),
      call('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { nsid: 3, bdev_name: 'i' } }),
      call('nvmf_subsystem_set_ns_ana_group', { nqn: NQN, nsid: 3, anagrpid: 7 }),
      call('nvmf_ns_add_host', { nqn: NQN, nsid: 3, host: 'h' }),
    ])
  })

  it('becomes the member’s own again: its cluster, its window, ANA reporting', () => {
    const own = { cluster: 'mine', firstCntlid: 2041, lastCntlid: 4080 }
    expect(localCall(image('i'), own)).toEqual(image('i', { cluster_name: 'mine' }))
    expect(localCall(subsystem(), own)).toEqual(
      subsystem(NQN, { min_cntlid: 2041, max_cntlid: 4080, ana_reporting: true }),
    )
    expect(localCall(host('h'), own)).toEqual(host('h'))
  })

  it('knows the ANA groups, and those that lack a namespace', () => {
    const calls = [image('i'), subsystem(), ...namespace(1, 'i'), ...namespace(2, 'j')]
    expect(groupsOf(calls)).toEqual([`${NQN} 1`, `${NQN} 2`])
    expect(missingGroups(calls, [image('i'), subsystem(), ...namespace(1, 'i')])).toEqual([`${NQN} 2`])
  })
})

describe('the way from one to another', () => {
  const base = [image('i'), image('j'), subsystem(), host('h'), ...namespace(1, 'i'), ...namespace(2, 'j')]

  it('is empty when they are the same, in whatever order of parameters', () => {
    const turned = base.map(({ method, params }) =>
      call(method, Object.fromEntries(Object.entries(params!).reverse())),
    )
    expect(planChanges(base, turned)).toEqual([])
    expect(isSame(base, turned)).toBe(true)
  })

  it('takes a namespace away before its device, and touches nothing else', () => {
    const want = base.filter(each => !JSON.stringify(each).includes('"j"') && each.params?.['nsid'] !== 2)
    expect(names(planChanges(base, want))).toEqual(['nvmf_subsystem_remove_ns 2', 'bdev_rbd_delete j'])
  })

  it('makes what stood on a device anew with it', () => {
    const want = base.map(each => (each.params?.['name'] === 'i' ? image('i', { read_only: true }) : each))
    expect(names(planChanges(base, want))).toEqual([
      'nvmf_subsystem_remove_ns 1',
      'bdev_rbd_delete i',
      'bdev_rbd_create i',
      'nvmf_subsystem_add_ns',
      'nvmf_subsystem_set_ns_ana_group 1',
    ])
  })

  it('deletes a subsystem with everything in it by one call', () => {
    expect(names(planChanges(base, [image('i'), image('j')]))).toEqual(['nvmf_delete_subsystem'])
  })

  it('moves a namespace to another ANA group without taking it away', () => {
    const want = base.map(each =>
      each.method.includes('ana_group') && each.params?.['nsid'] === 1
        ? call(each.method, { ...each.params, anagrpid: 5 })
        : each,
    )
    expect(planChanges(base, want)).toEqual([
      call('nvmf_subsystem_set_ns_ana_group', { nqn: NQN, nsid: 1, anagrpid: 5 }),
    ])
  })

  it('merges a change into a configuration of which something is missing here', () => {
    const before = base.filter(each => !names([each])[0]!.includes('h'))
    const after = [
      ...before.filter(each => each.params?.['name'] !== 'j' && each.params?.['nsid'] !== 2),
      host('k'),
    ]
    const merged = mergeChanges(
      base,
      before,
      after.filter(each => !JSON.stringify(each).includes('"bdev_name":"j"')),
    )
    expect(names(merged)).toEqual([
      'bdev_rbd_create i',
      'nvmf_create_subsystem',
      'nvmf_subsystem_add_host h',
      'nvmf_subsystem_add_ns',
      'nvmf_subsystem_set_ns_ana_group 1',
      'nvmf_subsystem_add_host k',
    ])
  })

  it('drops with a subsystem also what is missing here', () => {
    const merged = mergeChanges(base, [image('i'), subsystem()], [image('i')])
    expect(names(merged)).toEqual(['bdev_rbd_create i', 'bdev_rbd_create j'])
  })
})

/** What the target would make of the calls: refuses what has no foundation, and forgets with it. */
function execute(have: readonly MethodCall[], calls: readonly MethodCall[]): MethodCall[] {
  let now = [...have]
  const dropAll = (text: (each: MethodCall) => boolean): void => {
    now = now.filter(each => !text(each))
  }
  for (const { method, params = {} } of calls) {
    const { nqn, nsid, name, host: guest } = params
    const isOf = (each: MethodCall): boolean => each.params?.['nqn'] === nqn
    const nsidOf = (each: MethodCall): unknown =>
      each.params?.['nsid'] ?? (each.params?.['namespace'] as { nsid: number } | undefined)?.nsid
    if (method === 'bdev_rbd_delete') {
      const uses = now.some(
        each => (each.params?.['namespace'] as { bdev_name: string } | undefined)?.bdev_name === name,
      )
      expect(uses, `${name} is deleted under a namespace`).toBe(false)
      dropAll(each => each.params?.['name'] === name)
    } else if (method === 'nvmf_delete_subsystem') dropAll(isOf)
    else if (method === 'nvmf_subsystem_remove_ns') dropAll(each => isOf(each) && nsidOf(each) === nsid)
    else if (method === 'nvmf_subsystem_remove_host')
      dropAll(each => isOf(each) && each.params?.['host'] === guest)
    else {
      if (method === 'nvmf_subsystem_set_ns_ana_group')
        dropAll(each => each.method === method && isOf(each) && nsidOf(each) === nsid)
      if (nqn !== undefined && method !== 'nvmf_create_subsystem')
        expect(now.some(each => each.method === 'nvmf_create_subsystem' && isOf(each))).toBe(true)
      now.push({ method, params })
    }
  }
  return now
}

it.each(Array.from({ length: 100 }, (_, i) => i + 1))('leads from anything to anything: seed %i', seed => {
  const prng = new Prng(seed)
  const anything = (): MethodCall[] => {
    const images = ['i', 'j', 'k'].filter(() => !prng.oneIn(3))
    const nqns = [NQN, `${NQN}b`].filter(() => !prng.oneIn(4))
    return [
      ...images.map(name => image(name, prng.oneIn(4) ? { read_only: true } : {})),
      ...nqns.flatMap(nqn => [
        subsystem(nqn, prng.oneIn(4) ? { serial_number: 't' } : {}),
        ...['g', 'h'].filter(() => prng.oneIn(2)).map(name => host(name, nqn)),
        ...images.filter(() => prng.oneIn(2)).flatMap((name, i) => namespace(i + 1, name, nqn)),
      ]),
    ]
  }
  const [have, want] = [anything(), anything()]
  expect(isSame(execute(have, planChanges(have, want)), want)).toBe(true)
})
