import { describe, expect, it, onTestFinished } from 'vitest'
import { RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import { Dispatcher, RpcSession } from '../../src/rpc/dispatcher.ts'
import { openShelf, type Shelf, shelfMethods } from './support.ts'

async function ask(shelf: Shelf, request: unknown, session = new RpcSession()): Promise<unknown> {
  const text = typeof request === 'string' ? request : JSON.stringify(request)
  const answer = await shelf.dispatcher.respond(text, session)
  return answer === undefined ? undefined : JSON.parse(answer)
}

const error = (id: unknown, code: number, message: unknown): unknown => ({
  jsonrpc: '2.0',
  id,
  error: { code, message },
})

/** A gate that the test opens. */
function close(shelf: Shelf): () => void {
  let open = (): void => {}
  shelf.context.gate = new Promise(resolve => {
    open = resolve
  })
  return open
}

function captureLog(): string[] {
  const lines: string[] = []
  const { write } = logSettings
  logSettings.write = line => void lines.push(line)
  onTestFinished(() => {
    logSettings.write = write
  })
  return lines
}

describe('Dispatcher', () => {
  it('runs a method and answers with its result', async () => {
    const shelf = openShelf()
    expect(
      await ask(shelf, { jsonrpc: '2.0', id: 1, method: 'shelf_put', params: { name: 'a', weight: 7 } }),
    ).toEqual({
      jsonrpc: '2.0',
      id: 1,
      result: true,
    })
    expect([...shelf.context.shelf]).toEqual([['a', 7]])
  })

  it.each([1, 0, -5, 1.5, 'x', '', null, 'y'.repeat(128)])('echoes the id %j', async id => {
    expect(await ask(openShelf(), { id, method: 'shelf_get' })).toEqual({ jsonrpc: '2.0', id, result: [] })
  })

  it.each([
    ['{"id":1,', 'PARSE', -32700],
    ['5', 'not an object', -32600],
    ['[]', 'batch is empty', -32600],
    ['{"id":1}', '"method" must be a string', -32600],
    ['{"id":1,"method":5}', '"method" must be a string', -32600],
    ['{"id":1,"method":"shelf_get","jsonrpc":"1.0"}', '"jsonrpc" must be "2.0"', -32600],
    ['{"id":1,"method":"shelf_get","params":5}', '"params" must be an object', -32600],
    ['{"id":{},"method":"shelf_get"}', '"id" must be', -32600],
    [`{"id":"${'x'.repeat(129)}","method":"shelf_get"}`, '129 characters', -32600],
    ['{"id":9007199254740993,"method":"shelf_get"}', 'beyond 2^53', -32600],
  ])('refuses %s', async (text, reason, code) => {
    const words = reason === 'PARSE' ? 'Parse error' : reason === 'not an object' ? 'is an object' : reason
    expect(await ask(openShelf(), text)).toEqual(error(null, code, expect.stringContaining(words)))
  })

  it('does not send all of a long mistake back', async () => {
    const method = 'm'.repeat(100_000)
    const params = { name: 'a', weight: 'x'.repeat(100_000) }
    for (const request of [
      { id: 1, method },
      { id: 1, method: 'shelf_put', params },
    ]) {
      const answer = JSON.stringify(await ask(openShelf(), request))
      expect(answer).toContain('error')
      expect(answer.length).toBeLessThan(5000)
    }
  })

  it('guesses what an unknown method was meant to be', async () => {
    expect(await ask(openShelf(), { id: 1, method: 'shelf_putt' })).toEqual(
      error(1, -32601, 'Method not found: "shelf_putt"; did you mean shelf_put?'),
    )
  })

  it('finds no method by a name that every object has', async () => {
    expect(await ask(openShelf(), { id: 1, method: 'constructor' })).toMatchObject({
      error: { code: -32601 },
    })
  })

  it('answers bad parameters with -32602 and an errno as a negative number', async () => {
    const shelf = openShelf()
    expect(await ask(shelf, { id: 1, method: 'shelf_put' })).toEqual(
      error(1, -32602, 'shelf_put: name is required'),
    )
    await ask(shelf, { id: 2, method: 'shelf_put', params: { name: 'a' } })
    expect(await ask(shelf, { id: 3, method: 'shelf_put', params: { name: 'a' } })).toEqual(
      error(3, -17, 'a lies on the shelf already'),
    )
  })

  it('runs a method under its old name', async () => {
    const shelf = openShelf()
    await ask(shelf, { id: 1, method: 'put_on_shelf', params: { name: 'a', colour: 'red' } })
    expect(shelf.context.shelf.has('a')).toBe(true)
  })

  it("refuses methods of the other state in SPDK's words", async () => {
    expect(await ask(openShelf('startup'), { id: 1, method: 'shelf_get' })).toEqual(
      error(1, -1, expect.stringMatching(/^Method may only be called after framework is initialized/)),
    )
    expect(await ask(openShelf('runtime'), { id: 1, method: 'framework_start_init' })).toEqual(
      error(1, -1, expect.stringMatching(/^Method may only be called before framework is initialized/)),
    )
    expect(await ask(openShelf('startup'), { id: 1, method: 'shelf_wait' })).toMatchObject({ result: true })
  })

  it('survives a bug in a method, answers -32603 and logs the stack', async () => {
    const lines = captureLog()
    const shelf = openShelf()
    expect(await ask(shelf, { id: 1, method: 'shelf_break' })).toEqual(
      error(1, -32603, 'Internal error: a bug in a method'),
    )
    expect(lines.join('')).toMatch(/ERROR rpc: shelf_break failed: TypeError: a bug in a method\n {4}at /)
    expect(await ask(shelf, { id: 2, method: 'shelf_get' })).toMatchObject({ result: [] })
  })

  it('answers -32603 when a result cannot be written as JSON', async () => {
    captureLog()
    expect(await ask(openShelf(), { id: 1, method: 'shelf_break', params: { how: 'bigint' } })).toMatchObject(
      {
        error: { code: -32603 },
      },
    )
  })

  it('runs a notification and answers nothing, not even an error', async () => {
    const shelf = openShelf()
    expect(await ask(shelf, { method: 'shelf_put', params: { name: 'a' } })).toBeUndefined()
    expect(await ask(shelf, { method: 'shelf_put', params: { name: 'a' } })).toBeUndefined()
    expect(shelf.context.shelf.size).toBe(1)
  })

  it('answers a batch in its order, leaving notifications out', async () => {
    const batch = [
      { id: 'b', method: 'shelf_put', params: { name: 'a' } },
      { method: 'shelf_put', params: { name: 'b' } },
      { id: 'a', method: 'nothing_like_it' },
      7,
      { id: 3, method: 'shelf_get' },
    ]
    expect(await ask(openShelf(), batch)).toEqual([
      { jsonrpc: '2.0', id: 'b', result: true },
      error('a', -32601, expect.anything()),
      error(null, -32600, expect.anything()),
      { jsonrpc: '2.0', id: 3, result: ['a', 'b'] },
    ])
    expect(await ask(openShelf(), [{ method: 'shelf_put', params: { name: 'b' } }])).toBeUndefined()
  })

  it('writes ASCII only, so that a client may decode any piece of it', async () => {
    const shelf = openShelf()
    shelf.context.shelf.set('Größe😀', 1)
    const text = await shelf.dispatcher.respond('{"id":1,"method":"shelf_get"}', new RpcSession())
    expect(text).toContain('Gr\\u00f6\\u00dfe\\ud83d\\ude00')
    expect(JSON.parse(text!)).toMatchObject({ result: ['Größe😀'] })
  })

  describe('order', () => {
    it('saves before it answers', async () => {
      const shelf = openShelf()
      let save = (): void => {}
      shelf.onSave = () => new Promise<void>(resolve => (save = resolve))
      const events: string[] = []
      const answer = ask(shelf, { id: 1, method: 'shelf_put', params: { name: 'a' } }).then(() =>
        events.push('answer'),
      )
      while (!shelf.context.shelf.has('a')) await Promise.resolve()
      await new Promise(setImmediate)
      events.push('saved')
      save()
      await answer
      expect(events).toEqual(['saved', 'answer'])
    })

    it('fails the call when saving fails, and saves nothing for a call that failed or only read', async () => {
      captureLog()
      const shelf = openShelf()
      shelf.onSave = () => {
        throw new Error('disk full')
      }
      expect(await ask(shelf, { id: 1, method: 'shelf_put', params: { name: 'a' } })).toEqual(
        error(1, -32603, 'Internal error: disk full'),
      )
      shelf.onSave = ({ name }) => void shelf.saved.push(name)
      await ask(shelf, { id: 2, method: 'shelf_put', params: { name: 'a' } })
      await ask(shelf, { id: 3, method: 'shelf_get' })
      expect(shelf.saved).toEqual([])
    })

    it('runs changes of all connections one at a time, in order of arrival', async () => {
      const shelf = openShelf()
      const open = close(shelf)
      const puts = ['a', 'b', 'c'].map(name => ask(shelf, { id: 1, method: 'shelf_put', params: { name } }))
      await new Promise(setImmediate)
      expect(shelf.context.shelf.size).toBe(0)
      open()
      await Promise.all(puts)
      expect([...shelf.context.shelf.keys()]).toEqual(['a', 'b', 'c'])
    })

    it('lets others read while a change is under way, but shows a connection its own changes', async () => {
      const shelf = openShelf()
      const open = close(shelf)
      const own = new RpcSession()
      const put = ask(shelf, { id: 1, method: 'shelf_put', params: { name: 'a' } }, own)
      const ownRead = ask(shelf, { id: 2, method: 'shelf_get' }, own)
      expect(await ask(shelf, { id: 3, method: 'shelf_get' })).toMatchObject({ result: [] })
      open()
      expect(await ownRead).toMatchObject({ result: ['a'] })
      await put
    })

    it('does not hold up a change behind a method that waits, even on one connection', async () => {
      const shelf = openShelf('startup')
      const open = close(shelf)
      const session = new RpcSession()
      const wait = ask(shelf, { id: 1, method: 'shelf_wait' }, session)
      expect(await ask(shelf, { id: 2, method: 'framework_start_init' }, session)).toMatchObject({
        result: true,
      })
      open()
      await wait
    })

    it('checks the state when the turn comes, not when the request arrives', async () => {
      const shelf = openShelf('startup')
      const batch = [
        { id: 1, method: 'framework_start_init' },
        { id: 2, method: 'shelf_put', params: { name: 'a' } },
        { id: 3, method: 'shelf_get' },
      ]
      expect(await ask(shelf, batch)).toMatchObject([{ result: true }, { result: true }, { result: ['a'] }])
    })

    it('lets somebody stand around changes, who may change parameters, refuse, or run them again', async () => {
      const { context } = openShelf()
      const dispatcher = new Dispatcher({
        methods: shelfMethods,
        context,
        aroundMutation: async (method, params, run) => {
          const { name } = params as { name: string }
          if (name === 'refused') throw new RpcError('EAGAIN', `${method.name} has to wait`)
          await run({ name: `${name}1` })
          return run({ name: `${name}2` })
        },
      })
      await dispatcher.call('shelf_put', { name: 'a' })
      await expect(dispatcher.call('shelf_put', { name: 'refused' })).rejects.toThrow('shelf_put has to wait')
      expect(await dispatcher.call('shelf_get')).toEqual(['a1', 'a2'])
    })

    it('does other things in their turn, and keeps methods that could run beside them waiting if need be', async () => {
      const { context } = openShelf()
      const dispatcher = new Dispatcher({
        methods: shelfMethods,
        context,
        needsTurn: ({ name }) => name === 'shelf_get',
      })
      let end = (): void => {}
      const work = dispatcher.exclusive(
        () =>
          new Promise<void>(resolve => {
            end = resolve
          }),
      )
      const put = dispatcher.call('shelf_put', { name: 'a' })
      const get = dispatcher.call('shelf_get')
      await new Promise(setImmediate)
      expect(context.shelf.size).toBe(0)
      end()
      await Promise.all([work, put])
      expect(await get).toEqual(['a'])
    })

    it('goes on after a change that failed', async () => {
      captureLog()
      const shelf = openShelf()
      const session = new RpcSession()
      const broken = ask(shelf, { id: 1, method: 'shelf_break' }, session)
      expect(await ask(shelf, { id: 2, method: 'shelf_get' }, session)).toMatchObject({ result: [] })
      await broken
    })

    it('replays at once and saves nothing, even while a change is under way', async () => {
      const shelf = openShelf()
      const open = close(shelf)
      const put = ask(shelf, { id: 1, method: 'shelf_put', params: { name: 'a' } })
      await new Promise(setImmediate)
      shelf.context.gate = Promise.resolve()
      await shelf.dispatcher.replay('shelf_put', { name: 'b' })
      expect([...shelf.context.shelf.keys()]).toEqual(['b'])
      expect(shelf.saved).toEqual([])
      open()
      await put
    })
  })

  it('refuses a table in which two methods have one name', () => {
    const { context } = openShelf()
    expect(() => new Dispatcher({ methods: [...shelfMethods, shelfMethods[0]!], context })).toThrow(
      'two methods are called rpc_get_methods',
    )
  })
})

describe('methods about methods', () => {
  it('lists the methods, those callable now, and old names', async () => {
    const { dispatcher } = openShelf('startup')
    const all = shelfMethods.map(({ name }) => name)
    expect(await dispatcher.call('rpc_get_methods')).toEqual(all)
    expect(await dispatcher.call('rpc_get_methods', { current: true })).toEqual([
      'rpc_get_methods',
      'rpc.discover',
      'shelf_wait',
      'shelf_tune',
      'framework_start_init',
    ])
    expect(await dispatcher.call('rpc_get_methods', { include_aliases: true })).toContain('put_on_shelf')
  })

  it('describes itself as OpenRPC', async () => {
    const document = (await openShelf().dispatcher.call('rpc.discover')) as { methods: { name: string }[] }
    expect(document).toMatchObject({ openrpc: '1.3.2' })
    expect(document.methods.find(({ name }) => name === 'shelf_put')).toEqual({
      name: 'shelf_put',
      summary: 'Puts an object on the shelf.',
      paramStructure: 'by-name',
      params: [
        { name: 'name', summary: '', required: true, schema: { type: 'string', minLength: 1 } },
        {
          name: 'weight',
          summary: '',
          required: false,
          schema: { type: 'integer', minimum: 0, maximum: 4294967295, default: 1 },
        },
        {
          name: 'place',
          summary: '',
          required: false,
          schema: {
            type: 'object',
            properties: {
              row: { type: 'integer', minimum: -9007199254740991, maximum: 9007199254740991 },
              side: { type: 'string', enum: ['left', 'right'] },
            },
            required: ['row'],
            additionalProperties: false,
          },
        },
      ],
      result: { name: 'result', schema: { type: 'boolean', const: true } },
      errors: [{ code: -17, message: 'the name is taken', data: 'EEXIST' }],
      'x-state': 'runtime',
      'x-saves': true,
      'x-aliases': ['put_on_shelf'],
    })
  })
})
