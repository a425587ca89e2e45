import { describe, expect, it } from 'vitest'
import { address, DISK_UUID, HOST, NQN, OTHER_HOST, TargetRig } from './support.ts'

async function disks(rig: TargetRig): Promise<void> {
  await rig.run(rig.bdevs.create('null', 'disk0', { block_size: 512, num_blocks: 8, uuid: DISK_UUID }))
  await rig.run(rig.bdevs.create('null', 'disk1', { block_size: 512, num_blocks: 8 }))
}

/** A target with everything that can be set. */
async function everything(): Promise<TargetRig> {
  const rig = new TargetRig(1)
  await disks(rig)
  rig.rpcInfo.state = 'startup'
  await rig.rpc('nvmf_set_config', { discovery_filter: 'address|svcid', dup_host_policy: 'allow' })
  await rig.rpc('nvmf_set_max_subsystems', { max_subsystems: 10 })
  await rig.rpc('nvmf_set_crdt', { crdt1: 1, crdt3: 3 })
  rig.rpcInfo.state = 'runtime'
  await rig.rpc('nvmf_create_transport', { trtype: 'TCP', max_io_size: 65536, masked_oncs: 'nvmwzsv' })
  await rig.rpc('nvmf_discovery_add_referral', { address: address('8009', '192.0.2.1') })
  await rig.rpc('nvmf_subsystem_add_listener', { nqn: 'discovery', listen_address: address('8009') })
  await rig.rpc('nvmf_create_subsystem', {
    nqn: NQN,
    ana_reporting: true,
    max_namespaces: 4,
    min_cntlid: 5,
    max_cntlid: 50,
    admin_label: 'a label',
    enable_nssr: true,
  })
  await rig.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: HOST })
  await rig.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'disk0', anagrpid: 3 } })
  await rig.rpc('nvmf_subsystem_add_ns', {
    nqn: NQN,
    namespace: { bdev_name: 'disk1', nsid: 4, no_auto_visible: true },
  })
  await rig.rpc('nvmf_ns_add_host', { nqn: NQN, nsid: 4, host: OTHER_HOST })
  await rig.rpc('nvmf_subsystem_add_listener', {
    nqn: NQN,
    listen_address: address('4420'),
    ana_state: 'inaccessible',
  })
  await rig.rpc('nvmf_subsystem_listener_set_ana_state', {
    nqn: NQN,
    listen_address: address('4420'),
    ana_state: 'non_optimized',
    anagrpid: 3,
  })
  return rig
}

const STARTUP = new Set(['nvmf_set_config', 'nvmf_set_max_subsystems', 'nvmf_set_crdt'])

describe('the saved configuration', () => {
  it('makes the same target again, ANA states included', async () => {
    const rig = await everything()
    const saved = rig.target.config()
    const again = new TargetRig(1)
    await disks(again)
    for (const { method, params } of saved) {
      again.rpcInfo.state = STARTUP.has(method) ? 'startup' : 'runtime'
      await again.rpc(method, params)
    }
    expect(again.target.config()).toEqual(saved)
    again.rpcInfo.state = 'runtime'
    rig.rpcInfo.state = 'runtime'
    for (const method of ['nvmf_get_subsystems', 'nvmf_get_transports', 'nvmf_discovery_get_referrals']) {
      expect(await again.rpc(method)).toEqual(await rig.rpc(method))
    }
    const states = await again.rpc<{ ana_states: { ana_state: string }[] }[]>(
      'nvmf_subsystem_get_listeners',
      {
        nqn: NQN,
      },
    )
    expect(states[0]!.ana_states.map(({ ana_state }) => ana_state)).toEqual([
      'inaccessible',
      'inaccessible',
      'non_optimized',
      'inaccessible',
    ])
    again.close()
    rig.close()
  })

  it('has listeners after namespaces and hosts, so that no host comes too early', async () => {
    const rig = await everything()
    const methods = rig.target
      .config()
      .map(({ method }) => method)
      .slice(6)
    expect(methods).toEqual([
      'nvmf_create_subsystem',
      'nvmf_subsystem_add_host',
      'nvmf_subsystem_add_ns',
      'nvmf_subsystem_add_ns',
      'nvmf_ns_add_host',
      'nvmf_subsystem_add_listener',
      'nvmf_subsystem_listener_set_ana_state',
    ])
    rig.close()
  })

  it('does not break when a bdev is gone whose namespace was saved', async () => {
    const rig = await everything()
    await rig.run(rig.bdevs.remove('disk1'))
    const added = rig.target.config().filter(({ method }) => method === 'nvmf_subsystem_add_ns')
    expect(added).toHaveLength(1)
    rig.close()
  })
})
