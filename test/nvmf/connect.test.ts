import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  type ConnectParts,
  connectRequest,
  DISCOVERY,
  FakeConnection,
  HOST,
  NQN,
  OTHER_HOST,
  TargetRig,
} from './support.ts'

let rig: TargetRig
beforeEach(async () => {
  rig = await TargetRig.ready()
})
afterEach(() => rig.close())

describe('Connect of an admin queue', () => {
  it('answers with a controller identifier and makes the connection an admin queue of the size asked for', async () => {
    const { connection, completion } = await rig.connect({ sqsize: 31 })
    expect(completion).toEqual({ status: 0, dw0: 1 })
    expect(connection.admin).not.toBeNull()
    expect(connection.sqSize).toBe(32)
  })

  it('gives each controller an identifier of its own, from the range of the subsystem', async () => {
    await rig.rpc('nvmf_create_subsystem', {
      nqn: `${NQN}b`,
      allow_any_host: true,
      min_cntlid: 7,
      max_cntlid: 8,
    })
    await rig.rpc('nvmf_subsystem_add_listener', {
      nqn: `${NQN}b`,
      listen_address: { trtype: 'TCP', traddr: '127.0.0.1', trsvcid: '4420' },
    })
    const first = await rig.connect({ subnqn: `${NQN}b` })
    const second = await rig.connect({ subnqn: `${NQN}b` }, { reactor: 1 })
    const third = await rig.connect({ subnqn: `${NQN}b` })
    expect([first, second].map(({ completion }) => completion.dw0)).toEqual([7, 8])
    // Controller Busy.
    expect(third.completion.status).toBe(0x181)

    first.connection.close()
    await rig.breathe()
    expect((await rig.connect({ subnqn: `${NQN}b` })).completion).toEqual({ status: 0, dw0: 7 })
  })

  // IPO in bits 15:0; bit 16 says that it points into the data (Base 2.1, section 6.3).
  it.each<[string, ConnectParts, number, number]>([
    ['another record format', { recfmt: 1 }, 0x180, 0],
    ['a queue of one entry', { sqsize: 0 }, 0x182, 44],
    ['a queue longer than the transport allows', { sqsize: 128 }, 0x182, 44],
    ['a controller of its choice', { cntlid: 5 }, 0x182, 0x1_0000 + 16],
    ['no subsystem name', { subnqn: '' }, 0x182, 0x1_0000 + 256],
    ['a subsystem name without end', { subnqn: 'n'.repeat(256) }, 0x182, 0x1_0000 + 256],
    ['a name that is no UTF-8', { hostnqn: 'nqn.\xff\xfe' }, 0x182, 0x1_0000 + 512],
    ['no host name', { hostnqn: '' }, 0x182, 0x1_0000 + 512],
    ['a subsystem that is not there', { subnqn: 'nqn.2016-06.io.spdk:none' }, 0x182, 0x1_0000 + 256],
  ])('refuses %s, and ends the connection', async (_, parts, status, dw0) => {
    const { connection, completion } = await rig.connect(parts)
    expect(completion).toEqual({ status, dw0 })
    expect(connection.reasons).toHaveLength(1)
    expect(rig.target.directory.controllers(rig.target.get(NQN))).toEqual([])
  })

  it('refuses data that is too short', async () => {
    const { sqe, dataOut } = connectRequest()
    const request = { sqe, lengthBytes: 1000, dataOut: dataOut.subarray(0, 1000) }
    const statuses: number[] = []
    rig.parts[0]!.connect(new FakeConnection(1), {
      ...request,
      complete: ({ status }) => void statuses.push(status),
    })
    expect(statuses).toEqual([0x00f])
  })

  it('lets only listed hosts in when not every host is allowed', async () => {
    await rig.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: false })
    // Connect Invalid Host.
    expect((await rig.connect()).completion.status).toBe(0x184)
    await rig.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: HOST })
    expect((await rig.connect()).completion.status).toBe(0)
    expect((await rig.connect({ hostnqn: OTHER_HOST })).completion.status).toBe(0x184)
  })

  it('refuses a subsystem by an address that is not its own, except the discovery subsystem', async () => {
    const elsewhere = (): FakeConnection => new FakeConnection(99)
    expect((await rig.connect({}, { connection: elsewhere() })).completion.status).toBe(0x184)
    const discovery = await rig.connect({ subnqn: DISCOVERY }, { connection: elsewhere() })
    expect(discovery.completion.status).toBe(0)
  })

  it('executes nothing before the Connect is answered', async () => {
    const connection = new FakeConnection(1)
    const connect = connectRequest()
    rig.parts[0]!.connect(connection, connect)
    const early = connectRequest()
    connection.admin!.execute(early)
    expect(early.completion).toEqual({ status: 0x00c, doNotRetry: true })
    await rig.until(() => connect.completion !== null)
    expect(connect.completion!.status).toBe(0)
  })

  it('forgets a connection that ends before it is answered', async () => {
    const connection = new FakeConnection(1)
    rig.parts[0]!.connect(connection, connectRequest())
    connection.close()
    await rig.breathe()
    expect(rig.target.directory.controllers(rig.target.get(NQN))).toEqual([])
  })
})

