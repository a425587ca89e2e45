/**
 * The target on reactors that a test polls by hand, and hosts whose bytes a test writes. A fake connection stands for
 * the transport: it hands commands over the seam and keeps what comes back.
 */
import { nullDriver } from '../../src/bdev/drivers/null.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { logSettings } from '../../src/core/log.ts'
import { Topic } from '../../src/nvmf/messages.ts'
import { nvmfMethods } from '../../src/nvmf/methods.ts'
import { NvmfReactor } from '../../src/nvmf/reactor-target.ts'
import type { AdminQueue, CommandRequest, Completion, Connection, IoQueue } from '../../src/nvmf/request.ts'
import { NvmfTarget } from '../../src/nvmf/target.ts'
import type { SocketAddress } from '../../src/reactor/network.ts'
import { Dispatcher, type RpcInfo } from '../../src/rpc/dispatcher.ts'
import type { MethodTable } from '../../src/rpc/method.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

logSettings.printLevel = 'ERROR'

export const NQN = 'nqn.2016-06.io.spdk:cnode1'
export const HOST = 'nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555'
export const OTHER_HOST = 'nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555'
export const DISCOVERY = 'nqn.2014-08.org.nvmexpress.discovery'
export const HOSTID = '00112233445566778899aabbccddeeff'
export const DISK_UUID = '2d2d3f0a-9a2b-4c55-8b1e-6a7f1c3c9d10'

/** A submission queue entry: 64 bytes, from hex at offsets that the specification states. */
export function entry(parts: Record<number, string>): DataView {
  const bytes = new Uint8Array(64)
  for (const [offset, hex] of Object.entries(parts)) {
    bytes.set(Buffer.from(hex.replaceAll(' ', ''), 'hex'), Number(offset))
  }
  return new DataView(bytes.buffer)
}

export class FakeRequest implements CommandRequest {
  readonly sqe: DataView
  readonly lengthBytes: number
  readonly dataOut: Uint8Array
  completion: Completion | null = null
  completions = 0

  constructor(sqe: DataView, lengthBytes = 0, dataOut: Uint8Array = new Uint8Array(0)) {
    this.sqe = sqe
    this.lengthBytes = lengthBytes
    this.dataOut = dataOut
  }

  complete(completion: Completion): void {
    this.completion = completion
    this.completions++
  }
}

export class FakeConnection implements Connection {
  readonly local: SocketAddress
  readonly remote: SocketAddress = { host: '127.0.0.9', port: 50000 }
  readonly listenerId: number
  admin: AdminQueue | null = null
  io: IoQueue | null = null
  sqSize = 0
  /** Why the target ended it. */
  readonly reasons: string[] = []
  /** Commands the target asked to abort. */
  readonly aborts: number[] = []
  /** A connection whose end takes long: the test calls `close`. */
  isSlow = false
  isClosed = false

  constructor(listenerId: number, local: SocketAddress = { host: '127.0.0.1', port: 4420 }) {
    this.listenerId = listenerId
    this.local = local
  }

  becomeAdminQueue(queue: AdminQueue, sqSize: number): void {
    this.admin = queue
    this.sqSize = sqSize
  }

  becomeIoQueue(queue: IoQueue, sqSize: number): void {
    this.io = queue
    this.sqSize = sqSize
  }

  abort(cid: number): boolean {
    this.aborts.push(cid)
    return true
  }

  disconnect(reason: string): void {
    this.reasons.push(reason)
    if (!this.isSlow) this.close()
  }

  close(): void {
    if (this.isClosed) return
    this.isClosed = true
    this.admin?.closed()
    this.io?.closed()
  }
}

export interface ConnectParts {
  readonly subnqn?: string
  readonly hostnqn?: string
  readonly hostid?: string
  readonly cntlid?: number
  readonly qid?: number
  /** As in the command: 0's based. */
  readonly sqsize?: number
  readonly katoMs?: number
  readonly recfmt?: number
}

