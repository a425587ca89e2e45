// Base 2.1, section 5.1.2: dword 0 is the type, the information at bit 8 and the log page at bit 16.
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISCOVERY, type FakeRequest, type Host, hexOf, NQN, TargetRig } from './support.ts'

let rig: TargetRig
let host: Host
beforeEach(async () => {
  rig = await TargetRig.ready({ ana: true })
  host = await rig.host()
  await rig.run(rig.bdevs.create('null', 'disk1', { block_size: 512, num_blocks: 64 }))
})
afterEach(() => rig.close())

const listen = (cid = '0500'): FakeRequest => host.start({ 0: `0c 00 ${cid}` })
const addNs = (bdev_name = 'disk1') =>
  rig.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name } })
const removeNs = (nsid = 2) => rig.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid })
const setAna = (ana_state: string) =>
  rig.rpc('nvmf_subsystem_listener_set_ana_state', {
    nqn: NQN,
    listen_address: { trtype: 'TCP', traddr: '127.0.0.1', trsvcid: '4420' },
    ana_state,
  })
const CHANGED = { status: 0, dw0: 0x0004_0002 }
const ANA = { status: 0, dw0: 0x000c_0302 }
const DISCOVERED = { status: 0, dw0: 0x0070_f002 }
const changedNamespaces = async (rest = {}): Promise<string> =>
  hexOf(await host.logPage('04', 4096, rest), 0, 12)

describe('namespace events', () => {
  // Without ANA notices, which a new namespace also causes.
  beforeEach(() => host.admin({ 0: '09', 40: '0b', 44: '00010000' }, 0))

  it('tells of a namespace that comes, once, until the host has read which', async () => {
    const [first, second] = [listen('0500'), listen('0600')]
    await addNs()
    expect(first.completion).toEqual(CHANGED)
    await removeNs()
    expect(second.completion).toBeNull()
    expect(await changedNamespaces()).toBe('020000000000000000000000')
    expect(await changedNamespaces()).toBe('000000000000000000000000')
    await addNs()
    expect(second.completion).toEqual(CHANGED)
  })

  it('keeps the event when the host asks to retain it', async () => {
    const [first, second] = [listen('0500'), listen('0600')]
    await addNs()
    expect(await changedNamespaces({ 41: '80' })).toBe('020000000000000000000000')
    await removeNs()
    expect([first.completion, second.completion]).toEqual([CHANGED, null])
    expect(await changedNamespaces()).toBe('020000000000000000000000')
  })

  it('waits for a request when there is none', async () => {
    await addNs()
    expect(listen().completion).toEqual(CHANGED)
  })

  it('tells of a namespace that grows, with its new size in force', async () => {
    const queue = await rig.ioQueue(host, 1)
    const event = listen()
    await rig.run(rig.bdevs.resize('disk0', 4096))
    await rig.breathe()
    expect(event.completion).toEqual(CHANGED)
    expect((await host.identify('00', '01000000')).getBigUint64(0, true)).toBe(4096n)
    expect(queue.io!.namespace(1)!.channel!.info.blockCount).toBe(4096)
  })

  it('tells of a namespace whose device is taken away, and commands find it gone', async () => {
    const queue = await rig.ioQueue(host, 1, 1)
    const view = queue.io!.namespace(1)!
    const event = listen()
    await rig.run(rig.bdevs.remove('disk0'))
    await rig.breathe()
    expect(event.completion).toEqual(CHANGED)
    expect(queue.io!.namespace(1)).toBeUndefined()
    expect(view.channel).toBeNull()
    expect(hexOf(await host.identify('02'), 0, 4)).toBe('00000000')
  })

  it('tells only hosts that see the namespace', async () => {
    const event = listen()
    await rig.rpc('nvmf_subsystem_add_ns', {
      nqn: NQN,
      namespace: { bdev_name: 'disk1', no_auto_visible: true },
    })
    await rig.breathe()
    expect(event.completion).toBeNull()
    await rig.rpc('nvmf_ns_add_host', { nqn: NQN, nsid: 2, host: (await controllers())[0]!.hostnqn })
    expect(event.completion).toEqual(CHANGED)
  })

  it('says nothing of what the host switched off', async () => {
    await host.admin({ 0: '09', 40: '0b', 44: '00000000' }, 0)
    const event = listen()
    await addNs()
    await rig.breathe()
    expect(event.completion).toBeNull()
  })
})

