import { beforeEach, describe, expect, it, vi } from 'vitest'
import { receiveMessage } from '../../../src/sys/unix-message.ts'
import { Topic } from '../../../src/vhost/messages.ts'
import { mappingsOf, socketPair } from '../../support/descriptors.ts'
import { joined, u32s, u64s } from '../front-end.ts'
import {
  expectFault,
  frontEnd,
  GET_CONFIG,
  GET_FEATURES,
  GET_MAX_MEM_SLOTS,
  GET_PROTOCOL_FEATURES,
  GET_QUEUE_NUM,
  GET_STATUS,
  GET_VRING_BASE,
  lab,
  negotiate,
  OFFERED,
  PROTOCOL,
  PROTOCOL_FEATURES,
  reactor,
  SET_BACKEND_REQ_FD,
  SET_CONFIG,
  SET_FEATURES,
  SET_PROTOCOL_FEATURES,
  SET_STATUS,
  SET_VRING_CALL,
  shareMemory,
  startRing,
  useSession,
} from './session-support.ts'

useSession()

describe('negotiation', () => {
  it('offers the features of the device, of rings and of vhost, and nothing else', async () => {
    const reply = await frontEnd.ask(GET_FEATURES)
    expect(reply).toMatchObject({ request: GET_FEATURES, flags: 5 })
    expect(reply.payload.readBigUInt64LE()).toBe(OFFERED)
    expect((await frontEnd.ask(GET_PROTOCOL_FEATURES)).payload.readBigUInt64LE()).toBe(PROTOCOL_FEATURES)
  })

  it('refuses features that were not offered, with an answer where one is wanted', async () => {
    frontEnd.send(SET_PROTOCOL_FEATURES, u64s(PROTOCOL_FEATURES))
    expect(await frontEnd.acknowledged(SET_FEATURES, u64s(PROTOCOL | (1n << 33n)))).toBe(1n)
    await expectFault('SET_FEATURES has bits 0x200000000 that were not offered')
  })

  it('refuses protocol features that were not offered', async () => {
    frontEnd.send(SET_PROTOCOL_FEATURES, u64s(1n << 8n))
    await expectFault('SET_PROTOCOL_FEATURES has bits 0x100 that were not offered')
  })

  it('tells how many queues and memory slots there are', async () => {
    await negotiate()
    expect((await frontEnd.ask(GET_QUEUE_NUM)).payload.readBigUInt64LE()).toBe(256n)
    expect((await frontEnd.ask(GET_MAX_MEM_SLOTS)).payload.readBigUInt64LE()).toBe(509n)
  })

  it('keeps the status that the driver has set', async () => {
    await negotiate()
    expect(await frontEnd.acknowledged(SET_STATUS, u64s(15))).toBe(0n)
    expect((await frontEnd.ask(GET_STATUS)).payload.readBigUInt64LE()).toBe(15n)
  })
})

describe('a message', () => {
  it.each([
    ['of another version', 1, '', 2, /GET_FEATURES has version 2, not 1/],
    ['with the flag of an answer', 1, '', 5, /GET_FEATURES has the flag of an answer/],
    ['that nobody knows', 99, '', 1, /request 99 belongs to a feature that was not offered/],
    ['of a feature that was not offered', 22, '', 1, /IOTLB_MSG belongs to a feature/],
    [
      'of a feature that was not negotiated',
      36,
      '',
      1,
      /GET_MAX_MEM_SLOTS needs a protocol feature \(0x8000\)/,
    ],
    ['that is too long', 3, '00', 1, /SET_OWNER has 1 bytes, not 0/],
    ['that is too short', 8, '00', 1, /SET_VRING_NUM has 1 bytes, not 8/],
  ])('%s ends the session', async (_, request, payload, flags, why) => {
    frontEnd.send(request, Buffer.from(payload, 'hex'), [], flags)
    await expectFault(why)
  })

  it('with descriptors that nobody expects ends the session and leaves none open', async () => {
    frontEnd.send(GET_FEATURES, undefined, [frontEnd.eventfd(), frontEnd.eventfd()])
    await expectFault('GET_FEATURES has 2 descriptors, not 0')
  })

  it('whose payload is announced too long ends the session before it arrives', async () => {
    frontEnd.sendRaw(u32s(5, 1, 269))
    await expectFault('a message has a payload of 269 bytes, more than 268')
  })

  it('does not stop other sessions when it is wrong', async () => {
    const other = await lab.connect()
    frontEnd.send(99)
    await frontEnd.untilHungUp()
    expect((await other.ask(GET_FEATURES)).payload.readBigUInt64LE()).toBe(OFFERED)
  })
})

