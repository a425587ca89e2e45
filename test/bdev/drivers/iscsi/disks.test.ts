/** iSCSI disks, over libiscsi, against a target of the test's own. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { BdevInfo } from '../../../../src/bdev/bdev.ts'
import type { Channel } from '../../../../src/bdev/channel.ts'
import { drivers } from '../../../../src/bdev/drivers/index.ts'
import { IscsiDisks } from '../../../../src/bdev/drivers/iscsi/disks.ts'
import { serveIscsi } from '../../../../src/bdev/drivers/iscsi/driver.ts'
import { IoType } from '../../../../src/bdev/io.ts'
import { ReactorBdevs } from '../../../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../../../src/bdev/registry.ts'
import { logSettings } from '../../../../src/core/log.ts'
import { Status } from '../../../../src/spec/nvme-status.ts'
import { whyNoIscsi } from '../../../conformance/iscsi-subject.ts'
import { doIo, PendingIo } from '../../../support/io.ts'
import { LocalReactorGroup } from '../../../support/reactor.ts'
import { type Answer, Target } from './target.ts'

const BLOCKS = 16384
const INITIATOR = 'iqn.2026-01.test.qpair:host'
const READ_10 = 0x28
const WRITE_10 = 0x2a
const absent = whyNoIscsi()

const logged: string[] = []
logSettings.write = line => void logged.push(line)

describe.skipIf(absent !== undefined)(`iSCSI disks${absent === undefined ? '' : `: ${absent}`}`, () => {
  let reactors: LocalReactorGroup
  let bdevs: BdevRegistry
  let local: ReactorBdevs
  let disks: IscsiDisks
  let target: Target

  beforeEach(async () => {
    logged.length = 0
    reactors = new LocalReactorGroup({ ring: true, time: 'real' })
    const reactor = reactors.reactors[0]!
    local = new ReactorBdevs(reactor, drivers)
    serveIscsi(reactor)
    bdevs = new BdevRegistry(reactors, drivers)
    disks = new IscsiDisks(bdevs, reactors)
    target = new Target(BLOCKS)
    await target.listen()
  })
  afterEach(async () => {
    for (const { name } of bdevs.list()) await reactors.run(bdevs.remove(name))
    await reactors.run(target.close())
    reactors.close()
  })

  const create = (url = target.url): Promise<BdevInfo> =>
    reactors.run(disks.create({ name: 'disk', initiator: INITIATOR, url }))

  async function open(): Promise<Channel> {
    return local.open((await create()).name)
  }

  const write = (firstBlock: number, byte: number, blockCount = 1) => ({
    ...{ type: IoType.WRITE, firstBlock, blockCount },
    data: new Uint8Array(blockCount * 512).fill(byte),
  })

  const statusOf = async (channel: Channel, request: ConstructorParameters<typeof PendingIo>[1]) =>
    (await doIo(reactors, channel, request)).status

  /** Answers the next command of that kind so, and later ones as ever. */
  function once(opcode: number, ...answers: (Answer | 'silence' | 'cut')[]): void {
    target.whim = cdb => (cdb[0] === opcode ? answers.shift() : undefined)
  }
  const sense = (key: number, asc: number, ascq: number): Answer => ({ status: 2, sense: [key, asc, ascq] })

  it('tells what the unit says of itself', async () => {
    const info = await create()
    expect(info).toMatchObject({
      ...{ blockSize: 512, physicalBlockSize: 4096, blockCount: BLOCKS, writeCache: true, readOnly: false },
      product: 'iSCSI LUN',
      driverSpecific: {
        iscsi: { initiator_name: INITIATOR, url: target.url, vendor: 'QPAIR', model: 'TEST DISK' },
      },
    })
    const { FLUSH, READ, UNMAP, WRITE, WRITE_ZEROES } = IoType
    expect([...info.supports].sort()).toEqual([READ, WRITE, FLUSH, WRITE_ZEROES, UNMAP].sort())
  })

  it('shows no password, and saves the one that it was given', async () => {
    const url = target.url.replace('//', '//alice%hush@')
    const info = await create(url)
    expect(JSON.stringify(info.driverSpecific)).not.toContain('hush')
    const params = { name: 'disk', initiator_iqn: INITIATOR, url }
    expect(bdevs.config()).toEqual([{ method: 'bdev_iscsi_create', params }])
  })

  it('saves the timeout that each disk was made under', async () => {
    disks.setTimeout(7)
    await create()
    disks.setTimeout(0)
    expect(bdevs.config()).toMatchObject([
      { method: 'bdev_iscsi_set_options', params: { timeout_sec: 7 } },
      { method: 'bdev_iscsi_create' },
      { method: 'bdev_iscsi_set_options', params: { timeout_sec: 0 } },
    ])
  })

  it('forces a write by the command itself where the unit can', async () => {
    const channel = await open()
    const flags: number[] = []
    target.whim = cdb => {
      if (cdb[0] === WRITE_10) flags.push(cdb[1]!)
      return undefined
    }
    await statusOf(channel, { ...write(0, 1), fua: true })
    await statusOf(channel, write(0, 1))
    expect(flags).toEqual([0x08, 0])
    expect(target.commands).not.toContain(0x35)
  })

  it('flushes after zeroes that are forced, which have no such bit', async () => {
    const channel = await open()
    target.commands.length = 0
    await statusOf(channel, { type: IoType.WRITE_ZEROES, firstBlock: 0, blockCount: 8, fua: true })
    expect(target.commands).toEqual([0x93, 0x35])
  })

  it('cuts what is longer than the unit takes at once', async () => {
    const channel = await open()
    target.commands.length = 0
    expect(await statusOf(channel, write(3, 0xa5, 10_000))).toBe(Status.SUCCESS)
    expect(target.commands).toEqual([WRITE_10, WRITE_10, WRITE_10])
    expect(target.disk.indexOf(0xa5)).toBe(3 * 512)
    expect(target.disk.lastIndexOf(0xa5)).toBe(10_003 * 512 - 1)
  })

  it('addresses blocks beyond 32 bits', async () => {
    target.whim = cdb => {
      if (cdb[0] !== 0x9e) return undefined
      const data = Buffer.alloc(32)
      data.writeBigUInt64BE(2n ** 33n - 1n)
      data.writeUInt32BE(512, 8)
      return { status: 0, data }
    }
    const channel = await open()
    const seen: Buffer[] = []
    target.whim = cdb => {
      seen.push(cdb)
      return { status: 0, data: Buffer.alloc(512, 7) }
    }
    const { data } = await doIo(reactors, channel, {
      type: IoType.READ,
      firstBlock: 2 ** 32 + 5,
      blockCount: 1,
    })
    expect(data).toEqual(new Uint8Array(512).fill(7))
    expect(seen.map(cdb => cdb.toString('hex'))).toEqual(['88000000000100000005000000010000'])
  })

  it.each([
    ['a write-protected unit', sense(7, 0x27, 0), Status.NAMESPACE_WRITE_PROTECTED],
    ['a full one', sense(7, 0x27, 7), Status.CAPACITY_EXCEEDED],
    ['a medium error', sense(3, 0x0c, 2), Status.WRITE_FAULT],
    ['a reservation', { status: 0x18 }, Status.RESERVATION_CONFLICT],
  ])('tells %s by its NVMe status', async (_what, answer, status) => {
    const channel = await open()
    once(WRITE_10, answer)
    expect(await statusOf(channel, write(5, 1))).toBe(status)
    expect(logged.join()).toContain(
      `ERROR iscsi: disk: write of 1 blocks at block 5 failed with NVMe status 0x${status.toString(16)}`,
    )
  })

  it('takes less data than it asked for as no success', async () => {
    const channel = await open()
    once(READ_10, { status: 0, data: Buffer.alloc(512) })
    expect(await statusOf(channel, { type: IoType.READ, firstBlock: 0, blockCount: 2 })).toBe(
      Status.DATA_TRANSFER_ERROR,
    )
  })

  it('sends again what met a unit attention, a busy unit and a full task set', async () => {
    const channel = await open()
    once(WRITE_10, sense(6, 0x29, 0), { status: 8 }, { status: 0x28 }, sense(0xb, 0, 0))
    expect(await statusOf(channel, write(9, 0x77))).toBe(Status.SUCCESS)
    expect(target.disk[9 * 512]).toBe(0x77)
  })

  it('gives up a command that the unit never carries out', async () => {
    const channel = await open()
    target.whim = cdb => (cdb[0] === WRITE_10 ? sense(6, 0x29, 0) : undefined)
    expect(await statusOf(channel, write(0, 1))).toBe(Status.INTERNAL_ERROR)
  })

  it('has the new size of a unit that says it has one', async () => {
    const channel = await open()
    target.disk = Buffer.alloc(2 * target.disk.length)
    once(READ_10, sense(6, 0x2a, 9))
    await statusOf(channel, { type: IoType.READ, firstBlock: 0, blockCount: 1 })
    await reactors.until(() => channel.info.blockCount === 2 * BLOCKS)
    expect(await statusOf(channel, write(2 * BLOCKS - 1, 1))).toBe(Status.SUCCESS)
  })

  it('goes on when the connection is cut, in the same session as far as the target knows', async () => {
    const channel = await open()
    await statusOf(channel, write(0, 1))
    const session = target.sessions.at(-1)
    once(WRITE_10, 'cut')
    const pending = Array.from({ length: 8 }, (_, i) => new PendingIo(channel, write(i, 0x40 + i)))
    await reactors.until(() => pending.every(each => each.isDone))
    expect(pending.flatMap(each => each.statuses)).toEqual(pending.map(() => Status.SUCCESS))
    expect(pending.map((_, i) => target.disk[i * 512])).toEqual(pending.map((_, i) => 0x40 + i))
    expect(target.sessions.at(-1)).toBe(session)
    for (const each of pending) each.free()
  })

  it('keeps I/O for a target that comes back', async () => {
    const channel = await open()
    await statusOf(channel, write(0, 1))
    await target.close()
    const pending = new PendingIo(channel, write(4, 0x55))
    await reactors.until(() => target.connections.size === 0)
    await target.listen()
    await reactors.until(() => pending.isDone)
    expect(pending.statuses).toEqual([Status.SUCCESS])
    expect(target.disk[4 * 512]).toBe(0x55)
    expect(logged.join('')).toMatch(/WARNING iscsi: disk: .* is lost.*\n.*disk: the target is back after/)
    pending.free()
  })

  it('fails I/O that a target does not answer in time, and goes on with the next', async () => {
    disks.setTimeout(1)
    const channel = await open()
    once(WRITE_10, 'silence')
    expect(await statusOf(channel, write(0, 1))).toBe(Status.INTERNAL_PATH_ERROR)
    expect(await statusOf(channel, write(0, 2))).toBe(Status.SUCCESS)
    expect(target.disk[0]).toBe(2)
  })

  it('fails I/O for a target that does not come back in time', async () => {
    disks.setTimeout(1)
    const channel = await open()
    await target.close()
    expect(await statusOf(channel, write(0, 1))).toBe(Status.INTERNAL_PATH_ERROR)
  })

  it('ends everything at a reset, also what the target never answers', async () => {
    const channel = await open()
    target.whim = cdb => (cdb[0] === WRITE_10 ? 'silence' : undefined)
    const pending = new PendingIo(channel, write(0, 1))
    await reactors.until(() => target.commands.includes(WRITE_10))
    expect(await statusOf(channel, { type: IoType.RESET })).toBe(Status.SUCCESS)
    expect(pending.statuses).toEqual([Status.ABORTED_BY_REQUEST])
    target.whim = () => undefined
    expect(await statusOf(channel, write(0, 3))).toBe(Status.SUCCESS)
    pending.free()
  })

  it('follows a target that sends it to another portal', async () => {
    const other = new Target(BLOCKS)
    await other.listen()
    target.login = { status: 0x0101, keys: `TargetAddress=${other.portal},1\0` }
    const channel = await open()
    expect(await statusOf(channel, write(1, 0x31))).toBe(Status.SUCCESS)
    expect(other.disk[512]).toBe(0x31)
    expect(target.commands).toEqual([])
    await reactors.run(bdevs.remove('disk'))
    await reactors.run(other.close())
  })

  it('does not follow targets that send it to each other', async () => {
    const other = new Target(BLOCKS)
    await other.listen()
    target.login = { status: 0x0101, keys: `TargetAddress=${other.portal},1\0` }
    other.login = { status: 0x0101, keys: `TargetAddress=${target.portal},1\0` }
    await expect(create()).rejects.toThrow('sends us to another portal, and that to the next, 4 times')
    expect(target.sessions.length + other.sessions.length).toBe(5)
    await reactors.run(other.close())
  })

  it('logs out when the disk is deleted', async () => {
    await statusOf(await open(), write(0, 1))
    await reactors.run(bdevs.remove('disk'))
    await reactors.until(() => target.connections.size === 0)
    expect(bdevs.config()).toEqual([])
  })

  it.each([
    ['0201', 'EACCES', 'asks who we are'],
    ['0202', 'EACCES', 'does not let this initiator in'],
    ['0203', 'ENOENT', 'has no target iqn.2026-01.test.qpair:disk'],
    ['0302', 'EAGAIN', 'has no room for another session'],
    ['0300', 'EIO', 'refuses the login'],
  ])('explains a login that is refused with 0x%s', async (hex, code, why) => {
    const status = Number.parseInt(hex, 16)
    target.login = { status, keys: '' }
    await expect(create()).rejects.toMatchObject({ code, message: expect.stringContaining(why) })
    expect(bdevs.list()).toEqual([])
  })

  it('names the units there are when the one that is asked for is not', async () => {
    await expect(create(target.url.replace(/1$/, '5'))).rejects.toMatchObject({
      code: 'ENODEV',
      message: expect.stringContaining('has no LUN 5: there are 0, 1'),
    })
  })

  it('refuses what is no disk', async () => {
    target.whim = cdb => (cdb[0] === 0x12 ? { status: 0, data: Buffer.from([5, 0x80, 6, 2, 31]) } : undefined)
    await expect(create()).rejects.toThrow('is no disk: its device type is 0x5')
  })

  it.each([
    ['more blocks than any disk', 2n ** 60n, 512, 'more than any disk'],
    ['blocks of no size', 8n, 0, 'the block size of LUN 1'],
    ['blocks of an odd size', 8n, 520, 'the block size of LUN 1'],
  ])('refuses a unit with %s', async (_what, lastBlock, blockSize, why) => {
    const data = Buffer.alloc(32)
    data.writeBigUInt64BE(lastBlock)
    data.writeUInt32BE(blockSize, 8)
    target.whim = cdb => (cdb[0] === 0x9e ? { status: 0, data } : undefined)
    await expect(create()).rejects.toMatchObject({ code: 'EINVAL', message: expect.stringContaining(why) })
  })

  it('says that nobody listens, or that no host has the name', async () => {
    await target.close()
    await expect(create()).rejects.toMatchObject({ code: 'ECONNREFUSED' })
    await expect(create(target.url.replace('127.0.0.1', 'nowhere.invalid'))).rejects.toMatchObject({
      code: 'EHOSTUNREACH',
    })
  })

  it('refuses a second device of the name, and of the unit', async () => {
    await create()
    await expect(create()).rejects.toThrow('a bdev named disk exists already')
    const again = disks.create({ name: 'again', initiator: INITIATOR, url: target.url })
    await expect(reactors.run(again)).rejects.toMatchObject({ code: 'EEXIST' })
  })
})
