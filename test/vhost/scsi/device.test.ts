import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Status } from '../../../src/spec/nvme-status.ts'
import { bytes, filled, hexOf, lunOf, type ScsiGuest, ScsiHost, type Sent, UNTOUCHED } from './support.ts'

let host: ScsiHost
let guest: ScsiGuest

beforeEach(async () => {
  host = await ScsiHost.start(2)
  await host.create('held', 'h0', {})
  guest = await host.guest('vhost.0', ['h0', 'm0'])
})
afterEach(() => host.close())

/** READ of 8 MiB: two pieces. */
const LARGE = '88 00 0000000000000000 00004000 00 00'
const WRITE = '2a 00 00000000 00 0001 00'
const write = (id: number, reactor = 0): Sent => guest.send(WRITE, { out: filled(512, 1), id, reactor })
/** Lets go of everything that was asked to be aborted, as a bdev may or may not. */
function letGo(status: number = Status.ABORTED_BY_REQUEST): void {
  for (const io of host.held.aborted.splice(0)) host.held.end(status, io)
}

// Subtypes of task management, and what it is answered with.
const ABORT_TASK = 0
const ABORT_TASK_SET = 1
const CLEAR_ACA = 2
const CLEAR_TASK_SET = 3
const NEXUS_RESET = 4
const UNIT_RESET = 5
const QUERY_TASK = 6
const QUERY_TASK_SET = 7
const COMPLETE = 0
const ABORTED = 2
const SUCCEEDED = 10