const controllers = () => rig.rpc<{ hostnqn: string }[]>('nvmf_subsystem_get_controllers', { nqn: NQN })

describe('ANA events', () => {
  it('tells of a changed state, once, and the gate is in force when the method answers', async () => {
    const queue = await rig.ioQueue(host, 1, 1)
    const view = queue.io!.namespace(1)!
    const [first, second] = [listen('0500'), listen('0600')]
    await setAna('inaccessible')
    expect(view.gate).toBe(0x302)
    expect(first.completion).toEqual(ANA)
    await setAna('non_optimized')
    expect(view.gate).toBe(0)
    expect(second.completion).toBeNull()
    await host.logPage('0c', 64)
    await setAna('optimized')
    expect(second.completion).toEqual(ANA)
  })

  it('tells of a namespace that moves to another group, and of that only', async () => {
    await rig.rpc('nvmf_subsystem_listener_set_ana_state', {
      nqn: NQN,
      listen_address: { trtype: 'TCP', traddr: '127.0.0.1', trsvcid: '4420' },
      ana_state: 'inaccessible',
      anagrpid: 9,
    })
    const queue = await rig.ioQueue(host, 1, 1)
    const event = listen()
    const other = listen('0600')
    await rig.rpc('nvmf_subsystem_set_ns_ana_group', { nqn: NQN, nsid: 1, anagrpid: 9 })
    expect(event.completion).toEqual(ANA)
    expect(other.completion).toBeNull()
    expect(queue.io!.namespace(1)!.gate).toBe(0x302)
  })
})

describe('discovery events', () => {
  it('tells discovery controllers of whatever changes their log', async () => {
    host = await rig.host({ subnqn: DISCOVERY })
    const event = listen()
    await rig.rpc('nvmf_subsystem_add_listener', {
      nqn: NQN,
      listen_address: { trtype: 'TCP', traddr: '127.0.0.1', trsvcid: '4421' },
    })
    expect(event.completion).toEqual(DISCOVERED)
    const again = listen()
    await host.logPage('70', 1024)
    await addNs()
    await rig.breathe()
    expect(again.completion).toBeNull()
    await rig.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: false })
    expect(again.completion).toEqual(DISCOVERED)
  })
})

describe('requests', () => {
  it('refuses the fifth', async () => {
    const requests = ['01', '02', '03', '04', '05'].map(cid => listen(`${cid}00`))
    expect(requests.map(({ completion }) => completion?.status)).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
      0x105,
    ])
  })

  it('aborts the one named, and answers 1 for one that is not there', async () => {
    const event = listen('0700')
    const abort = (cid: string) => host.admin({ 0: '08', 40: '0000', 42: cid }, 0)
    expect((await abort('0800')).dw0).toBe(1)
    expect((await abort('0700')).dw0).toBe(0)
    expect(event.completion!.status).toBe(0x007)
  })

  it('passes an Abort of an I/O command on to the reactor of its queue', async () => {
    const queue = await rig.ioQueue(host, 3, 1)
    expect((await host.admin({ 0: '08', 40: '0300', 42: '2a00' }, 0)).dw0).toBe(0)
    expect(queue.aborts).toEqual([0x2a])
    expect((await host.admin({ 0: '08', 40: '0400', 42: '2a00' }, 0)).dw0).toBe(1)
  })

  it('ends them when the controller is reset', async () => {
    const event = listen()
    await host.admin({ 0: '7f 00 0100 00', 44: '14000000', 48: '00004600' }, 0)
    expect(event.completion!.status).toBe(0x008)
    expect(event.completions).toBe(1)
  })
})
