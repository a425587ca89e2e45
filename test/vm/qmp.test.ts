/** The fake QEMU writes the bytes that qmp-spec.rst shows. */
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Qmp, QmpClosed, QmpError } from '../../src/vm/qmp.ts'

const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}\r\n'

let directory: string
let path: string
let server: Server

/** What each command is answered with, as text with the id put in for `$ID`; undefined: not at all. */
type Script = (command: string, socket: Socket) => string | undefined

async function fakeQemu(script: Script, greeting = GREETING): Promise<string[]> {
  const heard: string[] = []
  server = createServer(socket => {
    let rest = ''
    socket.on('error', () => {})
    socket.write(greeting)
    socket.setEncoding('utf8').on('data', text => {
      const lines = (rest + String(text)).split('\n')
      rest = lines.pop()!
      for (const line of lines) {
        const { execute, id } = JSON.parse(line)
        heard.push(line)
        const answer = script(execute, socket)?.replaceAll('$ID', String(id))
        if (answer !== undefined) socket.write(answer)
      }
    })
  })
  await new Promise<void>(resolve => server.listen(path, resolve))
  return heard
}

const agrees: Script = () => '{"return": {}, "id": $ID}\r\n'

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qmp-'))
  path = join(directory, 'qmp')
})
afterEach(() => {
  server?.close()
  rmSync(directory, { recursive: true, force: true })
})

describe('a session with QEMU', () => {
  it('waits for the greeting, negotiates, and gives each command an id of its own', async () => {
    const heard = await fakeQemu(agrees)
    const qmp = await Qmp.connect(path)
    expect(await qmp.execute('stop')).toEqual({})
    qmp.close()
    expect(heard).toEqual([
      '{"execute":"qmp_capabilities","arguments":{},"id":1}',
      '{"execute":"stop","arguments":{},"id":2}',
    ])
  })

  it('matches answers to commands by id, in whatever order and pieces they come', async () => {
    const answers: string[] = []
    await fakeQemu((command, socket) => {
      if (command === 'qmp_capabilities') return agrees(command, socket)
      answers.push(`{"return": "${command}", "id": $ID}\n`)
      if (answers.length < 2) return undefined
      socket.write('{"return": "late", ')
      // Answers the second command first: id 3, then id 2.
      return '"id": 3}\n{"return": "early", "id": 2}\n'
    })
    const qmp = await Qmp.connect(path)
    const both = await Promise.all([qmp.execute('a'), qmp.execute('b')])
    qmp.close()
    expect(both).toEqual(['early', 'late'])
  })

  it("hands on QEMU's class and text of an error", async () => {
    await fakeQemu((command, socket) =>
      command === 'device_del'
        ? '{"id": $ID, "error": {"class": "DeviceNotFound", "desc": "Device \'x\' not found"}}\r\n'
        : agrees(command, socket),
    )
    const qmp = await Qmp.connect(path)
    const error = await qmp.execute('device_del', { id: 'x' }).catch((reason: unknown) => reason)
    qmp.close()
    expect(error).toBeInstanceOf(QmpError)
    expect(error).toMatchObject({ class: 'DeviceNotFound', desc: "Device 'x' not found" })
    expect(String(error)).toContain("QEMU's device_del: Device 'x' not found")
  })

  it('resolves with the event that passes the test, and tells all of them', async () => {
    const all: string[] = []
    await fakeQemu((command, socket) => {
      if (command !== 'device_del') return agrees(command, socket)
      return (
        '{"return": {}, "id": $ID}\r\n' +
        '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "DEVICE_DELETED", "data": {"path": "/machine/x"}}\r\n' +
        '{"timestamp": {"seconds": 1, "microseconds": 3}, "event": "DEVICE_DELETED", "data": {"device": "d1"}}\r\n'
      )
    })
    const qmp = await Qmp.connect(path, { onEvent: ({ event }) => all.push(event) })
    const gone = qmp.event('DEVICE_DELETED', ({ device }) => device === 'd1')
    await qmp.execute('device_del', { id: 'd1' })
    expect((await gone).data).toEqual({ device: 'd1' })
    qmp.close()
    expect(all).toEqual(['DEVICE_DELETED', 'DEVICE_DELETED'])
  })
})

describe('a QEMU that misbehaves', () => {
  it('is told from one that is not there', async () => {
    await expect(Qmp.connect(path)).rejects.toThrow(/does not listen at .*qmp/)
  })

  it('does not hold up a client that it never greets', async () => {
    await fakeQemu(agrees, '')
    await expect(Qmp.connect(path, { timeoutMs: 50 })).rejects.toThrow('has not greeted within 0.05 s')
  })

  it('does not hold up a command that it never answers, and may answer the next', async () => {
    await fakeQemu((command, socket) => (command === 'slow' ? undefined : agrees(command, socket)))
    const qmp = await Qmp.connect(path)
    await expect(qmp.execute('slow', {}, 20)).rejects.toThrow('has not answered slow')
    expect(await qmp.execute('cont')).toEqual({})
    qmp.close()
  })

  it.each(['this is no JSON\n', '[1, 2]\n', '"QMP"\n'])('loses its session for %j', async line => {
    await fakeQemu((command, socket) => (command === 'x' ? line : agrees(command, socket)))
    const qmp = await Qmp.connect(path)
    await expect(qmp.execute('x')).rejects.toThrow('no message')
    await expect(qmp.execute('y')).rejects.toThrow('no message')
  })

  it('loses its session for a line without end', async () => {
    await fakeQemu((command, socket) =>
      command === 'x' ? 'x'.repeat((16 << 20) + 1) : agrees(command, socket),
    )
    const qmp = await Qmp.connect(path)
    await expect(qmp.execute('x')).rejects.toThrow('more than 16777216 characters')
  })

  it('that ends rejects every command and event, and says so once', async () => {
    await fakeQemu((command, socket) => {
      if (command !== 'quit') return agrees(command, socket)
      socket.destroy()
      return undefined
    })
    const qmp = await Qmp.connect(path)
    const event = qmp.event('SHUTDOWN')
    await expect(qmp.execute('quit')).rejects.toBeInstanceOf(QmpClosed)
    await expect(event).rejects.toBeInstanceOf(QmpClosed)
    expect((await qmp.closed).message).toBe('QEMU has closed the connection')
  })
})