describe('task management', () => {
  it('aborts the task of that name, on whatever reactor it is, and answers when it has ended', async () => {
    const others = [write(1), write(3, 1)]
    const sent = write(2, 1)
    let answer: number | undefined
    const managed = guest.manage(ABORT_TASK, 2).then(response => {
      answer = response
    })
    await host.reactors.until(() => host.held.aborted.length === 1)
    expect(answer).toBeUndefined()
    letGo()
    await host.reactors.run(managed)
    expect(answer).toBe(COMPLETE)
    expect(guest.answerOf(sent)).toMatchObject({ response: 2, residual: 512 })
    expect(others.map(({ isDone }) => isDone)).toEqual([false, false])
    for (const io of [...host.held.held]) host.held.end(Status.SUCCESS, io)
    host.reactors.settle()
  })

  it('lets a task end well that ends before it can be aborted', async () => {
    const sent = write(2)
    const managed = guest.manage(ABORT_TASK, 2)
    await host.reactors.until(() => host.held.aborted.length === 1)
    letGo(Status.SUCCESS)
    expect(await host.reactors.run(managed)).toBe(COMPLETE)
    expect(guest.answerOf(sent)).toMatchObject({ response: 0, status: 0 })
  })

  it('does not go on with the next part of a task that was aborted', async () => {
    const sent = guest.send('88 00 0000000000000000 00004001 00 00', { in: 0x4001 * 512, id: 4 })
    const managed = guest.manage(ABORT_TASK, 4)
    await host.reactors.until(() => host.held.aborted.length === 1)
    letGo(Status.SUCCESS)
    await host.reactors.run(managed)
    expect(guest.answerOf(sent)).toMatchObject({ response: 2 })
    expect(host.held.seen).toEqual(['read 0+8192'])
  })

  it('ends a task that waits for its turn when that comes, and not twice', async () => {
    const sent = [1, 2, 3].map(id => guest.send(LARGE, { in: 8 << 20, id }))
    for (const io of [...host.held.held]) host.held.end(Status.SUCCESS, io)
    host.reactors.poll()
    expect(host.held.seen.length).toBe(4)
    let count: number | undefined
    guest.devices[0]!.select({
      nexus: null,
      initiator: null,
      bdev: 'h0',
      id: [2, 0],
      stopWith: ABORTED,
    }).then(stopped => {
      count = stopped
    })
    guest.devices[0]!.abort(sent[2]!.request)
    await new Promise(setImmediate)
    expect([count, sent[1]!.isDone]).toEqual([undefined, false])
    host.reactors.poll()
    await new Promise(setImmediate)
    expect(count).toBe(1)
    expect(guest.answerOf(sent[1]!)).toMatchObject({ response: ABORTED, residual: 8 << 20 })
    // What a command was must mean nothing to the request that uses it next.
    const next = write(4)
    host.reactors.settle()
    expect(guest.answerOf(sent[2]!)).toMatchObject({ response: ABORTED })
    expect(sent[2]!.request.io.status).toBe(Status.ABORTED_BY_REQUEST)
    expect([next.isDone, host.held.seen.length]).toEqual([false, 5])
    for (const io of [...host.held.held]) host.held.end(Status.SUCCESS, io)
    host.reactors.settle()
    expect([sent[0]!, next].map(one => guest.answerOf(one).response)).toEqual([0, 0])
  })

  it.each([
    [ABORT_TASK_SET, 2, ''],
    [CLEAR_TASK_SET, 2, ''],
    [NEXUS_RESET, 4, '6/2907'],
    [UNIT_RESET, 4, '6/2903'],
  ])('subtype %i ends all tasks with response %i, then sense "%s"', async (subtype, response, sense) => {
    const other = await host.guest('vhost.1', ['h0'])
    const sent = [write(1), write(2, 1)]
    const foreign = other.send(WRITE, { out: filled(512, 1) })
    const managed = guest.manage(subtype)
    await host.reactors.until(() => host.held.aborted.length === 2)
    letGo()
    expect(await host.reactors.run(managed)).toBe(COMPLETE)
    for (const one of sent) expect(guest.answerOf(one)).toMatchObject({ response })
    expect(foreign.isDone).toBe(false)
    host.held.end(Status.SUCCESS)
    host.reactors.settle()
    expect(await guest.ask('00 0000000000')).toMatchObject({ sense })
    expect(await guest.ask('00 0000000000')).toMatchObject({ sense: '', status: 0 })
    expect(await other.ask('00 0000000000')).toMatchObject({ sense: '', status: 0 })
  })

  it('tells whether there are tasks', async () => {
    expect(await guest.manage(QUERY_TASK_SET)).toBe(COMPLETE)
    const sent = write(7, 1)
    expect(await guest.manage(QUERY_TASK, 7)).toBe(SUCCEEDED)
    expect(await guest.manage(QUERY_TASK, 8)).toBe(COMPLETE)
    expect(await guest.manage(QUERY_TASK_SET)).toBe(SUCCEEDED)
    host.held.end(Status.SUCCESS)
    host.reactors.settle()
    expect(guest.answerOf(sent)).toMatchObject({ status: 0 })
    expect(await guest.manage(QUERY_TASK, 7)).toBe(COMPLETE)
  })

  it('ends a task that waits for the control thread', async () => {
    const sent = guest.send('5e 00 0000000000 0008 00', { in: 8, id: 9 })
    expect(await host.reactors.run(guest.manage(ABORT_TASK, 9))).toBe(COMPLETE)
    expect(sent.lengths.length).toBe(1)
    await new Promise(setImmediate)
    expect(sent.lengths.length).toBe(1)
  })

  it('rejects what is not there', async () => {
    expect(await guest.manage(CLEAR_ACA)).toBe(11)
    expect(await guest.manage(99)).toBe(11)
    expect(await guest.manage(UNIT_RESET, 0, 2)).toBe(3)
    expect(await guest.control('00000000 05000000 0100400100000000 0000000000000000', 1)).toBe('0c')
    expect(await guest.control('00000000 05000000 0000400000000000 0000000000000000', 1)).toBe('03')
    // Too short; neither task management nor notification; nothing at all.
    expect(await guest.control('00000000 05000000', 1)).toBe('09')
    expect(await guest.control('09000000 0100400000000000 ffffffff', 5)).toBe('0000000009')
    expect(await guest.control('0000', 1)).toBe('a5')
    // Nowhere to write to.
    expect(await guest.control('00000000 05000000 0100400000000000 0000000000000000', 0)).toBe('')
  })

  it('has no asynchronous notifications', async () => {
    for (const type of ['01', '02']) {
      expect(await guest.control(`${type}000000 0100400000000000 7e000000`, 5)).toBe('0000000000')
    }
  })
})