/** The Connect command and its data as a host writes them (Base 2.1, section 6.3). */
export function connectRequest(parts: ConnectParts = {}): FakeRequest {
  const { subnqn = NQN, hostnqn = HOST, hostid = HOSTID, qid = 0, cntlid = 0xffff } = parts
  const { sqsize = 31, katoMs = 0, recfmt = 0 } = parts
  const sqe = entry({ 0: '7f 40 0000 01' })
  sqe.setUint16(40, recfmt, true)
  sqe.setUint16(42, qid, true)
  sqe.setUint16(44, sqsize, true)
  sqe.setUint32(48, katoMs, true)
  const data = Buffer.alloc(1024)
  data.write(hostid, 0, 'hex')
  data.writeUInt16LE(cntlid, 16)
  data.write(subnqn, 256, 'latin1')
  data.write(hostnqn, 512, 'latin1')
  return new FakeRequest(sqe, 1024, data)
}

/** Sockets that listen nowhere. */
class FakeSockets {
  readonly open = new Map<number, SocketAddress>()
  #lastId = 0

  newListenerId(): number {
    return ++this.#lastId
  }

  async listen(_: string, id: number, address: SocketAddress): Promise<SocketAddress> {
    const bound = address.port === 0 ? { ...address, port: 40000 + id } : address
    this.open.set(id, bound)
    return bound
  }

  async close(id: number): Promise<void> {
    this.open.delete(id)
  }
}

interface Context {
  readonly rpc: RpcInfo
  readonly nvmf: NvmfTarget
}

/** An admin queue of a host, after its Connect. */
export class Host {
  readonly rig: TargetRig
  readonly connection: FakeConnection
  readonly cntlid: number

  constructor(rig: TargetRig, connection: FakeConnection, cntlid: number) {
    this.rig = rig
    this.connection = connection
    this.cntlid = cntlid
  }

  /** Hands a command to the admin queue and waits for its completion. */
  async admin(parts: Record<number, string>, lengthBytes = 4096, dataOut?: Uint8Array): Promise<Completion> {
    const request = new FakeRequest(entry(parts), lengthBytes, dataOut)
    this.connection.admin!.noteTraffic()
    this.connection.admin!.execute(request)
    await this.rig.until(() => request.completion !== null)
    return request.completion!
  }

  /** Hands a command over that may stay open. */
  start(parts: Record<number, string>): FakeRequest {
    const request = new FakeRequest(entry(parts))
    this.connection.admin!.execute(request)
    return request
  }

  /** Leaves an Asynchronous Event Request, as a host does once it has set the controller up. */
  listen(): FakeRequest {
    return this.start({ 0: '0c' })
  }

  /** Property Set of CC: enabled, 64-byte and 16-byte entries. */
  async enable(): Promise<Completion> {
    return this.admin({ 0: '7f 00 0100 00', 44: '14000000', 48: '01 00 46 00' })
  }

  /** Identify with that CNS. */
  async identify(cns: string, nsid = '00000000', rest: Record<number, string> = {}): Promise<DataView> {
    const { status, data } = await this.admin({ 0: '06', 4: nsid, 40: cns, ...rest })
    if (status !== 0) throw new Error(`Identify ${cns} ended with ${status.toString(16)}`)
    return viewOf(data!)
  }

  /** Get Log Page of that many bytes, from an offset. */
  async logPage(lid: string, sizeBytes: number, rest: Record<number, string> = {}): Promise<DataView> {
    const numd = (sizeBytes / 4 - 1).toString(16).padStart(4, '0')
    const parts = { 0: '02', 40: lid, 42: numd.slice(2) + numd.slice(0, 2), ...rest }
    const { status, data } = await this.admin(parts, sizeBytes)
    if (status !== 0) throw new Error(`Get Log Page ${lid} ended with ${status.toString(16)}`)
    return viewOf(data!)
  }
}

export const viewOf = (bytes: Uint8Array): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

export const hexOf = (view: DataView, offset: number, size: number): string =>
  Buffer.from(view.buffer, view.byteOffset + offset, size).toString('hex')

export const textOf = (view: DataView, offset: number, size: number): string =>
  Buffer.from(view.buffer, view.byteOffset + offset, size).toString('latin1')

export class TargetRig {
  readonly reactors: LocalReactorGroup
  readonly bdevs: BdevRegistry
  readonly target: NvmfTarget
  readonly parts: NvmfReactor[]
  readonly sockets = new FakeSockets()
  readonly #dispatcher: Dispatcher<Context>
  readonly rpcInfo: RpcInfo
  /** Listeners whose connections a reactor was told to end. */
  readonly unlistened: number[] = []

