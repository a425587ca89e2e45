import { constants } from 'node:os'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { BdevInfo } from '../../src/bdev/bdev.ts'
import { Channel } from '../../src/bdev/channel.ts'
import { IoType } from '../../src/bdev/io.ts'
import { Prng } from '../../src/core/prng.ts'
import type { Retention } from '../../src/rbd/cache/rules.ts'
import { CompletionInbox } from '../../src/rbd/completion-inbox.ts'
import { ImageState, type OpenImage, SLOTS } from '../../src/rbd/messages.ts'
import { RbdChannel } from '../../src/rbd/rbd-channel.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { close, eventfd } from '../../src/sys/libc.ts'
import { PendingIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'
import { FakeImage } from './support.ts'

const BLOCK_SIZE = 512
const BLOCK_COUNT = 256
const SEED = 1
/** Two stripes. */
const STRIPE_UNIT = (BLOCK_COUNT / 2) * BLOCK_SIZE
const REACTORS = 2

let reactors: LocalReactorGroup
let device: OpenImage
let image: FakeImage
let info: BdevInfo

beforeEach(() => {
  reactors = new LocalReactorGroup({ count: REACTORS, ring: true })
  const inboxes = reactors.reactors.map(() => ({ ring: CompletionInbox.allocate(), doorbell: eventfd() }))
  device = { state: ImageState.allocate(1), eventfd: eventfd(), inboxes, stripeUnit: STRIPE_UNIT }
  image = new FakeImage(device, BLOCK_SIZE * BLOCK_COUNT, SEED)
  info = {
    name: 'r0',
    aliases: [],
    driver: 'rbd',
    product: 'Ceph Rbd Disk',
    uuid: '',
    blockSize: BLOCK_SIZE,
    physicalBlockSize: 4096,
    blockCount: BLOCK_COUNT,
    supports: new Set([
      IoType.READ,
      IoType.WRITE,
      IoType.FLUSH,
      IoType.UNMAP,
      IoType.WRITE_ZEROES,
      IoType.COMPARE_AND_WRITE,
    ]),
    writeCache: true,
    readOnly: false,
    bases: [],
    device,
    driverSpecific: {},
  }
})

afterEach(() => {
  expect(image.liveCompletions).toBe(0)
  reactors.close()
  image.free()
  for (const fd of [device.eventfd, ...device.inboxes.map(({ doorbell }) => doorbell)]) close(fd)
})

function open(index = 0): Channel {
  const reactor = reactors.reactors[index]!
  return new Channel(info, reactor, new RbdChannel(info, reactor, reactor.ring!, image))
}

const isDone = (pending: PendingIo): boolean => pending.isDone

/** Until all of them have ended, and exactly once. */
async function finish(...pending: PendingIo[]): Promise<number[]> {
  await reactors.until(() => {
    image.work()
    reactors.advance(100)
    return pending.every(isDone)
  })
  reactors.settle()
  return pending.map(({ statuses }) => {
    expect(statuses).toHaveLength(1)
    return statuses[0]!
  })
}

const filled = (blocks: number, value: number): Uint8Array => new Uint8Array(blocks * BLOCK_SIZE).fill(value)

describe('RbdChannel', () => {
  it('moves data both ways, in pieces at odd places', async () => {
    const channel = open()
    const data = Uint8Array.from({ length: 4 * BLOCK_SIZE }, (_, i) => i % 251)
    const write = new PendingIo(channel, {
      type: IoType.WRITE,
      firstBlock: 3,
      blockCount: 4,
      data,
      segments: 40,
    })
    expect(await finish(write)).toEqual([Status.SUCCESS])
    const read = new PendingIo(channel, { type: IoType.READ, firstBlock: 3, blockCount: 4, segments: 3 })
    expect(await finish(read)).toEqual([Status.SUCCESS])
    expect(Buffer.from(read.data).equals(data)).toBe(true)
    for (const pending of [read, write]) pending.free()
    channel.close()
  })

  it('tells the reactor what librbd is at work on, from its start to its end', async () => {
    const channel = open()
    const reactor = reactors.reactors[0]!
    const pending = [IoType.READ, IoType.FLUSH].map(
      type => new PendingIo(channel, { type, blockCount: type === IoType.FLUSH ? 0 : 1 }),
    )
    expect(reactor.distant).toBe(2)
    await finish(...pending)
    expect(reactor.distant).toBe(0)
    for (const each of pending) each.free()
    channel.close()
  })

  it('does not hear of the I/O of others for longer than it has some of its own', async () => {
    const [first, second] = [open(0), open(1)]
    /** How many events the second reactor finds while there is an I/O through a channel. */
    const heard = (channel: Channel): number => {
      const read = new PendingIo(channel, { type: IoType.READ })
      let events = 0
      while (!read.isDone) {
        image.work()
        reactors.reactors[0]!.poll()
        events += reactors.reactors[1]!.poll()
      }
      read.free()
      return events
    }
    expect(heard(first)).toBe(0)
    expect(heard(second)).toBeGreaterThan(0)
    for (let i = 0; i < 3; i++) heard(first)
    expect(heard(first)).toBe(0)
    expect(heard(second)).toBeGreaterThan(0)
    for (const channel of [first, second]) channel.close()
  })

  it(`ends each I/O once, on its own reactor, whoever finds its end (seed ${SEED})`, async () => {
    const prng = new Prng(SEED)
    const types = [IoType.READ, IoType.WRITE, IoType.FLUSH, IoType.UNMAP, IoType.WRITE_ZEROES]
    for (let round = 0; round < 20; round++) {
      // Channels come and go, what the image's users share stays.
      const channels = [open(0), open(1)]
      const pending = Array.from({ length: 100 }, (_, i) => {
        const type = types[prng.below(types.length)]!
        const at = type === IoType.FLUSH ? {} : { firstBlock: prng.below(BLOCK_COUNT), blockCount: 1 }
        return new PendingIo(channels[i % REACTORS]!, { type, fua: prng.below(4) === 0, ...at })
      })
      expect(new Set(await finish(...pending))).toEqual(new Set([Status.SUCCESS]))
      for (const each of pending) each.free()
      for (const channel of channels) channel.close()
      reactors.settle()
    }
  })

  it('keeps what is more than librbd gets at once, and starts it later', async () => {
    const channel = open()
    const pending = Array.from(
      { length: SLOTS + 100 },
      (_, i) => new PendingIo(channel, { type: IoType.READ, firstBlock: i % BLOCK_COUNT, blockCount: 1 }),
    )
    expect(image.running).toBe(SLOTS)
    expect(new Set(await finish(...pending))).toEqual(new Set([Status.SUCCESS]))
    for (const each of pending) each.free()
    channel.close()
  })

  it('ends early, when asked, only what librbd does not have yet', async () => {
    const channel = open()
    const pending = Array.from(
      { length: SLOTS + 2 },
      () => new PendingIo(channel, { type: IoType.READ, firstBlock: 0, blockCount: 1 }),
    )
    channel.abort(pending[SLOTS]!.io)
    channel.abort(pending[0]!.io)
    const statuses = await finish(...pending)
    expect(statuses[SLOTS]).toBe(Status.ABORTED_BY_REQUEST)
    expect(statuses.filter(status => status === Status.SUCCESS)).toHaveLength(SLOTS + 1)
    for (const each of pending) each.free()
    channel.close()
  })

  it.each([IoType.WRITE, IoType.WRITE_ZEROES, IoType.UNMAP])(
    'follows a forced I/O of type %i with a flush before it ends',
    async type => {
      const channel = open()
      const pending = new PendingIo(channel, { type, firstBlock: 0, blockCount: 1, fua: true })
      expect(await finish(pending)).toEqual([Status.SUCCESS])
      expect(image.calls.slice(1)).toEqual(['flush'])
      pending.free()
      channel.close()
    },
  )

  it('fails a forced write whose flush fails', async () => {
    const channel = open()
    image.fail = 'flush'
    const pending = new PendingIo(channel, { type: IoType.WRITE, firstBlock: 0, blockCount: 1, fua: true })
    expect(await finish(pending)).toEqual([Status.WRITE_FAULT])
    pending.free()
    channel.close()
  })

  it.each(['refuse', 'fail'] as const)('tells an error that librbd has at once or later: %s', async when => {
    const channel = open()
    image[when] = 'readv'
    const read = new PendingIo(channel, { type: IoType.READ, firstBlock: 0, blockCount: 1 })
    expect(await finish(read)).toEqual([Status.UNRECOVERED_READ_ERROR])
    image[when] = 'writev'
    const write = new PendingIo(channel, { type: IoType.WRITE, firstBlock: 0, blockCount: 1 })
    expect(await finish(write)).toEqual([Status.WRITE_FAULT])
    for (const pending of [read, write]) pending.free()
    channel.close()
  })

  it('writes only over what was expected', async () => {
    const channel = open()
    const swap = (expected: number): PendingIo =>
      new PendingIo(channel, {
        type: IoType.COMPARE_AND_WRITE,
        firstBlock: 5,
        blockCount: 2,
        segments: 3,
        data: Buffer.concat([filled(2, expected), filled(2, 7)]),
      })
    const wrong = swap(1)
    expect(await finish(wrong)).toEqual([Status.COMPARE_FAILURE])
    expect(image.data.some(byte => byte !== 0)).toBe(false)
    const right = swap(0)
    expect(await finish(right)).toEqual([Status.SUCCESS])
    expect(image.data.subarray(5 * BLOCK_SIZE, 7 * BLOCK_SIZE).equals(filled(2, 7))).toBe(true)
    for (const pending of [right, wrong]) pending.free()
    channel.close()
  })

  it('looks whether a compare-and-write has ended, of which librbd tells nothing', async () => {
    const channel = open()
    const swaps = [0, 1, 2].map(
      firstBlock =>
        new PendingIo(channel, {
          type: IoType.COMPARE_AND_WRITE,
          firstBlock,
          blockCount: 1,
          fua: firstBlock === 2,
          data: Buffer.concat([filled(1, 0), filled(1, 7)]),
        }),
    )
    reactors.advance(1000)
    expect(swaps.map(isDone)).toEqual([false, false, false])
    expect(await finish(...swaps)).toEqual([Status.SUCCESS, Status.SUCCESS, Status.SUCCESS])
    expect(image.calls.toSorted()).toEqual([...Array(3).fill('compareAndWrite'), 'flush'])
    for (const pending of swaps) pending.free()
    channel.close()
  })

  it('looks ever less often at a compare-and-write that Ceph keeps waiting, and at none when it has ended', async () => {
    const channel = open()
    const data = Buffer.concat([filled(1, 0), filled(1, 7)])
    const swap = new PendingIo(channel, {
      type: IoType.COMPARE_AND_WRITE,
      firstBlock: 0,
      blockCount: 1,
      data,
    })
    for (let ms = 0; ms < 1000; ms++) reactors.advance(1000)
    expect(image.looks).toBeLessThan(200)
    expect(await finish(swap)).toEqual([Status.SUCCESS])
    const { looks } = image
    reactors.advance(1e6)
    expect(image.looks).toBe(looks)
    swap.free()
    channel.close()
  })

  it('says that it was too much when librbd finds a compare-and-write invalid', async () => {
    const channel = open()
    image.fail = 'compareAndWrite'
    image.errno = constants.errno.EINVAL
    const data = Buffer.concat([filled(2, 0), filled(2, 7)])
    const swap = new PendingIo(channel, {
      type: IoType.COMPARE_AND_WRITE,
      firstBlock: 0,
      blockCount: 2,
      data,
    })
    expect(await finish(swap)).toEqual([Status.ATOMIC_WRITE_UNIT_EXCEEDED])
    swap.free()
    channel.close()
  })

  it('refuses to compare and write across two objects, and does neither', async () => {
    const channel = open()
    const last = STRIPE_UNIT / BLOCK_SIZE - 1
    const swap = (blockCount: number): PendingIo =>
      new PendingIo(channel, {
        type: IoType.COMPARE_AND_WRITE,
        firstBlock: last,
        blockCount,
        data: Buffer.concat([filled(blockCount, 0), filled(blockCount, 7)]),
      })
    const [across, within] = [swap(2), swap(1)]
    expect(await finish(across, within)).toEqual([Status.ATOMIC_WRITE_UNIT_EXCEEDED, Status.SUCCESS])
    expect(image.calls).toEqual(['compareAndWrite'])
    for (const pending of [across, within]) pending.free()
    channel.close()
  })

  it('goes over to another handle, and says when nothing is outstanding under the old one', async () => {
    const channel = open()
    const other = open(1)
    const before = [0, 1, 2].map(
      i => new PendingIo(i === 2 ? other : channel, { type: IoType.READ, firstBlock: i, blockCount: 1 }),
    )
    let isOver = false
    const opening = new ImageState(device.state).openAnew(2)
    const over = Promise.all([channel.tell({ opening }), other.tell({ opening })]).then(() => {
      isOver = true
    })
    const after = new PendingIo(channel, { type: IoType.READ, firstBlock: 3, blockCount: 1 })
    expect(image.handles).toEqual([1, 1, 1, 2])
    await new Promise(setImmediate)
    expect(isOver).toBe(false)
    expect(new Set(await finish(...before, after))).toEqual(new Set([Status.SUCCESS]))
    await over
    image.closed = 1
    const last = new PendingIo(other, { type: IoType.READ, firstBlock: 0, blockCount: 1 })
    expect(await finish(last)).toEqual([Status.SUCCESS])
    for (const each of [...before, after, last]) each.free()
    for (const each of [channel, other]) each.close()
  })

  it('marks an image whose client is shut out, and fails as a lost path does', async () => {
    const channel = open()
    image.fail = 'readv'
    image.errno = 108
    const read = new PendingIo(channel, { type: IoType.READ, firstBlock: 0, blockCount: 1 })
    expect(await finish(read)).toEqual([Status.INTERNAL_PATH_ERROR])
    expect(new ImageState(device.state).isShutOut).toBe(true)
    read.free()
    channel.close()
  })

  describe('when a client that was shut out may have taken acknowledged writes with it', () => {
    let channels: Channel[]
    let state: ImageState
    let nextHandle: number

    beforeEach(() => {
      channels = [open(0), open(1)]
      state = new ImageState(device.state)
      nextHandle = 2
    })
    afterEach(() => {
      for (const channel of channels) channel.close()
    })

    const io = (type: IoType, fua = false, reactor = 0): PendingIo =>
      new PendingIo(
        channels[reactor]!,
        type === IoType.FLUSH ? { type } : { type, fua, firstBlock: 0, blockCount: 1 },
      )
    async function end(...pending: PendingIo[]): Promise<number[]> {
      const statuses = await finish(...pending)
      for (const each of pending) each.free()
      return statuses
    }
    const run = (type: IoType, fua = false, reactor = 0): Promise<number[]> => end(io(type, fua, reactor))

    /** What the control thread does: returns whether something may be lost. */
    async function openAgain(
      retention: Retention,
      meanwhile = async (): Promise<void> => {},
    ): Promise<boolean> {
      const opening = state.openAnew(nextHandle++)
      const told = Promise.all(channels.map(channel => channel.tell({ opening })))
      await meanwhile()
      await told
      return state.settle(retention)
    }

    it.each([IoType.WRITE, IoType.WRITE_ZEROES, IoType.UNMAP])(
      'fails the next flush, once and on whichever reactor, after a cached I/O of type %i',
      async type => {
        await run(type)
        expect(await openAgain('always')).toBe(true)
        expect(await run(IoType.READ)).toEqual([Status.SUCCESS])
        expect(await run(IoType.WRITE)).toEqual([Status.SUCCESS])
        expect(await run(IoType.FLUSH, false, 1)).toEqual([Status.WRITE_FAULT])
        expect(await end(io(IoType.FLUSH), io(IoType.FLUSH, false, 1))).toEqual([
          Status.SUCCESS,
          Status.SUCCESS,
        ])
        expect(await openAgain('always')).toBe(false)
      },
    )

    it('fails a forced write just so', async () => {
      await run(IoType.WRITE)
      expect(await openAgain('always')).toBe(true)
      expect(await run(IoType.WRITE, true)).toEqual([Status.WRITE_FAULT])
      expect(await run(IoType.WRITE, true)).toEqual([Status.SUCCESS])
    })

    it.each([
      ['nothing was written', async () => void (await run(IoType.READ))],
      ['what was written was forced', async () => void (await run(IoType.WRITE, true))],
      [
        'what was written was flushed from another reactor',
        async () => {
          await run(IoType.WRITE)
          await run(IoType.FLUSH, false, 1)
        },
      ],
      ['it was compared and written, past the cache', async () => void (await run(IoType.COMPARE_AND_WRITE))],
    ])('fails no flush when %s', async (_what, work) => {
      await work()
      expect(await openAgain('always')).toBe(false)
      expect(await run(IoType.FLUSH)).toEqual([Status.SUCCESS])
    })

    it('fails no flush when librbd kept nothing back', async () => {
      await run(IoType.WRITE)
      expect(await openAgain('nothing')).toBe(false)
      expect(await run(IoType.FLUSH)).toEqual([Status.SUCCESS])
    })

    it('fails no flush when nobody has flushed, and librbd keeps back only after that', async () => {
      await run(IoType.WRITE)
      expect(await openAgain('after a flush')).toBe(false)
      expect(await run(IoType.FLUSH)).toEqual([Status.SUCCESS])
      // That flush was under the new handle.
      await run(IoType.WRITE)
      expect(await openAgain('after a flush')).toBe(true)
      expect(await run(IoType.FLUSH)).toEqual([Status.WRITE_FAULT])
    })

    it('does not count the flushes of a handle that is gone for those of a later one', async () => {
      await run(IoType.FLUSH)
      expect(await openAgain('after a flush')).toBe(false)
      expect(await openAgain('after a flush')).toBe(false)
      await run(IoType.WRITE)
      expect(await openAgain('after a flush')).toBe(false)
    })

    it.each(['refuse', 'fail'] as const)(
      'counts what a flush that failed has not flushed: %s',
      async when => {
        await run(IoType.WRITE)
        image[when] = 'flush'
        expect(await run(IoType.FLUSH)).toEqual([Status.WRITE_FAULT])
        image[when] = ''
        expect(await openAgain('always')).toBe(true)
      },
    )

    it('lets no flush succeed before it is known what was lost', async () => {
      await run(IoType.WRITE)
      const running = io(IoType.FLUSH)
      const forced = io(IoType.WRITE, true)
      const isLost = await openAgain('always', async () => {
        // Under the old handle and under the new one.
        const late = io(IoType.FLUSH, false, 1)
        expect(await end(running, forced, late)).toEqual(Array(3).fill(Status.INTERNAL_PATH_ERROR))
        expect(image.calls.filter(call => call === 'flush')).toHaveLength(1)
      })
      expect(isLost).toBe(true)
      expect(await run(IoType.FLUSH)).toEqual([Status.WRITE_FAULT])
    })

    it('does not take what is written under the new handle for lost', async () => {
      const isLost = await openAgain('always', async () => {
        expect(await run(IoType.WRITE)).toEqual([Status.SUCCESS])
      })
      expect(isLost).toBe(false)
      // It is when that one is shut out as well.
      expect(await openAgain('always')).toBe(true)
    })
  })

  it('gives back its memory when it is closed', async () => {
    // More often than its reactor's memory would last otherwise.
    for (let round = 0; round < 5000; round++) {
      const channel = open()
      const pending = new PendingIo(channel, {
        type: IoType.READ,
        firstBlock: 0,
        blockCount: 1,
        segments: 17,
      })
      expect(await finish(pending)).toEqual([Status.SUCCESS])
      pending.free()
      channel.close()
      reactors.settle()
    }
  })
})
