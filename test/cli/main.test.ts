import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { main } from '../../src/cli/main.ts'
import { openShelf, serveShelf, shelfMethods, temporaryDirectory } from '../rpc/support.ts'
import { loaded, RecordingTerminal } from './support.ts'

interface Outcome {
  readonly code: number
  readonly out: string
  readonly error: string
}

/** A daemon with a shelf, and a command line that finds it. */
async function shelf(isTerminal = false): Promise<(...args: string[]) => Promise<Outcome>> {
  const server = await serveShelf(openShelf())
  return async (...args) => {
    const terminal = new RecordingTerminal({
      isTerminal,
      env: { QPAIR_SOCKET: server.address, NO_COLOR: '1' },
    })
    const code = await main(args, terminal, loaded(shelfMethods))
    return { code, out: terminal.out, error: terminal.error }
  }
}

/** Without any daemon. */
async function alone(...args: string[]): Promise<Outcome> {
  const terminal = new RecordingTerminal({ env: { QPAIR_SOCKET: join(temporaryDirectory(), 'none.sock') } })
  const code = await main(args, terminal, loaded(shelfMethods))
  return { code, out: terminal.out, error: terminal.error }
}

describe('qpair NOUN VERB', () => {
  it('calls the method and prints nothing for "it is done"', async () => {
    const qpair = await shelf()
    expect(await qpair('shelf', 'put', '--name', 'a', '--weight', '3')).toEqual({
      code: 0,
      out: '',
      error: '',
    })
    expect(await qpair('shelf', 'get')).toEqual({ code: 0, out: '[\n  "a"\n]\n', error: '' })
  })

  it('prints JSON for what is done as well, when told to, before or behind the command', async () => {
    const qpair = await shelf()
    expect((await qpair('shelf', 'put', '--name', 'a', '--json')).out).toBe('true\n')
    expect((await qpair('--json', 'shelf', 'put', '--name', 'b')).out).toBe('true\n')
  })

  it('shows a table on a terminal only', async () => {
    const qpair = await shelf(true)
    await qpair('shelf', 'put', '--name', 'a', '--weight', '30')
    await qpair('shelf', 'put', '--name', 'b\u001b[2J')
    expect((await qpair('shelf', 'weigh')).out).toBe(
      'NAME   WEIGHT KG  HEAVY\na             30  yes\nb?[2J          1  no\n',
    )
    expect((await qpair('shelf', 'weigh', '--json')).out).toContain('"weight_kg": 30')
  })

  it('exits with 1 and the daemon’s words when it refuses', async () => {
    const qpair = await shelf()
    await qpair('shelf', 'put', '--name', 'a')
    expect(await qpair('shelf', 'put', '--name', 'a')).toEqual({
      code: 1,
      out: '',
      error: 'qpair: a lies on the shelf already\n',
    })
  })

  it('exits with 1 when there is no daemon, and says how to start one', async () => {
    const { code, error } = await alone('shelf', 'get')
    expect(code).toBe(1)
    expect(error).toMatch(
      /^qpair: no daemon answers at .*none\.sock .*start it with: qpair serve -r .*none\.sock\n$/,
    )
  })

  it.each([
    [['shelf', 'put'], '--name is required'],
    [['shelf', 'gte'], 'there is no command shelf gte; did you mean get? See qpair shelf --help'],
    [['completion'], 'say for which shell: bash, zsh, fish; see qpair completion --help'],
    [['shlf'], 'there is no command shlf; did you mean shelf? See qpair --help'],
    [['she', 'get'], 'there is no command she; did you mean shelf? See qpair --help'],
    [['she-gett', 'a'], 'there is no command she-gett; did you mean shelf get? See qpair --help'],
    [['shelf-nothing'], 'there is no command shelf-nothing; see qpair --help'],
    [['help', 'shelf', 'gte'], 'there is no command shelf gte; did you mean get?'],
    [['shelf_put'], 'a method is called with: qpair rpc shelf_put'],
    [['--rcp-socket', 'x', 'shelf'], 'there is no option --rcp-socket before the command'],
    [['-r'], '-r needs a value'],
    [['--timeout', 'soon', 'shelf'], '--timeout is a number of seconds, not soon'],
    [['shelf', 'get', '--rpc-socket'], '--rpc-socket needs a value'],
    [['completion', 'tcsh'], 'completion is for bash, zsh, fish, not tcsh'],
    [['rpc', 'nothing', '-x'], 'qpair has no method nothing'],
    [['rpc', '-q', 'shelf_get'], '-q is not an option of qpair rpc'],
    [['rpc', 'shelf_put', '{"name":'], 'the parameters are not JSON'],
    [['load_config', '-j', '/no/such/file'], 'there is no file /no/such/file'],
    [['load_config', '-j', '{"subsystems":'], 'the configuration is not JSON'],
  ])('exits with 2 for %j', async (args, message) => {
    const { code, out, error } = await alone(...args)
    expect({ code, out }).toEqual({ code: 2, out: '' })
    expect(error).toContain(message)
  })

  it('names the words that may follow the beginning of a verb', async () => {
    const terminal = new RecordingTerminal({ isTerminal: true })
    expect(await main(['volume', 'snapshot', '--help'], terminal)).toBe(2)
    expect(terminal.error).toContain(
      'volume snapshot has another word behind it: create, list, revert, delete; see qpair volume --help',
    )
  })

  it('names the choices there are for what is missing', async () => {
    const terminal = new RecordingTerminal()
    expect(await main(['stop'], terminal)).toBe(2)
    expect(terminal.error).toMatch(/^qpair: SIG_NAME is required: one of SIGINT, SIGTERM, .*SIGUSR1\n$/)
  })

  it('finds the daemon by -r, --rpc-socket and QPAIR_SOCKET', async () => {
    const { address } = await serveShelf(openShelf())
    for (const args of [
      ['-r', address, 'shelf', 'get'],
      [`--rpc-socket=${address}`, 'shelf', 'get'],
      ['shelf', 'get', '--rpc-socket', address],
      ['rpc', '-s', address, 'shelf_get'],
      ['rpc', '-r', '3', '-t', '5.5', '-v', '-s', address, 'shelf_get'],
    ]) {
      expect(await alone(...args), args.join(' ')).toMatchObject({ code: 0, out: '[]\n' })
    }
  })
})

