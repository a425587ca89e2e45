import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { errorMethods } from '../../src/bdev/filters/error.ts'
import { logSettings } from '../../src/core/log.ts'
import { exportUri } from '../../src/nbd/exports.ts'
import { nbdExportList, nbdExportStart, nbdExportStop, nbdGuestArgs } from '../../src/nbd/methods.ts'
import { ascii, type Client, EXPORT, request, simpleReply, string, WireService } from './support.ts'

const READ = 0
const WRITE = 1
const FLUSH = 3
const ESHUTDOWN = 108

let service: WireService
const { write } = logSettings

beforeEach(async () => {
  logSettings.write = () => {}
  service = await WireService.start({ capacity: 4096 })
})

afterEach(() => {
  service.close()
  logSettings.write = write
})

const context = (): { nbd: WireService['exports'] } => ({ nbd: service.exports })
const start = (params: Record<string, unknown>): Promise<unknown> =>
  Promise.resolve(nbdExportStart.run(nbdExportStart.params.parse(params), context()))

/** Leaves a reply of 4096 bytes and more unread, so that the client's requests stay in flight. */
async function stuckClient(): Promise<Client> {
  const client = (await service.dial()).enter()
  client.send(request({ type: READ, length: 65536 }).repeat(2))
  return client
}

describe('nbd_export_start', () => {
  it('serves a bdev under its own name on the usual port of this machine', async () => {
    expect(await start({ bdev_name: 'm0' })).toEqual({
      name: 'm0',
      bdev_name: 'm0',
      uri: 'nbd://127.0.0.1/m0',
      read_only: false,
      description: '',
      max_connections: 0,
      connections: 0,
    })
  })

  it.each([
    ['no bdev has that name', { bdev_name: 'm9' }, 'ENODEV', 'there is no bdev m9: there are m0'],
    [
      'the name is taken',
      { bdev_name: 'm0', name: 'a' },
      'EEXIST',
      '"a" exists already, of m0 at nbd://127.0.0.1/a',
    ],
    [
      'the host is a name',
      { bdev_name: 'm0', host: 'localhost' },
      'EINVAL',
      '"localhost" is no IPv4 or IPv6 address',
    ],
    [
      'the name has half a character',
      { bdev_name: 'm0', name: '\ud800' },
      'EINVAL',
      'half a surrogate pair: give it whole characters',
    ],
    ['path and port are given', { bdev_name: 'm0', unix: '/tmp/x', port: 1 }, 'EINVAL', 'choose one'],
    ['the path is relative', { bdev_name: 'm0', unix: 'x.sock' }, 'EINVAL', 'x.sock is relative'],
  ])('refuses when %s', async (_, params, code, message) => {
    await start({ bdev_name: 'm0', name: 'a' })
    // `run` may throw before it returns a promise.
    const refused = (async () => start(params))()
    await expect(refused).rejects.toMatchObject({ code, message: expect.stringContaining(message) })
  })

  it('refuses a bdev that another has for itself, and leaves no listener behind', async () => {
    const claim = service.bdevs.claim('m0', 'subsystem a', 'exclusive_write')
    await expect(start({ bdev_name: 'm0' })).rejects.toMatchObject({ code: 'EPERM' })
    expect(await start({ bdev_name: 'm0', read_only: true })).toMatchObject({ read_only: true })
    claim.release()
  })

  it('is saved as the call that would make it again', async () => {
    await start({ bdev_name: 'm0', name: 'a', host: '::1', port: 0, description: 'd', max_connections: 3 })
    await start({ bdev_name: 'm0', name: 'b', read_only: true })
    const [first, second] = service.exports.config()
    expect(first).toEqual({
      method: 'nbd_export_start',
      params: {
        bdev_name: 'm0',
        name: 'a',
        host: '::1',
        port: expect.any(Number),
        description: 'd',
        max_connections: 3,
      },
    })
    expect(first!.params!['port']).toBeGreaterThan(0)
    expect(second!.params).toEqual({
      bdev_name: 'm0',
      name: 'b',
      host: '127.0.0.1',
      port: 10809,
      read_only: true,
    })
  })
})

describe('nbd_export_stop', () => {
  it('answers what is in flight, refuses the rest and hangs up', async () => {
    await start({ bdev_name: 'm0' })
    const client = await stuckClient()
    const stopped = service.exports.stop('m0')
    await service.turn()
    client.send(request({ type: FLUSH, cookie: 'ee'.repeat(8) }))
    let received = ''
    for (let part = client.take(); part.length > 0; part = client.take()) received += part.toString('hex')
    await service.reactors.run(stopped)
    const data = simpleReply() + '00'.repeat(65536)
    expect(received === data + data + simpleReply(ESHUTDOWN, 'ee'.repeat(8))).toBe(true)
    expect(client.peer.sawEnd).toBe(true)
  })

  it('cuts off a client that does not take its last replies', async () => {
    await start({ bdev_name: 'm0' })
    const client = await stuckClient()
    const stopped = service.exports.stop('m0')
    await service.turn()
    service.reactors.advance(3_000_000)
    await service.reactors.run(stopped)
    expect(client.peer.waiting).toBe(4096)
    expect(service.network.openStreams).toBe(0)
  })

  it('leaves other exports of the same socket and their clients alone', async () => {
    await start({ bdev_name: 'm0', name: 'a' })
    await start({ bdev_name: 'm0', name: 'b' })
    const client = (await service.dial()).enter({ name: '61' })
    await service.reactors.run(service.exports.stop('b'))
    expect(client.ask(request({ type: FLUSH }))).toBe(simpleReply())
    expect(nbdExportList.run({ name: undefined }, context())).toMatchObject([{ name: 'a', connections: 1 }])
  })

  it('names the exports there are when one is missing', async () => {
    await start({ bdev_name: 'm0', name: 'a' })
    await expect(nbdExportStop.run({ name: 'x' }, context())).rejects.toMatchObject({
      code: 'ENOENT',
      message: 'there is no NBD export "x": there are "a"',
    })
  })
})

