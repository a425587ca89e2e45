import { afterEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { COMMANDS_MAX } from '../../src/nbd/transmission.ts'
import {
  type Client,
  COOKIE,
  chunk,
  EXPORT,
  request,
  simpleReply,
  type WireOptions,
  WireService,
} from './support.ts'

const [READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] = [0, 1, 2, 3, 4, 5, 6, 7]
const FUA = 1
const NO_HOLE = 2
const DF = 4
const REQ_ONE = 8
const FAST_ZERO = 16
const EPERM = 1
const EINVAL = 22
const ENOSPC = 28
const EOVERFLOW = 75
const DONE = 1
const OFFSET_DATA = 1
const STATUS = 5
const ERROR = 0x8001

let service: WireService
let lines: string[]
const { write } = logSettings

async function start(
  options: WireOptions & { structured?: boolean; readOnly?: boolean } = {},
): Promise<Client> {
  lines = []
  logSettings.write = line => void lines.push(line)
  service = await WireService.start(options)
  await service.exports.start({ ...EXPORT, readOnly: options.readOnly ?? false })
  const client = await service.dial()
  return client.enter({ structured: options.structured ?? false })
}

afterEach(() => {
  service.close()
  logSettings.write = write
})

const pattern = (size: number, seed = 1): string => {
  const bytes = Buffer.alloc(size)
  for (let i = 0; i < size; i++) bytes[i] = (i * 7 + seed + (i >> 8)) & 0xff
  return bytes.toString('hex')
}

/** Waits for `size` bytes, as a client that keeps reading does. */
function takeAll(client: Client, size: number): Buffer {
  const parts: Buffer[] = []
  let left = size
  while (left > 0) {
    const part = client.take(left)
    if (part.length === 0) throw new Error(`${left} of ${size} bytes never came`)
    parts.push(part)
    left -= part.length
  }
  return Buffer.concat(parts)
}

describe('commands with simple replies', () => {
  it('writes, then reads what was written', async () => {
    const client = await start()
    const data = pattern(1024)
    expect(client.ask(request({ type: WRITE, offset: 512, length: 1024 }) + data)).toBe(simpleReply())
    expect(client.ask(request({ type: READ, offset: 512, length: 1024 }))).toBe(simpleReply() + data)
  })

  it('takes FUA on writes, trims and zeroes', async () => {
    const client = await start()
    expect(client.ask(request({ type: WRITE, flags: FUA, length: 512 }) + pattern(512))).toBe(simpleReply())
    expect(client.ask(request({ type: TRIM, flags: FUA, length: 512 }))).toBe(simpleReply())
    expect(client.ask(request({ type: WRITE_ZEROES, flags: FUA | NO_HOLE | FAST_ZERO, length: 512 }))).toBe(
      simpleReply(),
    )
  })

  it('zeroes and trims only what was named', async () => {
    const client = await start()
    client.ask(request({ type: WRITE, length: 2048 }) + pattern(2048))
    expect(client.ask(request({ type: WRITE_ZEROES, offset: 512, length: 512 }))).toBe(simpleReply())
    expect(client.ask(request({ type: TRIM, offset: 1024, length: 512 }))).toBe(simpleReply())
    const expected = pattern(512) + '00'.repeat(1024) + pattern(2048).slice(3072)
    expect(client.ask(request({ type: READ, length: 2048 }))).toBe(simpleReply() + expected)
  })

  it('zeroes more than it does at once', async () => {
    const client = await start({ blocks: 40 * 2048 })
    client.ask(request({ type: WRITE, offset: (20 << 20) - 512, length: 1024 }) + pattern(1024))
    expect(client.ask(request({ type: WRITE_ZEROES, length: 20 << 20 }))).toBe(simpleReply())
    expect(client.ask(request({ type: READ, offset: (20 << 20) - 512, length: 1024 }))).toBe(
      simpleReply() + '00'.repeat(512) + pattern(1024).slice(1024),
    )
  })

  it('flushes and caches', async () => {
    const client = await start()
    expect(client.ask(request({ type: FLUSH }))).toBe(simpleReply())
    expect(client.ask(request({ type: CACHE, length: 1 << 20 }))).toBe(simpleReply())
  })

  it('answers each of many with its own cookie', async () => {
    const client = await start()
    const cookies = Array.from({ length: 300 }, (_, i) => i.toString(16).padStart(16, '0'))
    const replies = client.ask(cookies.map(cookie => request({ type: FLUSH, cookie })).join(''))
    expect(new Set(replies.match(/.{32}/g))).toEqual(new Set(cookies.map(cookie => simpleReply(0, cookie))))
  })

  it('sends a long read as one reply, whatever else is asked meanwhile', async () => {
    const client = await start({ blocks: 8 * 2048, capacity: 1 << 16 })
    const size = 3 << 20
    for (let at = 0; at < size; at += 1 << 20) {
      client.ask(request({ type: WRITE, offset: at, length: 1 << 20 }) + pattern(1 << 20, at >> 20))
    }
    client.send(request({ type: READ, length: size }) + request({ type: FLUSH, cookie: 'ff'.repeat(8) }))
    const all = takeAll(client, 16 + size + 16).toString('hex')
    const flushed = simpleReply(0, 'ff'.repeat(8))
    const rest = all.startsWith(flushed) ? all.slice(32) : all.slice(0, -32)
    expect(all).toHaveLength(rest.length + 32)
    expect(rest === simpleReply() + pattern(1 << 20, 0) + pattern(1 << 20, 1) + pattern(1 << 20, 2)).toBe(
      true,
    )
  })

  it('ends after DISC, when what is in flight was answered', async () => {
    const client = await start()
    expect(client.ask(request({ type: FLUSH }) + request({ type: DISC }))).toBe(simpleReply())
    expect(client.peer.sawEnd).toBe(true)
    await service.turn()
    expect(service.exports.get('m0').connectionCount).toBe(0)
  })
})

describe('structured replies', () => {
  it('sends a read as one chunk with its offset', async () => {
    const client = await start({ structured: true })
    client.ask(request({ type: WRITE, offset: 4096, length: 512 }) + pattern(512))
    expect(client.ask(request({ type: READ, flags: DF, offset: 4096, length: 512 }))).toBe(
      chunk(DONE, OFFSET_DATA, `0000000000001000${pattern(512)}`),
    )
  })

  it('sends a long read in chunks that cover it, the last of them marked', async () => {
    const client = await start({ structured: true, blocks: 8 * 2048, capacity: 1 << 16 })
    const size = (2 << 20) + 512
    const written = Buffer.from(pattern(size), 'hex')
    for (let at = 0; at < size; at += 1 << 19) {
      const part = written.subarray(at, at + (1 << 19))
      client.send(request({ type: WRITE, offset: at, length: part.length }))
      client.send(part)
      client.take()
    }
    client.send(request({ type: READ, length: size }))
    const seen = Buffer.alloc(size)
    let covered = 0
    for (let isDone = false; !isDone; ) {
      const header = takeAll(client, 20)
      const length = header.readUInt32BE(16)
      const payload = takeAll(client, length)
      expect(header.subarray(8, 16).toString('hex')).toBe(COOKIE)
      payload.copy(seen, Number(payload.readBigUInt64BE(0)), 8)
      covered += length - 8
      isDone = (header.readUInt16BE(4) & DONE) !== 0
    }
    expect(covered).toBe(size)
    expect(seen.equals(written)).toBe(true)
    expect(client.take()).toHaveLength(0)
  })

  it('refuses a read that must come in one piece and is too long for that', async () => {
    const client = await start({ structured: true })
    expect(client.ask(request({ type: READ, flags: DF, length: 1 << 19 }))).toBe(
      chunk(DONE, ERROR, `000000${EOVERFLOW.toString(16)}0000`),
    )
  })

  it('tells of errors of reads by a chunk, and of the others by a simple reply', async () => {
    const client = await start({ structured: true })
    expect(client.ask(request({ type: READ, offset: 1, length: 512 }))).toBe(
      chunk(DONE, ERROR, '000000160000'),
    )
    expect(client.ask(request({ type: TRIM, offset: 1, length: 512 }))).toBe(simpleReply(EINVAL))
  })

  it('says of a device that knows no holes that all is allocated', async () => {
    const client = await start({ structured: true })
    expect(client.ask(request({ type: BLOCK_STATUS, flags: REQ_ONE, offset: 512, length: 1 << 19 }))).toBe(
      chunk(DONE, STATUS, '00000001 00080000 00000000'),
    )
  })

  it('has no block status for a client that did not select base:allocation', async () => {
    const client = await start()
    expect(client.ask(request({ type: BLOCK_STATUS, length: 512 }))).toBe(simpleReply(EINVAL))
  })
})

describe('bad requests', () => {
  it.each([
    ['an unknown command', { type: 99 }, EINVAL],
    ['a flag that the command does not know', { type: READ, flags: FUA, length: 512 }, EINVAL],
    ['DF without structured replies', { type: READ, flags: DF, length: 512 }, EINVAL],
    ['a length of zero', { type: READ }, EINVAL],
    ['an offset within a block', { type: READ, offset: 256, length: 512 }, EINVAL],
    ['a length that is no whole block', { type: READ, length: 513 }, EINVAL],
    ['a read past the end', { type: READ, offset: (1 << 20) - 512, length: 1024 }, EINVAL],
    ['a read far past the end', { type: READ, offset: 2 ** 52, length: 512 }, EINVAL],
    ['a trim past the end', { type: TRIM, offset: 1 << 20, length: 512 }, EINVAL],
    ['zeroes past the end', { type: WRITE_ZEROES, offset: 1 << 20, length: 512 }, ENOSPC],
    ['a flush with a range', { type: FLUSH, offset: 0, length: 512 }, EINVAL],
  ])('answers %s with an error and goes on', async (_, fields, error) => {
    const client = await start()
    expect(client.ask(request(fields))).toBe(simpleReply(error))
    expect(client.ask(request({ type: FLUSH }))).toBe(simpleReply())
  })

  it('refuses reads of more than 32 MiB', async () => {
    const client = await start({ blocks: 80 * 2048 })
    expect(client.ask(request({ type: READ, length: (32 << 20) + 512 }))).toBe(simpleReply(EINVAL))
  })

  it.each([
    ['past the end', { offset: 1 << 20, length: 512 }, ENOSPC],
    ['within a block', { offset: 1, length: 1024 }, EINVAL],
  ])('throws away the data of a write %s and finds the next request behind it', async (_, fields, error) => {
    const client = await start()
    const bytes = request({ type: WRITE, ...fields }) + pattern(fields.length) + request({ type: FLUSH })
    expect(client.ask(bytes)).toBe(simpleReply(error) + simpleReply())
  })

  it('refuses to change a read-only export, data and all', async () => {
    const client = await start({ readOnly: true })
    expect(client.ask(request({ type: WRITE, length: 512 }) + pattern(512))).toBe(simpleReply(EPERM))
    expect(client.ask(request({ type: TRIM, length: 512 }))).toBe(simpleReply(EPERM))
    expect(client.ask(request({ type: WRITE_ZEROES, length: 512 }))).toBe(simpleReply(EPERM))
    expect(client.ask(request({ type: READ, length: 512 }))).toBe(simpleReply() + '00'.repeat(512))
  })

  it('logs the first refusal of a connection, with the request and the device, and not the second', async () => {
    const client = await start()
    client.ask(
      request({ type: READ, offset: 256, length: 512 }) + request({ type: READ, offset: 256, length: 512 }),
    )
    const refusals = lines.filter(line => line.includes('refused'))
    expect(refusals).toHaveLength(1)
    expect(refusals[0]).toContain('READ of 512 bytes at 256 on 2048 blocks of 512 bytes')
  })

  it('cuts off a client whose request has the wrong magic', async () => {
    const client = await start()
    client.ask('deadbeef'.repeat(7))
    expect(client.peer.sawEnd).toBe(true)
    expect(lines.join()).toContain('a request begins with 0xdeadbeef')
  })
})

describe('flow', () => {
  it('takes no more than it can hold while a client does not read, and all of it when it does', async () => {
    const client = await start({ structured: true, capacity: 4096 })
    const count = COMMANDS_MAX * 3
    client.send(request({ type: READ, length: 4096 }).repeat(count))
    expect(client.peer.waiting).toBe(4096)
    const size = count * (28 + 4096)
    expect(takeAll(client, size)).toHaveLength(size)
    expect(client.take()).toHaveLength(0)
  })

  it('does a write that is larger than what one connection may hold in buffers at once', async () => {
    const client = await start({ blocks: 80 * 2048, capacity: 1 << 26 })
    const data = Buffer.alloc(32 << 20, 0x5a)
    client.send(request({ type: WRITE, length: data.length }))
    client.send(data)
    expect(client.take().toString('hex')).toBe(simpleReply())
    expect(client.ask(request({ type: READ, offset: (32 << 20) - 512, length: 1024 }))).toBe(
      simpleReply() + '5a'.repeat(512) + '00'.repeat(512),
    )
  })

  it('lets a client wait, not fail, when the reactor has no buffer left', async () => {
    const client = await start({ blocks: 8192, arenaBytes: 1 << 20 })
    const others = []
    for (let i = 0; i < 5; i++) others.push((await service.dial()).enter())
    // Each of these holds a buffer until its data is complete; the last finds none.
    for (const other of others) other.send(`${request({ type: WRITE, length: 1 << 17 })}11`)
    client.send(request({ type: WRITE, length: 1 << 17 }) + pattern(1 << 17))
    const wasWaiting = client.peer.waiting === 0
    for (const other of others) other.send(pattern((1 << 17) - 1))
    expect([wasWaiting, client.take().toString('hex')]).toEqual([true, simpleReply()])
  })

  it('leaves memory to others, however many clients ask and do not read', async () => {
    await start({ blocks: 80 * 2048, capacity: 1 << 20, arenaBytes: 256 << 20 })
    await service.reactors.run(service.exports.stop('m0'))
    // A filter does not lend its base's memory, so its reads need buffers.
    await service.reactors.run(service.bdevs.create('passthru', 'p0', { base_bdev_name: 'm0' }))
    await service.exports.start({ ...EXPORT, name: 'm0', bdev: 'p0' })
    const clients: Client[] = []
    for (let i = 0; i < 8; i++) clients.push((await service.dial(2)).enter())
    for (const client of clients) client.send(request({ type: READ, length: 1 << 20 }).repeat(32))
    const { buffers } = service.reactors.reactors[0]!
    const left = Array.from({ length: 32 }, () => buffers.acquire(1 << 20))
    expect(left).not.toContain(0)
    for (const buffer of left) buffers.release(buffer, 1 << 20)
    const size = 32 * (16 + (1 << 20))
    for (const client of clients) expect(takeAll(client, size)).toHaveLength(size)
  })

  it('gives everything back when a client leaves in the middle of a write', async () => {
    const client = await start()
    client.send(request({ type: WRITE, length: 4096 }) + pattern(100))
    client.peer.close()
    await service.turn()
    expect(service.exports.get('m0').connectionCount).toBe(0)
    await service.reactors.run(service.exports.stop('m0'))
    expect(service.network.openStreams).toBe(0)
  })

  it('gives everything back when a client leaves without reading', async () => {
    const client = await start({ capacity: 4096 })
    client.send(request({ type: READ, length: 4096 }).repeat(20))
    client.peer.close()
    await service.turn()
    // The device could not be removed if one of its blocks were still lent.
    await service.reactors.run(service.bdevs.remove('m0'))
    expect(service.network.openStreams).toBe(0)
  })
})