describe('help', () => {
  it('lists commands, nouns and options; without a command it is an error', async () => {
    const { code, out } = await alone('--help')
    expect(code).toBe(0)
    for (const word of [
      'serve',
      'doctor',
      'rpc METHOD',
      'save_config',
      'shelf VERB',
      'methods',
      '--rpc-socket',
    ]) {
      expect(out).toContain(word)
    }
    expect(await alone()).toMatchObject({ code: 2, out })
  })

  it('says where the script for completion goes', async () => {
    for (const words of [
      ['completion', '--help'],
      ['completion', 'bash', '-h'],
      ['--help', 'completion'],
    ]) {
      expect((await alone(...words)).out).toContain('source <(qpair completion bash)')
    }
  })

  it('lists the verbs of a noun', async () => {
    expect((await alone('shelf')).out).toMatch(/^ {2}put +Puts an object on the shelf\.$/m)
    expect((await alone('shelf', '--help')).out).toBe((await alone('shelf')).out)
  })

  it('is no wider than the terminal', async () => {
    const terminal = new RecordingTerminal({ isTerminal: true, columns: 60 })
    expect(await main(['--help'], terminal, loaded(shelfMethods))).toBe(0)
    expect(Math.max(...terminal.out.split('\n').map(line => line.length))).toBeLessThanOrEqual(60)
  })

  it('says everything about a command', async () => {
    const { out } = await alone('shelf', 'put', '--help')
    expect(out).toBe(
      [
        'Puts an object on the shelf.',
        '',
        'Usage: qpair shelf put [OPTIONS] --name NAME',
        '',
        'Options',
        '  --name NAME  (required)',
        '  --weight N   (default 1)',
        '  --row N',
        '  --side SIDE  (left, right)',
        '',
        'Errors',
        '  EEXIST  the name is taken',
        '',
        'Also',
        '  qpair rpc shelf_put',
        '',
      ].join('\n'),
    )
    expect((await alone('--help', 'shelf', 'put')).out).toBe(out)
    expect((await alone('help', 'shelf', 'put')).out).toBe(out)
    expect((await alone('rpc', 'shelf_put', '--help')).out).toContain('Usage: qpair rpc shelf_put [OPTIONS]')
  })

  it('lists methods under rpc', async () => {
    expect((await alone('rpc')).out).toContain('shelf_put')
  })

  it('prints the version of the package', async () => {
    expect((await alone('--version')).out).toMatch(/^\d+\.\d+\.\d+\n$/)
  })
})