describe('the removal of a bdev under its clients', () => {
  it('ends the export and its connections, also one in the middle of a write', async () => {
    await service.exports.start(EXPORT)
    const idle = (await service.dial()).enter()
    const writer = (await service.dial()).enter()
    writer.send(`${request({ type: WRITE, length: 4096 })}aabbcc`)
    const removed = service.bdevs.remove('m0')
    await service.turn()
    service.reactors.advance(3_000_000)
    await service.reactors.run(removed)
    expect([idle.peer.sawEnd, writer.peer.sawEnd]).toEqual([true, true])
    expect(service.exports.list()).toEqual([])
  })

  it('takes back what a slow client has not read', async () => {
    await service.exports.start(EXPORT)
    await stuckClient()
    const removed = service.bdevs.remove('m0')
    await service.turn()
    service.reactors.advance(3_000_000)
    await service.reactors.run(removed)
    expect(service.bdevs.list()).toEqual([])
  })
})

describe('a device that holds its I/O for ever', () => {
  const PENDING = { name: 'EE_m0', io_type: 'read', error_type: 'pending', num: 10 }

  async function heldRead(): Promise<Client> {
    const { bdevs, reactors } = service
    await reactors.run(bdevs.create('error', 'EE_m0', { base_name: 'm0' }))
    await service.exports.start({ ...EXPORT, bdev: 'EE_m0' })
    const injectError = errorMethods.find(({ name }) => name === 'bdev_error_inject_error')!
    await injectError.run(injectError.params.parse(PENDING) as never, { bdevs } as never)
    const client = (await service.dial()).enter({ name: string(ascii('EE_m0')).slice(8) })
    client.send(request({ type: READ, length: 4096 }))
    return client
  }

  it('does not keep its export from being stopped', async () => {
    await heldRead()
    let isStopped = false
    void service.exports.stop('EE_m0').then(() => {
      isStopped = true
    })
    await service.turn()
    service.reactors.advance(3_000_000)
    await service.turn()
    expect(isStopped).toBe(true)
  })

  it('does not keep the connection of a client that has left', async () => {
    const client = await heldRead()
    client.peer.close()
    await service.turn()
    expect(service.exports.get('EE_m0').connectionCount).toBe(0)
  })
})

describe('resize', () => {
  it('is seen by the next client, and holds at once for those that know of it', async () => {
    await service.exports.start(EXPORT)
    const client = (await service.dial()).enter()
    const beyond = request({ type: READ, offset: 1 << 20, length: 512 })
    expect(client.ask(beyond)).toBe(simpleReply(22))
    // The device is made larger only in its description: nothing is read from it here.
    await service.reactors.run(service.bdevs.resize('m0', 4096))
    expect(client.ask(request({ type: READ, offset: 2 << 20, length: 512 }))).toBe(simpleReply(22))
    const next = await service.dial()
    next.ask('00000003')
    expect(next.ask('49484156454f5054 00000001 00000002 6d30')).toBe('00000000002000000d6d')
  })
})

describe('exportUri', () => {
  it.each([
    ['a', { host: '/run/x y.sock', port: 0 }, 'nbd+unix:///a?socket=/run/x%20y.sock'],
    ['a/b', { host: '127.0.0.1', port: 10809 }, 'nbd://127.0.0.1/a%2Fb'],
    ['a', { host: '::1', port: 10810 }, 'nbd://[::1]:10810/a'],
  ])('names export %s at %j', (name, address, uri) => {
    expect(exportUri(name, address)).toBe(uri)
  })
})

describe('nbd_qemu_args', () => {
  const args = (params: Record<string, unknown>): unknown =>
    nbdGuestArgs.run(nbdGuestArgs.params.parse({ name: 'm0', ...params }), context())

  it('are an NBD client that waits for the daemon, and an NVMe controller', async () => {
    await start({ bdev_name: 'm0', unix: '/run/a,b' })
    expect(args({})).toBe(
      '-blockdev driver=nbd,node-name=nbd-m0,server.type=unix,server.path=/run/a,,b,export=m0,' +
        'reconnect-delay=60,discard=unmap -device nvme,drive=nbd-m0,serial=m0',
    )
  })

  it.each([
    [{ device: 'virtio-blk', bootindex: 1 }, '-device virtio-blk-pci,drive=nbd-m0,serial=m0,bootindex=1'],
    [
      { device: 'scsi' },
      '-device virtio-scsi-pci,id=nbd-m0-scsi -device scsi-hd,drive=nbd-m0,serial=m0,bus=nbd-m0-scsi.0',
    ],
  ])('have the device that was asked for: %j', async (params, device) => {
    await start({ bdev_name: 'm0', host: '0.0.0.0', read_only: true })
    expect(args({ ...params, reconnect_delay: 5 })).toBe(
      '-blockdev driver=nbd,node-name=nbd-m0,server.type=inet,server.host=127.0.0.1,server.port=10809,export=m0,' +
        `reconnect-delay=5,discard=unmap,read-only=on ${device}`,
    )
  })

  it('have a serial number that fits, and refuse a name that a shell would tear apart', async () => {
    await start({ bdev_name: 'm0', name: 'a-name-of-more-than-20-characters' })
    expect(args({ name: 'a-name-of-more-than-20-characters' })).toMatch(/serial=a-name-of-more-than-$/)
    await start({ bdev_name: 'm0', name: 'my disk' })
    expect(() => args({ name: 'my disk' })).toThrow('export would be "my disk": a shell splits')
  })
})
