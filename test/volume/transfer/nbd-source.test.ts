import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Piece } from '../../../src/volume/transfer/copy.ts'
import { NbdSource } from '../../../src/volume/transfer/nbd-source.ts'
import { parseNbdUri } from '../../../src/volume/transfer/nbd-uri.ts'

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(/\s/g, ''), 'hex')

// By hand from the NBD protocol: "NBDMAGIC", "IHAVEOPT", fixed newstyle and no zeroes.
const GREETING = hex('4e42444d41474943 49484156454f5054 0003')
const ack = (option: string): Buffer => hex(`0003e889045565a9 ${option} 00000001 00000000`)
const refusal = (option: string): Buffer => hex(`0003e889045565a9 ${option} 80000001 00000000`)
const CONTEXT = hex(
  `0003e889045565a9 0000000a 00000004 00000013 00000001 ${Buffer.from('base:allocation').toString('hex')}`,
)
/** NBD_REP_INFO with NBD_INFO_EXPORT: 1 MiB, flags. */
const EXPORT = hex('0003e889045565a9 00000007 00000003 0000000c 0000 0000000000100000 0003')
const GO = Buffer.concat([EXPORT, ack('00000007')])

let directory: string
let server: Server
let uri: string
/** What the server sends after each of the client's messages, in turn. */
let script: (Buffer | ((message: Buffer) => Buffer))[]
let heard: Buffer[]
const sockets = new Set<Socket>()

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-nbd-'))
  heard = []
  server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.write(GREETING)
    const turns = [...script]
    let isGreeted = false
    socket.on('data', data => {
      // The client's four bytes of flags may come with its first option.
      const message = isGreeted ? data : data.subarray(4)
      isGreeted = true
      if (message.length === 0) return
      heard.push(message)
      const turn = turns.shift()
      if (turn !== undefined) socket.write(typeof turn === 'function' ? turn(message) : turn)
    })
  })
  const path = join(directory, 's')
  await new Promise<void>(resolve => server.listen(path, resolve))
  uri = `nbd+unix:///disk?socket=${path}`
})
afterEach(() => {
  for (const socket of sockets) socket.destroy()
  server.close()
  rmSync(directory, { recursive: true })
})

const STRUCTURED = [ack('00000008'), Buffer.concat([CONTEXT, ack('0000000a')]), GO]
const SIMPLE = [refusal('00000008'), GO]
const piece = (size: number): Piece => ({ address: 0, bytes: Buffer.alloc(size, 0xee) })

async function ranges(source: NbdSource): Promise<(readonly [number, number])[]> {
  const found: (readonly [number, number])[] = []
  for await (const range of source.ranges(0)) found.push(range)
  return found
}

