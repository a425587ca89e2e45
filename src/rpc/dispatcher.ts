/**
 * Finds, checks and runs methods. It knows JSON-RPC and no sockets.
 *
 * Order. Methods that change something run one at a time over all connections, in order of arrival, so none of them
 * has to defend itself against another. Methods that only read or wait (`concurrent`) run at once, but after the
 * changes that the same connection asked for before: whoever pipelines "create" and "get" sees what was created.
 */
import { ProtocolError, RpcError, SysError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { didYouMean } from './closest.ts'
import type { AnyMethod, Declarations, MethodState, MethodTable } from './method.ts'
import { parseParams } from './parse-params.ts'

const log = logger('rpc')

/** What methods about methods need of the context, and where the dispatcher reads which methods may run now. */
export interface RpcInfo {
  /** `startup` until `framework_start_init` has done its work. */
  state: Exclude<MethodState, 'any'>
  readonly methods: Declarations
}

export interface DispatcherOptions<Context> {
  readonly methods: MethodTable<Context>
  readonly context: Context
  /** Awaited after a method that declares `saves`, before its answer; when it fails, so does the answer. */
  readonly afterMutation?: (method: AnyMethod<Context>) => Promise<void> | void
  /** Whether a `concurrent` method has to take its turn all the same, as things are now. */
  readonly needsTurn?: (method: AnyMethod<Context>) => boolean
  /**
   * Runs a method that declares `saves` in its turn: may refuse, change the parameters, or run it again. What
   * it resolves with is the result.
   */
  readonly aroundMutation?: (
    method: AnyMethod<Context>,
    params: unknown,
    run: (params: unknown) => Promise<unknown>,
  ) => Promise<unknown>
}

/** The requests of one connection keep their order through this. */
export class RpcSession {
  /** Settles when every change that was asked for on this connection so far has been made. */
  changes: Promise<unknown> = Promise.resolve()
}

/** What a server needs of a dispatcher: it cares for no context. */
export type Responder = Pick<Dispatcher<{ readonly rpc: RpcInfo }>, 'respond'>

interface Request {
  readonly method: string
  readonly params: unknown
  /** Absent in a notification, which gets no answer. */
  readonly id: string | number | null | undefined
}

const ID_LENGTH_MAX = 128

export class Dispatcher<Context extends { readonly rpc: RpcInfo }> {
  readonly #options: DispatcherOptions<Context>
  readonly #byName = new Map<string, AnyMethod<Context>>()
  #lastChange: Promise<unknown> = Promise.resolve()

  constructor(options: DispatcherOptions<Context>) {
    this.#options = options
    for (const method of options.methods) {
      for (const name of [method.name, ...method.aliases]) {
        if (this.#byName.has(name)) throw new Error(`two methods are called ${name}`)
        this.#byName.set(name, method)
      }
    }
  }

  /** Runs one method in its turn, as a client's request would. Throws `RpcError`, or whatever the method threw. */
  async call(name: string, params?: unknown, session: RpcSession = new RpcSession()): Promise<unknown> {
    const method = this.#find(name)
    if (method.concurrent && this.#options.needsTurn?.(method) !== true) {
      await session.changes
      const result = await this.#run(method, params)
      if (method.saves) await this.#change(session, () => this.#options.afterMutation?.(method))
      return result
    }
    return this.#change(session, async () => {
      const { aroundMutation, afterMutation } = this.#options
      const isWrapped = method.saves && aroundMutation !== undefined
      const result = isWrapped
        ? await aroundMutation(method, params, changed => this.#run(method, changed))
        : await this.#run(method, params)
      if (method.saves) await afterMutation?.(method)
      return result
    })
  }

  /** Does something in its turn, while no method changes anything. */
  exclusive<Result>(work: () => Promise<Result>): Promise<Result> {
    return this.#change(new RpcSession(), work)
  }

  /**
   * Runs one method at once, saving nothing: for the loader of a saved configuration, which runs before there are
   * clients or inside `framework_start_init`, where waiting for one's turn would be waiting for oneself.
   */
  async replay(name: string, params?: unknown): Promise<unknown> {
    return this.#run(this.#find(name), params)
  }

  /** The answer to one text, a request or a batch; undefined when only notifications were in it. Never throws. */
  async respond(text: string, session: RpcSession): Promise<string | undefined> {
    let message: unknown
    try {
      message = JSON.parse(text)
    } catch (cause) {
      return encodeFailure(new RpcError('PARSE_ERROR', `Parse error: ${(cause as Error).message}`))
    }
    if (!Array.isArray(message)) return this.#answer(message, session)
    if (message.length === 0) return encodeFailure(invalid('a batch is empty'))
    const answers = await Promise.all(message.map(request => this.#answer(request, session)))
    const given = answers.filter(answer => answer !== undefined)
    return given.length === 0 ? undefined : `[${given.join(',')}]`
  }

  async #answer(message: unknown, session: RpcSession): Promise<string | undefined> {
    let request: Request
    try {
      request = parseRequest(message)
    } catch (error) {
      return encodeFailure(error)
    }
    const { method, params, id } = request
    try {
      const result = await this.call(method, params, session)
      return id === undefined ? undefined : encode({ jsonrpc: '2.0', id, result: result ?? null })
    } catch (error) {
      logFailure(method, error)
      return id === undefined ? undefined : encodeFailure(error, id)
    }
  }

  #find(name: string): AnyMethod<Context> {
    const method = this.#byName.get(name)
    if (method !== undefined) return method
    const shown = JSON.stringify(name.slice(0, ID_LENGTH_MAX))
    throw new RpcError(
      'METHOD_NOT_FOUND',
      `Method not found: ${shown}${didYouMean(name, this.#byName.keys())}`,
    )
  }

  /** State and parameters are checked when the turn comes: the request before it may have changed the state. */
  async #run(method: AnyMethod<Context>, params: unknown): Promise<unknown> {
    const { context } = this.#options
    checkState(method, context.rpc.state)
    const started = performance.now()
    // What parseParams returns is what this method's own schema made of it.
    const result = await method.run(parseParams(method, params) as never, context)
    log.debug(`${method.name} took ${(performance.now() - started).toFixed(1)} ms`)
    return result
  }

  #change<Result>(session: RpcSession, work: () => Promise<Result> | Result): Promise<Result> {
    const result = this.#lastChange.then(work)
    // Whoever comes next only wants to know that it is over.
    this.#lastChange = result.catch(() => undefined)
    session.changes = this.#lastChange
    return result
  }
}

