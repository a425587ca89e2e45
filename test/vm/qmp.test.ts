/** The fake QEMU writes the bytes that qmp-spec.rst shows. */
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ProtocolError } from '../../src/core/errors.ts'
import { Prng } from '../../src/core/prng.ts'
import { Qmp, QmpClosed, QmpError, type QmpEvent } from '../../src/vm/qmp.ts'

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

const SEEDS = Array.from({ length: 64 }, (_, seed) => seed)
const LINES = [
  '{"return": {}, "id": 2}\r\n',
  '{"return": {"status": "running"}, "id": 3}\r\n',
  '{"error": {"class": "GenericError", "desc": "no"}, "id": 2}\r\n',
  '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP", "data": {"device": "disk-vda"}}\r\n',
  '{"event": "STOP", "data": [1]}\n',
  '{"id": {"toString": 1}, "return": 1}\n',
  '{"error": null, "id": 3}\n',
  '{"error": {"class": {"toString": 1}, "desc": {"toString": 1}}, "id": 3}\n',
  GREETING,
]

/** Lines of QEMU's with bytes changed, taken out and doubled, in pieces. */
function* garbage(random: Prng): Generator<Buffer> {
  for (let line = random.below(12); line > 0; line--) {
    const bytes = Buffer.from(LINES[random.below(LINES.length)]!)
    for (let change = random.below(3); change > 0; change--)
      bytes[random.below(bytes.length)] = random.below(256)
    const cut = random.below(bytes.length)
    yield bytes.subarray(0, cut)
    yield bytes.subarray(random.below(8) === 0 ? Math.max(0, cut - 3) : cut)
  }
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

  it('is not left open when QEMU does not negotiate', async () => {
    const ends: Promise<void>[] = []
    await fakeQemu((_command, socket) => {
      ends.push(new Promise(resolve => socket.once('close', () => resolve())))
      return undefined
    })
    await expect(Qmp.connect(path, { timeoutMs: 20 })).rejects.toThrow('has not answered qmp_capabilities')
    await Promise.all(ends)
    expect(ends).toHaveLength(1)
  })

  it.each(SEEDS)('is answered or ended, whatever QEMU sends (seed %i)', async seed => {
    const random = new Prng(seed)
    await fakeQemu((command, socket) => {
      if (command === 'qmp_capabilities' && seed % 4 !== 0) return agrees(command, socket)
      for (const piece of garbage(random)) socket.write(piece)
      socket.end()
      return undefined
    })
    const heard: QmpEvent[] = []
    const work = async (): Promise<unknown[]> => {
      const qmp = await Qmp.connect(path, { onEvent: event => heard.push(event) })
      const event = qmp.event('STOP')
      const answers = await Promise.allSettled([qmp.execute('stop'), qmp.execute('cont'), event])
      await qmp.closed
      return answers.flatMap(answer => (answer.status === 'rejected' ? [answer.reason] : []))
    }
    const reasons = await work().catch(error => [error])
    for (const reason of reasons) {
      const isKnown = [QmpClosed, QmpError, ProtocolError].some(each => reason instanceof each)
      expect(isKnown, String(reason)).toBe(true)
    }
    for (const { event, data } of heard) expect([typeof event, typeof data]).toEqual(['string', 'object'])
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