describe('the configuration space', () => {
  const range = (offset: number, size: number, flags = 0): Uint8Array =>
    joined(u32s(offset, size, flags), new Uint8Array(size))

  it('is read in any part, with zeroes where the device has nothing', async () => {
    await negotiate()
    lab.model.capacity = 0x1122
    const reply = await frontEnd.ask(GET_CONFIG, range(0, 256))
    expect(reply.payload).toHaveLength(268)
    expect([...reply.payload.subarray(0, 16)]).toEqual([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x22, 0x11, 0, 0])
    expect((await frontEnd.ask(GET_CONFIG, range(1, 1))).payload.at(-1)).toBe(0x11)
  })

  it.each([
    ['beyond its end', range(1, 256), 'is about bytes 1 to 257 of a space of 256'],
    ['with another length than it brings', u32s(0, 8, 0), 'is about 8 bytes, and brings 0'],
  ])('is not read %s', async (_, payload, why) => {
    await negotiate()
    frontEnd.send(GET_CONFIG, payload)
    await expectFault(why)
  })

  it('is written by the front end, and the reactors hear of it', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    expect(await frontEnd.acknowledged(SET_CONFIG, range(32, 1))).toBe(0n)
    expect(reactor().last(Topic.DEVICE)).toMatchObject({ device: { writeThrough: true } })
    frontEnd.send(SET_CONFIG, range(0, 1))
    await frontEnd.untilHungUp()
  })

  describe('that changes', () => {
    let own: number

    beforeEach(async () => {
      await negotiate()
      await shareMemory()
      const pair = socketPair()
      own = frontEnd.owns(pair[0])
      expect(await frontEnd.acknowledged(SET_BACKEND_REQ_FD, undefined, [frontEnd.owns(pair[1])])).toBe(0n)
    })

    /** Every message on the back end's socket so far. */
    function news(): Buffer {
      const bytes = Buffer.alloc(1000)
      return bytes.subarray(0, Math.max(0, receiveMessage(own, bytes, [], 8)))
    }

    async function nextNews(): Promise<Buffer> {
      let bytes: Buffer = Buffer.alloc(0)
      await lab.reactors.until(() => {
        bytes = news()
        return bytes.length > 0
      })
      return bytes
    }

    it('is announced on the socket of the back end, once, and not within an exchange', async () => {
      await frontEnd.ask(GET_CONFIG, range(0, 60))
      await startRing()
      lab.model.capacity = 200
      await lab.reactors.run(lab.sessions[0]!.deviceChanged())
      await lab.reactors.run(lab.sessions[0]!.deviceChanged())
      expect(reactor().last(Topic.DEVICE)).toBeDefined()
      expect(news()).toHaveLength(0)
      // CONFIG_CHANGE_MSG, version 1, no payload.
      expect(await nextNews()).toEqual(Buffer.from(u32s(2, 1, 0)))
    })

    it('is announced when rings start, to a front end that has not read it in this session', async () => {
      await startRing()
      expect(await nextNews()).toEqual(Buffer.from(u32s(2, 1, 0)))
    })
  })

  it('is announced on a socket only', async () => {
    await negotiate()
    frontEnd.send(SET_BACKEND_REQ_FD, undefined, [frontEnd.eventfd()])
    await expectFault('SET_BACKEND_REQ_FD brings a descriptor that is no socket')
  })
})

describe('a front end that says nothing', () => {
  it('is reported, once, and served when it speaks after all', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    try {
      const silent = await lab.connect()
      const talking = await lab.connect()
      await talking.ask(GET_FEATURES)
      vi.advanceTimersByTime(10_000)
      expect(lab.lines).toHaveLength(1)
      expect(lab.lines[0]).toContain('WARNING vhost: disk0: a front end is connected and says nothing.')
      expect((await silent.ask(GET_FEATURES)).payload).toHaveLength(8)
    } finally {
      vi.useRealTimers()
    }
  })
})