  constructor(reactorCount = 2) {
    this.reactors = new LocalReactorGroup({ count: reactorCount, arenaBytes: 1 << 20 })
    const drivers = [nullDriver]
    this.bdevs = new BdevRegistry(this.reactors, drivers)
    this.parts = this.reactors.reactors.map(
      reactor => new NvmfReactor(reactor, new ReactorBdevs(reactor, drivers), () => {}),
    )
    // The transport's part.
    for (const { control } of this.reactors.reactors) {
      control.on<number>(Topic.UNLISTEN, listenerId => void this.unlistened.push(listenerId))
    }
    this.target = new NvmfTarget({
      reactors: this.reactors,
      sockets: this.sockets,
      bdevs: this.bdevs,
      firmwareRevision: '1.2.3',
      clock: this.reactors.reactors[0]!.clock,
    })
    const methods = nvmfMethods satisfies MethodTable<Context>
    this.rpcInfo = { state: 'runtime', methods }
    this.#dispatcher = new Dispatcher({ methods, context: { rpc: this.rpcInfo, nvmf: this.target } })
  }

  /** A rig with a transport, a disk `disk0` of 2048 blocks, a subsystem that shows it, and a listener, number 1. */
  static async ready(options: { ana?: boolean; reactorCount?: number } = {}): Promise<TargetRig> {
    const rig = new TargetRig(options.reactorCount)
    await rig.rpc('nvmf_create_transport', { trtype: 'TCP' })
    await rig.run(rig.bdevs.create('null', 'disk0', { block_size: 512, num_blocks: 2048, uuid: DISK_UUID }))
    await rig.rpc('nvmf_create_subsystem', {
      nqn: NQN,
      allow_any_host: true,
      serial_number: 'SERIAL1',
      ana_reporting: options.ana ?? false,
    })
    await rig.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'disk0' } })
    await rig.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: address('4420') })
    return rig
  }

  rpc<T = unknown>(method: string, params: object = {}): Promise<T> {
    return this.run(this.#dispatcher.call(method, params)) as Promise<T>
  }

  run<T>(promise: Promise<T>): Promise<T> {
    return this.reactors.run(promise)
  }

  until(condition: () => boolean): Promise<void> {
    return this.reactors.until(condition)
  }

  /** Moves time in small steps, and lets messages arrive in between. */
  async advance(ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed += 50) {
      this.reactors.advance(Math.min(50, ms - passed) * 1000)
      await this.breathe()
    }
  }

  /** Lets every message that is under way arrive. */
  async breathe(): Promise<void> {
    for (let turn = 0; turn < 4; turn++) await new Promise(setImmediate)
  }

  /** Sends a Connect on a new connection and waits for its completion. */
  async connect(
    parts: ConnectParts = {},
    { reactor = 0, connection = new FakeConnection(1) } = {},
  ): Promise<{ connection: FakeConnection; completion: Completion }> {
    const request = connectRequest(parts)
    this.parts[reactor]!.connect(connection, request)
    await this.until(() => request.completion !== null)
    return { connection, completion: request.completion! }
  }

  /** A host with an admin queue, enabled. */
  async host(
    parts: ConnectParts = {},
    where: { reactor?: number; connection?: FakeConnection } = {},
  ): Promise<Host> {
    const { connection, completion } = await this.connect(parts, where)
    if (completion.status !== 0) throw new Error(`Connect ended with ${completion.status.toString(16)}`)
    const host = new Host(this, connection, completion.dw0! & 0xffff)
    await host.enable()
    return host
  }

  /** An I/O queue of that host. */
  async ioQueue(host: Host, qid: number, reactor = 0, parts: ConnectParts = {}): Promise<FakeConnection> {
    const { connection, completion } = await this.connect({ qid, cntlid: host.cntlid, ...parts }, { reactor })
    if (completion.status !== 0) throw new Error(`Connect ended with ${completion.status.toString(16)}`)
    return connection
  }

  close(): void {
    this.reactors.close()
  }
}

export const address = (trsvcid: string, traddr = '127.0.0.1'): object => ({
  trtype: 'TCP',
  adrfam: 'IPv4',
  traddr,
  trsvcid,
})