describe('Connect of an I/O queue', () => {
  it('shows the namespaces, from any reactor', async () => {
    const host = await rig.host()
    const connections = [await rig.ioQueue(host, 1, 0), await rig.ioQueue(host, 2, 1)]
    for (const connection of connections) {
      expect(connection.io!.namespace(1)!.channel!.info.name).toBe('disk0')
      expect(connection.io!.namespace(1)!.gate).toBe(0)
      expect(connection.io!.namespace(2)).toBeUndefined()
    }
    const listed = await rig.rpc<{ num_io_qpairs: number }[]>('nvmf_subsystem_get_controllers', { nqn: NQN })
    expect(listed[0]!.num_io_qpairs).toBe(2)
  })

  it.each<[string, ConnectParts, number, number]>([
    ['a controller that is not there', { cntlid: 77 }, 0x182, 0x1_0000 + 16],
    ['the controller of another host', { hostnqn: OTHER_HOST }, 0x182, 0x1_0000 + 512],
    ['another host identifier', { hostid: 'ff'.repeat(16) }, 0x182, 0x1_0000],
    ['a queue above those granted', { qid: 128 }, 0x182, 42],
    ['a queue longer than the transport allows', { sqsize: 128 }, 0x182, 44],
  ])('refuses %s', async (_, parts, status, dw0) => {
    const host = await rig.host()
    const { connection, completion } = await rig.connect({ qid: 1, cntlid: host.cntlid, ...parts })
    expect(completion).toEqual({ status, dw0 })
    expect(connection.io?.namespace(1)).toBeUndefined()
  })

  it('refuses a controller that is not enabled', async () => {
    const { completion } = await rig.connect()
    const io = await rig.connect({ qid: 1, cntlid: completion.dw0! })
    expect(io.completion.status).toBe(0x00c)
  })

  it('waits a moment for the old connection when a queue comes again, as ESXi reconnects', async () => {
    const host = await rig.host()
    const old = await rig.ioQueue(host, 1)
    const request = connectRequest({ qid: 1, cntlid: host.cntlid })
    const connection = new FakeConnection(1)
    rig.parts[1]!.connect(connection, request)
    await rig.breathe()
    expect(request.completion).toBeNull()
    old.close()
    await rig.until(() => request.completion !== null)
    expect(request.completion!.status).toBe(0)
    expect(connection.io!.namespace(1)).toBeDefined()
  })

  it('refuses a queue whose old connection stays', async () => {
    const host = await rig.host()
    await rig.ioQueue(host, 1)
    const request = connectRequest({ qid: 1, cntlid: host.cntlid })
    rig.parts[1]!.connect(new FakeConnection(1), request)
    await rig.advance(1100)
    // Invalid Queue Identifier.
    expect(request.completion!.status).toBe(0x101)
  })

  it('refuses a second Connect and properties, and ends with Disconnect', async () => {
    const host = await rig.host()
    const connection = await rig.ioQueue(host, 1)
    const again = connectRequest({ qid: 1, cntlid: host.cntlid })
    connection.io!.execute(again)
    expect(again.completion!.status).toBe(0x00c)
    const property = connectRequest()
    property.sqe.setUint8(4, 0x04)
    connection.io!.execute(property)
    expect(property.completion!.status).toBe(0x185)
    const disconnect = connectRequest()
    disconnect.sqe.setUint8(4, 0x08)
    connection.io!.execute(disconnect)
    expect(disconnect.completion!.status).toBe(0)
    expect(connection.isClosed).toBe(true)
  })
})

describe('the end of a controller', () => {
  it('ends its I/O queues on every reactor when the admin connection ends', async () => {
    const host = await rig.host()
    const queues = [await rig.ioQueue(host, 1, 0), await rig.ioQueue(host, 2, 1)]
    host.connection.close()
    await rig.until(() => queues.every(queue => queue.isClosed))
    await rig.breathe()
    expect(rig.target.directory.controllers(rig.target.get(NQN))).toEqual([])
  })

  it('keeps the identifier until the last queue has ended', async () => {
    const host = await rig.host()
    const queue = await rig.ioQueue(host, 1, 1)
    queue.isSlow = true
    host.connection.close()
    await rig.breathe()
    expect(queue.reasons).toHaveLength(1)
    expect(rig.target.directory.controllers(rig.target.get(NQN))).toHaveLength(1)
    queue.close()
    await rig.breathe()
    expect(rig.target.directory.controllers(rig.target.get(NQN))).toEqual([])
  })
})
