import { readdirSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { Prng } from '../../src/core/prng.ts'
import { type Answer, BackEnd, message, PROTOCOL, u64 } from './back-end.ts'

const SEED = Number(process.env['SEED'] ?? 20261121)
const GET_FEATURES = 1
const SET_MEM_TABLE = 5
const GET_PROTOCOL_FEATURES = 15
const GET_CONFIG = 24

let backEnd: BackEnd
let lines: string[]
const { write } = logSettings

beforeEach(async () => {
  lines = []
  logSettings.write = line => lines.push(line)
  backEnd = new BackEnd()
  await backEnd.listen()
})
afterEach(async () => {
  await backEnd.close()
  logSettings.write = write
})

const blocks = (): number | undefined => backEnd.bdevs.find('V0')?.blockCount

describe('a connection', () => {
  it('is set up in the order of the document', async () => {
    expect(await backEnd.attach()).toEqual(['V0'])
    expect(blocks()).toBe(2048)
    const requests = backEnd.sent.map(({ request }) => request)
    // GET_FEATURES, GET_ and SET_PROTOCOL_FEATURES, SET_OWNER, SET_FEATURES, GET_QUEUE_NUM, GET_CONFIG, SET_BACKEND_REQ_FD
    expect(requests.slice(0, 8)).toEqual([1, 15, 16, 3, 2, 17, 24, 21])
    // SET_MEM_TABLE, SET_VRING_NUM, BASE, ADDR, CALL, KICK, ENABLE
    expect(requests.filter(request => [5, 8, 10, 9, 13, 12, 18].includes(request))).toEqual([
      5, 8, 10, 9, 13, 12, 18,
    ])
  })

  it('says what it has agreed to, and where memory and rings are', async () => {
    await backEnd.attach()
    const payloadOf = (request: number): Buffer =>
      backEnd.sent.find(sent => sent.request === request)!.payload
    // SET_FEATURES: VERSION_1, PROTOCOL_FEATURES, FLUSH; SET_PROTOCOL_FEATURES: all four.
    expect(payloadOf(2).toString('hex')).toBe('0002004001000000')
    expect(payloadOf(16).toString('hex')).toBe('2902000000000000')
    // SET_MEM_TABLE: le32 regions, 4 of padding, le64 guest address, size, user address, offset
    const table = payloadOf(SET_MEM_TABLE)
    expect([table.length, table.readUInt32LE(0), table.readBigUInt64LE(32)]).toEqual([40, 1, 0n])
    const [start, size] = [table.readBigUInt64LE(8), table.readBigUInt64LE(16)]
    expect(table.readBigUInt64LE(24)).toBe(start)
    // SET_VRING_NUM: le32 index, le32 entries
    expect(payloadOf(8).toString('hex')).toBe('0000000040000000')
    // SET_VRING_ADDR: le32 index, flags, le64 descriptors, used, available, log
    const ring = payloadOf(9)
    expect(ring.length).toBe(40)
    for (const at of [8, 16, 24]) {
      expect(ring.readBigUInt64LE(at)).toBeGreaterThanOrEqual(start)
      expect(ring.readBigUInt64LE(at)).toBeLessThan(start + size)
    }
  })

  it('asks for replies only where the back end has agreed to give them', async () => {
    backEnd.answers.set(GET_PROTOCOL_FEATURES, ({ request }) => message(request, 5, u64(1n << 9n)))
    await backEnd.attach()
    expect(backEnd.sent.every(({ flags }) => flags === 1)).toBe(true)
  })

  it('is made again when it is lost, with the size that the disk has by then', async () => {
    await backEnd.attach()
    backEnd.capacity = 4096
    await backEnd.drop()
    await backEnd.reactors.until(() => blocks() === 4096)
    expect(lines.join('')).toMatch(/V0: the connection to .* is lost: it has closed the connection/)
  })

  it('hears of a new size, and answers where it is asked to', async () => {
    await backEnd.attach()
    backEnd.capacity = 3000
    backEnd.ask(message(2, 9))
    await backEnd.reactors.until(() => blocks() === 3000)
  })

  it('is ended by the end of the queues, when the controller is detached', async () => {
    await backEnd.attach()
    await backEnd.reactors.run(backEnd.controllers.detach('V0'))
    expect(backEnd.sent.at(-1)!.request).toBe(11)
    expect(backEnd.bdevs.list()).toEqual([])
  })
})

describe('a back end that does not do as it should', () => {
  const reply =
    (body: Uint8Array, flags = 5): Answer =>
    ({ request }) =>
      message(request, flags, body)

  it.each<[string, number, Answer, RegExp]>([
    ['hangs up', GET_FEATURES, () => null, /it has closed the connection/],
    [
      'answers another request',
      GET_FEATURES,
      () => message(15, 5, u64(0n)),
      /GET_PROTOCOL_FEATURES came with flags 0x5, while the answer to GET_FEATURES is due/,
    ],
    ['answers without saying so', GET_FEATURES, reply(u64(0n), 1), /GET_FEATURES came with flags 0x1/],
    ['speaks another version', GET_FEATURES, reply(u64(0n), 6), /GET_FEATURES came with flags 0x6/],
    [
      'answers too little',
      GET_FEATURES,
      reply(new Uint8Array(4)),
      /GET_FEATURES was answered with 4 bytes, not 8/,
    ],
    [
      'answers too much',
      GET_FEATURES,
      () => Buffer.from('0100000005000000ffffff7f', 'hex'),
      /payload of 2147483647 bytes, more than 4096/,
    ],
    [
      'is from before version 1',
      GET_FEATURES,
      reply(u64(1n << 30n)),
      /without VIRTIO_F_VERSION_1 or protocol features/,
    ],
    [
      'does not tell its size',
      GET_PROTOCOL_FEATURES,
      reply(u64(PROTOCOL & ~(1n << 9n))),
      /does not tell the size of its disk/,
    ],
    [
      'has no configuration of a disk',
      GET_CONFIG,
      reply(new Uint8Array(72)),
      /GET_CONFIG has no 60 bytes of configuration/,
    ],
    ['refuses memory', SET_MEM_TABLE, reply(u64(1n)), /SET_MEM_TABLE was refused \(1\)/],
    ['has no queue', 17, reply(u64(0n)), /has 0 request queues and this daemon 1 reactors/],
    [
      'has an empty disk',
      GET_CONFIG,
      ({ payload }) => message(GET_CONFIG, 5, payload),
      /V0 says that it has 0 blocks/,
    ],
  ])('is refused with what it did: it %s', async (_, request, answer, why) => {
    backEnd.answers.set(request, answer)
    await expect(backEnd.attach()).rejects.toThrow(why)
    await expect(backEnd.attach()).rejects.toThrow(backEnd.path)
    expect(backEnd.controllers.list()).toEqual([])
    // Nothing of it is left: the next attempt under that name succeeds.
    backEnd.answers.clear()
    expect(await backEnd.attach()).toEqual(['V0'])
  })

  // Virtio specification 1.2, section 5.6.4: le32 queues, segments, sectors, commands, event info, sense 96, CDB 32; le16
  // channels, targets; le32 LUNs. Read as a block device's, it has 126 * 2^32 + 32 sectors.
  const SCSI_CONFIG = '200000007e000000ffffffff8000000010000000600000002000000000000700ff3f0000'
  const HOTPLUG_CHANGE = (1n << 32n) | (1n << 30n) | 6n

  it('is not taken for a block device when it serves SCSI', async () => {
    backEnd.answers.set(GET_FEATURES, reply(u64(HOTPLUG_CHANGE)))
    backEnd.answers.set(GET_CONFIG, ({ payload }) => {
      const answer = Buffer.from(payload)
      answer.write(SCSI_CONFIG, 12, 'hex')
      return message(GET_CONFIG, 5, answer)
    })
    await expect(backEnd.attach()).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringMatching(/disk: the back end offers features 0x140000006 .* with dev_type scsi$/),
    })
    // vhost-user specification, VHOST_USER_GET_CONFIG: one that has none answers without a payload.
    backEnd.answers.set(GET_CONFIG, reply(new Uint8Array(0)))
    await expect(backEnd.attach()).rejects.toThrow('with dev_type scsi')
    expect(backEnd.bdevs.list()).toEqual([])
  })

  it('is not taken for SCSI when it serves a block device', async () => {
    await expect(backEnd.attach({ kind: 'scsi' })).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining('those of a block device: attach it with dev_type blk'),
    })
  })

  it('is a block device without any features, if nothing speaks against it', async () => {
    backEnd.answers.set(GET_FEATURES, reply(u64((1n << 32n) | (1n << 30n))))
    expect(await backEnd.attach()).toEqual(['V0'])
    expect(blocks()).toBe(2048)
  })

  it('loses its connection for words that nobody asked for, and gets another', async () => {
    await backEnd.attach()
    backEnd.say(message(1, 5, u64(0n)))
    await backEnd.reactors.until(() => backEnd.connections === 2)
    expect(lines.join('')).toMatch(/GET_FEATURES came with flags 0x5, while nothing was asked/)
  })

  it('loses its connection for a request that is none, and gets another', async () => {
    await backEnd.attach()
    backEnd.ask(message(2, 4))
    await backEnd.reactors.until(() => backEnd.connections === 2)
  })

  it('is told that a request is not known, and keeps its connection', async () => {
    await backEnd.attach()
    backEnd.ask(message(4, 9, u64(0n)))
    backEnd.capacity = 5000
    backEnd.ask(message(2, 1))
    await backEnd.reactors.until(() => blocks() === 5000)
    expect(backEnd.connections).toBe(1)
  })

  it(`survives noise in every answer, and keeps no descriptor of it (seed ${SEED})`, async () => {
    const prng = new Prng(SEED)
    const open = readdirSync('/proc/self/fd').length
    for (let round = 0; round < 200; round++) {
      const noise: Answer = ({ request }) => {
        const body = prng.fill(new Uint8Array(prng.below(80)))
        return message(
          prng.below(4) === 0 ? prng.below(50) : request,
          prng.below(8) === 0 ? prng.below(16) : 5,
          body,
        )
      }
      backEnd.answers.clear()
      for (const request of [1, 15, 16, 3, 2, 17, 24, 21, 5, 8, 10]) {
        if (prng.below(3) === 0) backEnd.answers.set(request, noise)
      }
      const attached = await backEnd.attach({ name: `V${round}` }).catch((error: Error) => error)
      if (attached instanceof Error) expect(attached.message).toContain(backEnd.path)
      else await backEnd.reactors.run(backEnd.controllers.detach(`V${round}`))
    }
    backEnd.answers.clear()
    await backEnd.gone()
    expect(readdirSync('/proc/self/fd').length).toBe(open)
    expect(await backEnd.attach()).toEqual(['V0'])
  })
})