describe('the end', () => {
  it('comes when the front end goes, without a word, and leaves nothing behind', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    frontEnd.hangUp()
    await lab.untilEnded()
    expect(reactor().topics().at(-1)).toBe('close')
    expect(lab.lines).toEqual([])
  })

  it('comes when the operator closes, after what is in flight has ended', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    let mapped = 0
    reactor().onCall = topic => {
      if (topic === Topic.CLOSE) mapped = mappingsOf('guest-memory')
    }
    await lab.reactors.run(lab.sessions[0]!.close())
    expect(mapped).toBe(1)
    expect(mappingsOf('guest-memory')).toBe(0)
    expect(await frontEnd.receive()).toBeNull()
    expect(lab.lines).toEqual([])
    // Nobody minds what comes too late.
    await lab.sessions[0]!.deviceChanged()
    await lab.sessions[0]!.tune({ quietUs: 0, delayBaseUs: 0, iopsThreshold: 0 })
  })

  it('tells the guest what is gone when no reactor has it any more, and before what was outstanding there has ended', async () => {
    await negotiate()
    await shareMemory()
    for (const index of [0, 1]) await startRing(index)
    let applied = (): void => {}
    let settled = (): void => {}
    reactor(1).onCall = topic => {
      if (topic === Topic.DEVICE) return new Promise<void>(resolve => (applied = resolve))
      if (topic === Topic.SETTLED) return new Promise<void>(resolve => (settled = resolve))
      return undefined
    }
    const order: string[] = []
    const changed = lab.sessions[0]!.deviceChanged({ event: 1, lun: [1, 3, 0, 0, 0, 0, 0, 0], reason: 2 })
    void changed.then(() => order.push('answered'))

    await lab.reactors.until(() => reactor(1).topics().at(-1) === 'device')
    expect(reactor(0).topics()).not.toContain('event')
    applied()
    await lab.reactors.until(() => reactor(1).topics().at(-1) === 'settled')
    expect(reactor(0).topics().slice(-3)).toEqual(['device', 'event', 'settled'])
    order.push('settled')
    settled()
    await lab.reactors.run(changed)
    expect(order).toEqual(['settled', 'answered'])
  })

  describe('while a message waits for I/O that may never end', () => {
    let drained: () => void

    /** As a device that hangs: what is outstanding ends when the session is closed, and not before. */
    beforeEach(async () => {
      await negotiate()
      await shareMemory()
      await startRing()
      reactor().onCall = topic => {
        if (topic === Topic.STOP) return new Promise(resolve => (drained = resolve))
        // Not at once: what fails meanwhile is in nobody's hands.
        if (topic === Topic.CLOSE) setImmediate(() => setImmediate(drained))
        return undefined
      }
      frontEnd.send(GET_VRING_BASE, u32s(0, 0))
      await lab.reactors.until(() => reactor().last(Topic.STOP) !== undefined)
    })

    it('comes when the front end goes', async () => {
      frontEnd.hangUp()
      await lab.untilEnded()
      expect(reactor().topics().slice(-2)).toEqual(['stop', 'close'])
      expect(lab.lines).toEqual([])
    })

    it('comes when the front end sends what is no message, with a line', async () => {
      frontEnd.sendRaw(u32s(GET_FEATURES, 1, 4096))
      await lab.untilEnded()
      expect(lab.lines).toEqual([
        'WARNING vhost: disk0: the front end is disconnected: a message has a payload of 4096 bytes, more than 268',
      ])
    })

    it('comes when the operator closes', async () => {
      // A message that nobody will read, with what comes along.
      frontEnd.send(SET_VRING_CALL, u64s(0), [frontEnd.eventfd()])
      for (let round = 0; round < 10; round++) await lab.reactors.run(Promise.resolve())
      const closing = lab.sessions[0]!.close()
      expect(await lab.reactors.run(lab.sessions[0]!.stats())).toEqual({ queues: [] })
      await lab.reactors.run(closing)
      expect(reactor().topics().slice(-2)).toEqual(['stop', 'close'])
      expect(lab.lines).toEqual([])
    })

    it('is not needed for the operator to take the bdev away, or to tune', async () => {
      await lab.reactors.run(lab.sessions[0]!.deviceChanged())
      await lab.reactors.run(lab.sessions[0]!.tune({ quietUs: 0, delayBaseUs: 0, iopsThreshold: 0 }))
      expect(reactor().topics().slice(-4)).toEqual(['stop', 'device', 'settled', 'tuning'])
      drained()
      expect(await frontEnd.receive()).toMatchObject({ request: GET_VRING_BASE })
    })
  })
})
