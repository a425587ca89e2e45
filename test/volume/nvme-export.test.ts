import { describe, expect, it } from 'vitest'
import { exportOverNvme, parseListen, servedOverNvme, volumeSerialOf } from '../../src/volume/nvme-export.ts'

const NQN = 'nqn.2026-11.io.example:a'

/** A daemon that answers what a test says, and remembers what was changed. */
function fake(answers: Readonly<Record<string, unknown>>) {
  const changes: [method: string, params: unknown][] = []
  const call = async (method: string, params?: unknown): Promise<unknown> => {
    const answer = answers[method]
    if (answer instanceof Error) throw answer
    if (answer !== undefined) return answer
    changes.push([method, params])
    return true
  }
  return { call, changes, methods: () => changes.map(([method]) => method) }
}

const EMPTY = { nvmf_get_transports: [], nvmf_get_subsystems: [], nvmf_subsystem_get_listeners: [] }
const disk = { bdev: 'b0', nqn: NQN, listen: ['192.0.2.7:4420', '[2001:db8::7]:4421'] }

describe('exportOverNvme', () => {
  it('makes what is not there and says how to connect', async () => {
    const daemon = fake(EMPTY)
    expect(await exportOverNvme(daemon.call, disk)).toEqual([
      `nvme connect -t tcp -a 192.0.2.7 -s 4420 -n ${NQN}`,
      `nvme connect -t tcp -a 2001:db8::7 -s 4421 -n ${NQN}`,
    ])
    expect(daemon.changes).toEqual([
      ['nvmf_create_transport', { trtype: 'TCP' }],
      ['nvmf_create_subsystem', { nqn: NQN, allow_any_host: true, ana_reporting: true }],
      ['nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'b0' } }],
      [
        'nvmf_subsystem_add_listener',
        { nqn: NQN, listen_address: { trtype: 'TCP', adrfam: 'IPv4', traddr: '192.0.2.7', trsvcid: '4420' } },
      ],
      [
        'nvmf_subsystem_add_listener',
        {
          nqn: NQN,
          listen_address: { trtype: 'TCP', adrfam: 'IPv6', traddr: '2001:db8::7', trsvcid: '4421' },
        },
      ],
    ])
  })

  it('leaves what is there as it is', async () => {
    const daemon = fake({
      nvmf_get_transports: [{ trtype: 'TCP' }],
      nvmf_get_subsystems: [{ nqn: NQN, namespaces: [{ nsid: 1, bdev_name: 'b0' }] }],
      nvmf_subsystem_get_listeners: [
        { address: { traddr: '192.0.2.7', trsvcid: '4420' } },
        { address: { traddr: '2001:db8::7', trsvcid: '4421' } },
      ],
    })
    await exportOverNvme(daemon.call, disk)
    expect(daemon.changes).toEqual([])
  })

  it('removes the subsystem that it has made when a listener fails, and no other', async () => {
    const failing = { nvmf_subsystem_add_listener: new Error('in use') }
    const made = fake({ ...EMPTY, ...failing })
    await expect(exportOverNvme(made.call, disk)).rejects.toThrow('in use')
    expect(made.changes.at(-1)).toEqual(['nvmf_delete_subsystem', { nqn: NQN }])
    const there = fake({ ...EMPTY, ...failing, nvmf_get_subsystems: [{ nqn: NQN, namespaces: [] }] })
    await expect(exportOverNvme(there.call, disk)).rejects.toThrow('in use')
    expect(there.methods()).not.toContain('nvmf_delete_subsystem')
  })

  it('makes nothing for an address that is none', async () => {
    const daemon = fake(EMPTY)
    await expect(exportOverNvme(daemon.call, { ...disk, listen: ['host:4420'] })).rejects.toThrow(
      '--listen host:4420: give IP:PORT',
    )
    expect(daemon.changes).toEqual([])
  })
})

describe('servedOverNvme', () => {
  it('tells subsystems of volumes from others, and takes no more of them than the bdev', async () => {
    const daemon = fake({
      nvmf_get_subsystems: [
        { nqn: 'discovery' },
        { nqn: 'by-hand', serial_number: 'VOL1', namespaces: [{ nsid: 1, bdev_name: 'b0' }] },
        {
          nqn: 'own',
          serial_number: volumeSerialOf('own'),
          namespaces: [{ nsid: 1, bdev_name: 'b0' }],
        },
        {
          nqn: 'shared',
          serial_number: volumeSerialOf('shared'),
          namespaces: [
            { nsid: 1, bdev_name: 'b1' },
            { nsid: 4, bdev_name: 'b0' },
          ],
        },
      ],
      nvmf_subsystem_get_controllers: [{ hostnqn: 'h' }, { hostnqn: 'h' }],
    })
    const served = await servedOverNvme(daemon.call, 'b0')
    expect(served).toMatchObject([
      { what: 'subsystem own', users: ['host h'] },
      { what: 'subsystem shared', users: ['host h'] },
    ])
    for (const { take } of served) await take()
    expect(daemon.changes).toEqual([
      ['nvmf_delete_subsystem', { nqn: 'own' }],
      ['nvmf_subsystem_remove_ns', { nqn: 'shared', nsid: 4 }],
    ])
  })
})

describe('parseListen', () => {
  it.each(['', '4420', '192.0.2.7', 'localhost:1', '2001:db8::7:1', '[::1]'])('refuses %j', text => {
    expect(() => parseListen(text)).toThrow(/give IP:PORT/)
  })
})