describe('NbdSource', () => {
  it('negotiates with a server that has everything', async () => {
    script = STRUCTURED
    const source = await NbdSource.open(uri)
    expect(source.sizeBytes).toBe(2 ** 20)
    expect(heard).toEqual([
      hex('49484156454f5054 00000008 00000000'),
      hex(
        `49484156454f5054 0000000a 0000001f 00000004 ${Buffer.from('disk').toString('hex')} 00000001 0000000f ${Buffer.from('base:allocation').toString('hex')}`,
      ),
      hex(`49484156454f5054 00000007 0000000a 00000004 ${Buffer.from('disk').toString('hex')} 0000`),
    ])
    await source.close()
  })

  it('reads by simple replies where there are no others', async () => {
    script = [...SIMPLE, hex('67446698 00000000 0000000000000001 aabbccdd')]
    const source = await NbdSource.open(uri)
    expect(await ranges(source)).toEqual([[0, 2 ** 20]])
    const { address, bytes } = piece(8)
    await source.read({ address, bytes }, 512, 4)
    expect(bytes).toEqual(hex('aabbccdd eeeeeeee'))
    expect(heard.at(-1)).toEqual(hex('25609513 0000 0000 0000000000000001 0000000000000200 00000004'))
    await source.close()
  })

  it('puts the chunks of a structured reply together', async () => {
    script = [
      ...STRUCTURED,
      hex(`
        668e33ef 0000 0002 0000000000000001 0000000c 0000000000000202 00000002
        668e33ef 0001 0001 0000000000000001 0000000a 0000000000000200 aabb`),
    ]
    const source = await NbdSource.open(uri)
    const { address, bytes } = piece(5)
    await source.read({ address, bytes }, 512, 4)
    expect(bytes).toEqual(hex('aabb0000 ee'))
    await source.close()
  })

  it('tells which parts hold data', async () => {
    // 64 KiB of data, 128 KiB of zeroes, and data that reaches beyond the end.
    script = [
      ...STRUCTURED,
      hex(`668e33ef 0001 0005 0000000000000001 0000001c 00000001
           00010000 00000000 00020000 00000003 00100000 00000000`),
    ]
    const source = await NbdSource.open(uri)
    expect(await ranges(source)).toEqual([
      [0, 0x10000],
      [0x30000, 2 ** 20],
    ])
    await source.close()
  })

  it('tells of an error that the server has', async () => {
    script = [...SIMPLE, hex('67446698 00000005 0000000000000001')]
    const source = await NbdSource.open(uri)
    await expect(source.read(piece(4), 0, 4)).rejects.toMatchObject({
      code: 'EIO',
      message: expect.stringContaining('error 5'),
    })
    await source.close()
  })

  it.each([
    ['begins with another magic number', hex('deadbeef 00000000 0000000000000001 aabbccdd')],
    ['answers what was not asked', hex('67446698 00000000 0000000000000007 aabbccdd')],
    [
      'sends data from before what was asked for',
      hex('668e33ef 0001 0001 0000000000000001 0000000a 0000000000000100 aabb'),
    ],
    [
      'sends more than was asked for',
      hex(`668e33ef 0001 0001 0000000000000001 0000000d 0000000000000200 aabbccddee`),
    ],
    [
      'tells of a hole beyond what was asked for',
      hex('668e33ef 0001 0002 0000000000000001 0000000c 0000000000000200 ffffffff'),
    ],
    ['sends a chunk without end', hex('668e33ef 0001 0005 0000000000000001 ffffffff')],
  ])('ends the connection of a server that %s', async (_, bytes) => {
    script = [...STRUCTURED, bytes]
    const source = await NbdSource.open(uri)
    await expect(source.read(piece(8), 512, 4)).rejects.toMatchObject({ code: 'EIO' })
    await expect(source.read(piece(8), 0, 4)).rejects.toMatchObject({ code: 'EIO' })
    await source.close()
  })

  it.each([
    [
      'no export of that name',
      [refusal('00000008'), hex('0003e889045565a9 00000007 80000006 00000000')],
      'it has none of that name',
    ],
    ['no answer to the option that was sent', [ack('00000003')], 'option 8 is answered as 3'],
    [
      'TLS first',
      [refusal('00000008'), hex('0003e889045565a9 00000007 80000005 00000000')],
      'it asks for TLS',
    ],
  ])('says that a server has %s', async (_, turns, message) => {
    script = turns
    await expect(NbdSource.open(uri)).rejects.toThrow(message)
  })

  it('fails at once when it is told to, though the server does not answer', async () => {
    script = STRUCTURED
    const source = await NbdSource.open(uri)
    const reading = source.read(piece(4), 0, 4)
    source.abort()
    await expect(reading).rejects.toMatchObject({ code: 'EIO' })
  })

  it('names the address when nobody is there', async () => {
    await expect(NbdSource.open('nbd+unix:///x?socket=/nowhere')).rejects.toMatchObject({
      code: 'ECONNREFUSED',
      message: expect.stringContaining('nbd+unix:///x?socket=/nowhere cannot be reached'),
    })
  })
})

describe('parseNbdUri', () => {
  it.each([
    ['nbd://h/a%20b', { host: 'h', port: 10809, exportName: 'a b' }],
    ['nbd://[::1]:99', { host: '::1', port: 99, exportName: '' }],
    ['nbd+unix:///e?socket=/run/x', { socketPath: '/run/x', exportName: 'e' }],
  ])('takes %s', (text, address) => {
    expect(parseNbdUri(text)).toMatchObject(address)
  })

  it.each(['nbd:', 'nbd+unix:///e', 'nbds://h/e', 'nbd+vsock:///e'])('refuses %s', text => {
    expect(() => parseNbdUri(text)).toThrow(/is not an NBD address/)
  })
})