/** Checks a JSON-RPC 2.0 request object. Throws INVALID_REQUEST. */
function parseRequest(message: unknown): Request {
  if (typeof message !== 'object' || message === null || Array.isArray(message)) {
    throw invalid('a request is an object')
  }
  const { jsonrpc, method, params, id } = message as Record<string, unknown>
  // Like SPDK's server: the version may be missing, but not be another one.
  if (jsonrpc !== undefined && jsonrpc !== '2.0') throw invalid('"jsonrpc" must be "2.0"')
  if (typeof method !== 'string') throw invalid('"method" must be a string')
  if (params !== undefined && params !== null && typeof params !== 'object') {
    throw invalid('"params" must be an object')
  }
  return { method, params: params ?? undefined, id: parseId(id) }
}

function parseId(id: unknown): Request['id'] {
  if (id === undefined || id === null) return id
  if (typeof id === 'string') {
    if (id.length <= ID_LENGTH_MAX) return id
    throw invalid(`"id" has ${id.length} characters, more than ${ID_LENGTH_MAX}`)
  }
  if (typeof id !== 'number') throw invalid('"id" must be a string, a number or null')
  if (Number.isInteger(id) && !Number.isSafeInteger(id)) {
    throw invalid('"id" is beyond 2^53, where JSON numbers lose digits: send it as a string')
  }
  return id
}

const invalid = (message: string): RpcError => new RpcError('INVALID_REQUEST', `Invalid request: ${message}`)

/** SPDK's own words, which scripts look for. */
function checkState(method: AnyMethod<never>, state: RpcInfo['state']): void {
  if (method.state === 'any' || method.state === state) return
  throw new RpcError(
    'WRONG_STATE',
    method.state === 'runtime'
      ? 'Method may only be called after framework is initialized using framework_start_init RPC.'
      : 'Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter and then issue this RPC before the framework_start_init RPC.',
  )
}

/** The error that travels: everybody's own number and words, or "internal error" for what nobody foresaw. */
function wireError(error: unknown): { code: number; message: string } {
  if (error instanceof RpcError) return { code: error.number, message: clip(error.message) }
  if (error instanceof SysError) return { code: -error.errno, message: clip(error.message) }
  if (error instanceof ProtocolError)
    return wireError(new RpcError('PARSE_ERROR', `Parse error: ${error.message}`))
  const message = error instanceof Error ? error.message : String(error)
  return { code: new RpcError('INTERNAL', '').number, message: clip(`Internal error: ${message}`) }
}

/** A message repeats what was asked for, and that may be a quarter of a megabyte. */
const MESSAGE_LENGTH_MAX = 4096

const clip = (message: string): string =>
  message.length <= MESSAGE_LENGTH_MAX ? message : `${message.slice(0, MESSAGE_LENGTH_MAX)} …`

function logFailure(name: string, error: unknown): void {
  if (error instanceof RpcError || error instanceof SysError) {
    log.info(`${name} was refused: ${error.message}`)
    return
  }
  log.error(`${name} failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`)
}

/** The answer that reports a failure. The id is null when the request was too broken to have one. */
export function encodeFailure(error: unknown, id: string | number | null = null): string {
  return encode({ jsonrpc: '2.0', id, error: wireError(error) })
}

/**
 * Plain ASCII. SPDK's Python client decodes each piece it receives as UTF-8 by itself and drops one that ends inside a
 * character, so characters beyond ASCII travel as escapes.
 */
const encode = (response: object): string =>
  JSON.stringify(response).replace(/[\u007f-\uffff]/g, escapeCharacter)

const escapeCharacter = (character: string): string =>
  `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
