import { mkdtempSync, rmSync } from 'node:fs'
import { createConnection, type Socket, type TcpNetConnectOpts } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { z } from 'zod'
import { RpcError } from '../../src/core/errors.ts'
import { Dispatcher, type Responder, type RpcInfo } from '../../src/rpc/dispatcher.ts'
import { introspectionMethods } from '../../src/rpc/introspection.ts'
import { type AnyMethod, type MethodTable, method } from '../../src/rpc/method.ts'
import { uint32 } from '../../src/rpc/params.ts'
import { RpcServer } from '../../src/rpc/server.ts'
import { lockFile } from '../../src/sys/file-lock.ts'

/** A context with something to change, to read and to wait for. */
export interface ShelfContext {
  readonly rpc: RpcInfo
  readonly shelf: Map<string, number>
  /** Methods that wait do so until this settles. */
  gate: Promise<void>
}

const shelfPut = method({
  name: 'shelf_put',
  summary: 'Puts an object on the shelf.',
  params: z.object({
    name: z.string().min(1),
    weight: uint32.default(1),
    place: z.strictObject({ row: z.int(), side: z.enum(['left', 'right']).optional() }).optional(),
  }),
  result: z.literal(true),
  errors: { EEXIST: 'the name is taken' },
  saves: true,
  aliases: ['put_on_shelf'],
  ignored: ['colour'],
  async run({ name, weight }, { shelf, gate }: Pick<ShelfContext, 'shelf' | 'gate'>) {
    await gate
    if (shelf.has(name)) throw new RpcError('EEXIST', `${name} lies on the shelf already`)
    shelf.set(name, weight)
    return true as const
  },
})

const shelfGet = method({
  name: 'shelf_get',
  summary: 'Lists the shelf.',
  params: z.object({}),
  result: z.array(z.string()),
  run: (_, { shelf }: Pick<ShelfContext, 'shelf'>) => [...shelf.keys()],
})

const shelfWeigh = method({
  name: 'shelf_weigh',
  summary: 'Weighs everything.',
  params: z.object({}),
  result: z.array(z.object({ name: z.string(), weight_kg: z.int() })),
  concurrent: true,
  cli: {
    columns: ['name', 'weight_kg', { title: 'heavy', value: ({ weight_kg }) => weight_kg > 20 }],
  },
  run: (_, { shelf }: Pick<ShelfContext, 'shelf'>) =>
    [...shelf].map(([name, weight_kg]) => ({ name, weight_kg })),
})

const shelfClear = method({
  name: 'shelf_clear',
  summary: 'Takes everything off and says what that was.',
  params: z.object({}),
  result: z.array(z.string()),
  run(_, { shelf }: Pick<ShelfContext, 'shelf'>) {
    const names = [...shelf.keys()]
    shelf.clear()
    return names
  },
})

const shelfTune = method({
  name: 'shelf_tune',
  summary: 'Only before the start.',
  params: z.object({}),
  result: z.literal(true),
  state: 'startup',
  run: () => true as const,
})

/** What clients need for saving and loading, of this tiny daemon. */
const subsystems = method({
  name: 'framework_get_subsystems',
  summary: 'Lists the subsystems.',
  params: z.object({}),
  result: z.array(z.object({ subsystem: z.string(), depends_on: z.array(z.string()) })),
  run: () => [
    { subsystem: 'floor', depends_on: [] },
    { subsystem: 'shelf', depends_on: ['floor'] },
  ],
})

const subsystemConfig = method({
  name: 'framework_get_config',
  summary: 'The configuration of one subsystem.',
  params: z.object({ name: z.string() }),
  result: z.array(z.object({ method: z.string(), params: z.record(z.string(), z.unknown()) })),
  run: ({ name }, { shelf }: Pick<ShelfContext, 'shelf'>) =>
    name === 'shelf'
      ? [...shelf].map(([key, weight]) => ({ method: 'shelf_put', params: { name: key, weight } }))
      : [],
})

const start = method({
  name: 'framework_start_init',
  summary: 'Starts.',
  params: z.object({}),
  result: z.literal(true),
  state: 'startup',
  run(_, { rpc }: Pick<ShelfContext, 'rpc'>) {
    rpc.state = 'runtime'
    return true as const
  },
})

const shelfWait = method({
  name: 'shelf_wait',
  summary: 'Waits for the gate.',
  params: z.object({}),
  result: z.literal(true),
  state: 'any',
  async run(_, { gate }: Pick<ShelfContext, 'gate'>) {
    await gate
    return true as const
  },
})

const shelfBreak = method({
  name: 'shelf_break',
  summary: 'Has a bug.',
  params: z.object({ how: z.enum(['throw', 'bigint']).default('throw') }),
  result: z.unknown(),
  relaxed: true,
  run({ how }) {
    if (how === 'bigint') return 1n
    throw new TypeError('a bug in a method')
  },
})

export const shelfMethods = [
  ...introspectionMethods,
  shelfPut,
  shelfGet,
  shelfWait,
  shelfBreak,
  shelfWeigh,
  shelfClear,
  shelfTune,
  subsystems,
  subsystemConfig,
  start,
] satisfies MethodTable<ShelfContext>

export interface Shelf {
  readonly context: ShelfContext
  readonly dispatcher: Dispatcher<ShelfContext>
  /** The methods that were saved, in order. */
  readonly saved: string[]
  /** Replaces what happens when something is saved. */
  onSave: (method: AnyMethod<ShelfContext>) => Promise<void> | void
}

export function openShelf(state: RpcInfo['state'] = 'runtime'): Shelf {
  const saved: string[] = []
  const context: ShelfContext = {
    rpc: { state, methods: shelfMethods },
    shelf: new Map(),
    gate: Promise.resolve(),
  }
  const shelf: Shelf = {
    context,
    saved,
    onSave: ({ name }) => void saved.push(name),
    dispatcher: new Dispatcher({ methods: shelfMethods, context, afterMutation: m => shelf.onSave(m) }),
  }
  return shelf
}

export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), 'qpair-rpc-'))
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** A server on a socket of its own, closed with the test. */
export function serveShelf(shelf: Shelf, address?: string): Promise<RpcServer> {
  return serveMethods(shelf.dispatcher, address)
}

export async function serveMethods(
  dispatcher: Responder,
  address = join(temporaryDirectory(), 'rpc.sock'),
): Promise<RpcServer> {
  const server = await RpcServer.listen({ dispatcher, address, lock: lockFile })
  onTestFinished(() => server.close(0))
  return server
}

/** A raw stream: what a client of another language sees. */
export class RawClient {
  readonly socket: Socket
  received = ''
  readonly closed: Promise<void>

  constructor(address: string | TcpNetConnectOpts) {
    this.socket = createConnection(typeof address === 'string' ? { path: address } : address)
    this.socket.on('data', chunk => {
      this.received += chunk.toString('latin1')
    })
    this.socket.on('error', () => undefined)
    this.closed = new Promise(resolve => this.socket.on('close', () => resolve()))
    onTestFinished(() => void this.socket.destroy())
  }

  send(text: string | Uint8Array): void {
    this.socket.write(text)
  }

  /** The answers so far, waiting until there are `count` lines. */
  async answers(count: number): Promise<Record<string, unknown>[]> {
    while (this.lines().length < count) {
      await new Promise((resolve, reject) => {
        this.socket.once('data', resolve)
        this.socket.once('close', () => reject(new Error(`closed after ${this.lines().length} answers`)))
      })
    }
    return this.lines().map(line => JSON.parse(line))
  }

  lines(): string[] {
    return this.received.split('\n').slice(0, -1)
  }
}