describe('qpair rpc', () => {
  it('takes flags, JSON, and methods it does not know', async () => {
    const qpair = await shelf()
    expect(await qpair('rpc', 'shelf_put', '--name', 'a')).toMatchObject({ code: 0, out: '' })
    expect(await qpair('rpc', 'put_on_shelf', '{"name":"b"}')).toMatchObject({ code: 0, out: '' })
    expect(await qpair('rpc', 'shelf_gone', '{"name":"b"}')).toMatchObject({ code: 1 })
    expect((await qpair('rpc', 'shelf_get')).out).toBe('[\n  "a",\n  "b"\n]\n')
  })

  it('prints names that a change returns as shell words', async () => {
    const qpair = await shelf()
    await qpair('rpc', 'shelf_put', '--name', "it's")
    await qpair('rpc', 'shelf_put', '--name', 'b')
    expect((await qpair('rpc', 'shelf_clear')).out).toBe(`'it'"'"'s' b\n`)
  })

  it('shows the request and sends nothing with --dry-run', async () => {
    const { code, out } = await alone('rpc', '--dry-run', 'shelf_put', '--name', 'a')
    expect(code).toBe(0)
    expect(out).toBe('Request:\n{\n  "method": "shelf_put",\n  "params": {\n    "name": "a"\n  }\n}\n')
  })
})

describe('configuration', () => {
  it('is saved and loaded through a file, standard input and the argument itself', async () => {
    const qpair = await shelf()
    await qpair('rpc', 'shelf_put', '--name', 'a', '--weight', '7')
    const { out } = await qpair('save_config')
    expect(JSON.parse(out)).toEqual({
      subsystems: [
        { subsystem: 'floor', config: [] },
        { subsystem: 'shelf', config: [{ method: 'shelf_put', params: { name: 'a', weight: 7 } }] },
      ],
    })
    const file = join(temporaryDirectory(), 'saved.json')
    writeFileSync(file, out)
    for (const source of [file, out]) {
      const other = await shelf()
      expect(await other('load_config', '-j', source)).toEqual({ code: 0, out: '', error: '' })
      expect((await other('save_config')).out).toBe(out)
    }
    const server = await serveShelf(openShelf())
    const terminal = new RecordingTerminal({ env: { QPAIR_SOCKET: server.address } })
    terminal.stdin = out
    expect(await main(['rpc', 'load_config'], terminal, loaded(shelfMethods))).toBe(0)
  })

  it('of one subsystem is saved and loaded, on one line when asked', async () => {
    const qpair = await shelf()
    await qpair('rpc', 'shelf_put', '--name', 'a')
    const { out } = await qpair('save_subsystem_config', '-n', 'shelf', '-i', '-1')
    expect(out).toBe(
      '{"subsystem":"shelf","config":[{"method":"shelf_put","params":{"name":"a","weight":1}}]}\n',
    )
    const other = await shelf()
    await other('load-subsystem-config', '-j', out)
    expect((await other('rpc', 'shelf_get')).out).toContain('"a"')
  })

  it('starts a daemon that waits, and sends each call in the state that takes it', async () => {
    const config = {
      subsystems: [
        {
          subsystem: 'shelf',
          config: [[{ method: 'shelf_put', params: { name: 'a' } }, { method: 'shelf_get' }]],
        },
        { subsystem: 'floor', config: null },
        { subsystem: 'app', config: [{ method: 'shelf_tune' }] },
      ],
    }
    const waiting = openShelf('startup')
    const server = await serveShelf(waiting)
    const load = (text: string): Promise<Outcome> => alone('-r', server.address, 'load_config', '-j', text)
    expect(await load(JSON.stringify(config))).toEqual({ code: 0, out: '', error: '' })
    expect(waiting.context.rpc.state).toBe('runtime')
    expect([...waiting.context.shelf.keys()]).toEqual(['a'])
    // Once more: what belongs before the start is skipped, and that is said.
    waiting.context.shelf.clear()
    const again = await load(JSON.stringify(config))
    expect(again).toMatchObject({ code: 0, error: expect.stringContaining('1 entries were skipped') })
    expect([...waiting.context.shelf.keys()]).toEqual(['a'])
  })

  it('with an unknown call is refused before anything is sent', async () => {
    const qpair = await shelf()
    const config = [{ method: 'shelf_put', params: { name: 'a' } }, { method: 'shelf_fly' }]
    const text = JSON.stringify({ subsystems: [{ subsystem: 'shelf', config }] })
    expect(await qpair('load_config', '-j', text)).toMatchObject({
      code: 2,
      error: 'qpair: the configuration calls "shelf_fly", which the daemon does not know\n',
    })
    expect((await qpair('rpc', 'shelf_get')).out).toBe('[]\n')
  })

  it('of an empty file starts a daemon that waits', async () => {
    const waiting = openShelf('startup')
    const server = await serveShelf(waiting)
    expect(await alone('-r', server.address, 'load_config', '-j', '{"subsystems":[]}')).toMatchObject({
      code: 0,
    })
    expect(waiting.context.rpc.state).toBe('runtime')
    expect(await alone('-r', server.address, 'load_config', '-j', '{"subsystems":[]}')).toMatchObject({
      code: 0,
    })
  })
})