describe('unit attentions', () => {
  it('tell each front end of the power on, once, before anything but what must be asked', async () => {
    guest.state = { writeback: true }
    await guest.update()
    expect(await guest.ask('12 00 00 0060 00', { in: 96 })).toMatchObject({ sense: '' })
    expect(await guest.ask('a0 00 00 000000 00001000 00 00', { in: 4096 })).toMatchObject({ sense: '' })
    expect(await guest.ask('00 0000000000')).toMatchObject({ status: 2, sense: '6/2900' })
    expect(await guest.ask('00 0000000000', { reactor: 1 })).toMatchObject({ status: 0, sense: '' })
    const lun = lunOf(1)
    const requested = await guest.ask('03 00 0000 12 00', { in: 18, lun })
    expect(hexOf(requested.data)).toBe('70000600 0000000a 00000000 2900 00000000'.replaceAll(' ', ''))
    expect(await guest.ask('00 0000000000', { lun })).toMatchObject({ status: 0, sense: '' })
  })

  it('tell of another size, and reads reach that far', async () => {
    await host.reactors.run(host.bdevs.resize('m0', 128))
    await guest.update()
    const lun = lunOf(1)
    expect(await guest.ask('00 0000000000', { lun })).toMatchObject({ sense: '6/2a09' })
    expect(hexOf((await guest.ask('25 00 00000000 0000 00 00', { in: 8, lun })).data)).toBe(
      '0000007f00000200',
    )
  })

  it('tell of another disk at a target, unless the LUNs are read before', async () => {
    const swap = async (bdev: string): Promise<void> => {
      guest.backing.targets.get(1)!.claim.release()
      guest.add(1, bdev)
      await guest.update()
    }
    await host.create('null', 'n0', { block_size: 4096, num_blocks: 8 })
    await swap('n0')
    const lun = lunOf(1)
    expect(await guest.ask('00 0000000000', { lun })).toMatchObject({ sense: '6/2900' })
    expect(await guest.ask('00 0000000000', { lun })).toMatchObject({ sense: '6/3f0e' })
    expect(hexOf((await guest.ask('25 00 00000000 0000 00 00', { in: 8, lun })).data)).toBe(
      '0000000700001000',
    )
    await swap('m0')
    await guest.ask('a0 00 00 000000 00001000 00 00', { in: 4096, lun })
    expect(await guest.ask('00 0000000000', { lun })).toMatchObject({ sense: '6/2900' })
    expect(await guest.ask('00 0000000000', { lun })).toMatchObject({ sense: '' })
  })
})

describe('targets that come and go', () => {
  it('answer at once when they are there, and let what is in flight end when they go', async () => {
    const sent = write(1)
    const claim = guest.backing.targets.get(0)!.claim
    guest.backing.targets.delete(0)
    let isDone = false
    const updated = guest.update().then(() => {
      isDone = true
    })
    expect(await guest.ask('12 00 00 0060 00', { in: 96 })).toMatchObject({ response: 3 })
    expect(isDone).toBe(false)
    host.held.end(Status.SUCCESS)
    host.reactors.settle()
    await updated
    expect(guest.answerOf(sent)).toMatchObject({ response: 0, status: 0 })
    claim.release()
    await host.reactors.run(host.bdevs.remove('h0'))

    guest.add(7, 'm0')
    await guest.update()
    expect(await guest.ask('00 0000000000', { lun: lunOf(7) })).toMatchObject({ sense: '6/2900' })
    expect(await guest.ask('00 0000000000', { lun: lunOf(7), reactor: 1 })).toMatchObject({ status: 0 })
  })

  it('does not miss the others when one bdev is not there', async () => {
    const lost = await host.guest('vhost.2', [])
    lost.add(0, 'm0')
    lost.add(1, 'h0')
    await host.reactors.run(host.bdevs.remove('m0'))
    guest.backing.targets.delete(1)
    await lost.update()
    expect(await lost.ask('12 00 00 0060 00', { in: 96, lun: lunOf(0) })).toMatchObject({ response: 3 })
    expect(await lost.ask('12 00 00 0060 00', { in: 96, lun: lunOf(1) })).toMatchObject({ response: 0 })
  })
})

describe('events', () => {
  const send = (reason: number): void =>
    guest.devices[0]!.sendEvent({ session: 1, event: 1, lun: [...lunOf(3)], reason }, guest.queue(1))

  it('go into the buffers that the guest has left', () => {
    const buffers = [guest.offerEvent(), guest.offerEvent(20)]
    send(1)
    send(2)
    expect(buffers.map(({ lengths }) => lengths)).toEqual([[16], [16]])
    expect(hexOf(buffers[0]!.written)).toBe('01000000 0103400000000000 01000000'.replaceAll(' ', ''))
    expect(hexOf(buffers[1]!.written)).toBe('01000000 0103400000000000 02000000 a5a5a5a5'.replaceAll(' ', ''))
  })

  it('are missed when there is no buffer, and the guest hears of that as soon as there is one', async () => {
    send(1)
    const buffer = guest.offerEvent()
    await guest.ask('00 0000000000')
    expect(hexOf(buffer.written)).toBe(`00000080${'00'.repeat(12)}`)
    const next = guest.offerEvent()
    await guest.ask('00 0000000000')
    expect(next.isDone).toBe(false)
    send(2)
    expect(hexOf(next.written).slice(0, 8)).toBe('01000000')
  })

  it('are missed in a buffer that is too short', () => {
    const short = guest.offerEvent(15)
    send(1)
    expect(short.lengths).toEqual([0])
    expect([...short.written].every(byte => byte === UNTOUCHED)).toBe(true)
    const next = guest.offerEvent()
    send(2)
    expect(hexOf(next.written).slice(0, 8)).toBe('01000080')
  })
})

describe('requests that are none', () => {
  it('are answered as far as there is room', () => {
    const header = new Uint8Array(51)
    header.set(lunOf(0))
    const ask = (readable: Uint8Array, writable: number[]): string => {
      const sent = guest.start([readable], writable)
      host.reactors.settle()
      expect(sent.lengths.length).toBe(1)
      return hexOf(sent.written)
    }
    expect(ask(header.subarray(0, 50), [108])).toBe(`${'00'.repeat(11)}09${'a5'.repeat(96)}`)
    expect(ask(header, [107])).toBe(`${'00'.repeat(11)}09${'a5'.repeat(95)}`)
    expect(ask(header, [11])).toBe('a5'.repeat(11))
    expect(ask(header, [])).toBe('')
  })
})

describe('sizes that the driver has chosen', () => {
  it('move the data, and cut the sense', async () => {
    const config = (offset: number, value: number): boolean =>
      guest.model.writeConfig(offset, Uint8Array.of(value, 0, 0, 0), guest.state)
    expect(config(20, 8)).toBe(true)
    expect(config(20, 8)).toBe(false)
    expect(config(24, 16)).toBe(true)
    await guest.update()
    guest.senseSize = 8
    guest.cdbSize = 16
    const lun = lunOf(1)
    expect(await guest.ask('2a 00 00000000 00 0001 00', { out: filled(512, 3), lun })).toMatchObject({
      status: 0,
    })
    const { data, length } = await guest.ask('28 00 00000000 00 0001 00', { in: 512, lun })
    expect([length, Buffer.compare(data, filled(512, 3))]).toEqual([20 + 512, 0])
    const refused = guest.start(
      [Uint8Array.of(...lunOf(1), ...filled(11, 0), ...bytes('ff'), ...filled(15, 0))],
      [20],
    )
    expect(hexOf(refused.written)).toBe('08000000 00000000 0000 02 00 70000500 0000000a'.replaceAll(' ', ''))
  })
})

describe('a front end that is gone', () => {
  it('has what is in flight stopped, and its answer tells that it was', () => {
    const sent = write(1)
    guest.devices[0]!.abort(sent.request)
    letGo()
    host.reactors.settle()
    expect(sent.lengths.length).toBe(1)
    expect(sent.request.io.status).toBe(Status.ABORTED_BY_REQUEST)
    // A command that does no I/O must not look like one that was stopped.
    const again = guest.start([Uint8Array.of(...lunOf(0), ...filled(43, 0))], [108])
    expect(again.request.io.status).toBe(Status.SUCCESS)
  })
})
