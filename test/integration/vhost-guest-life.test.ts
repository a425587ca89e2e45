/** What happens to machines with disks over vhost-user: reboot, sudden death, unplugging, memory that comes and goes. */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest, type GuestOptions } from './lab/guest.ts'
import { eventually, LinuxHost, type VerifiedLoad } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { blkArgs, plugBlk, slotArgs, startVhost, unplug, type VhostTarget } from './lab/vhost.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
const BDEVS = ['steady', 'disk', 'other', 'plugged'] as const

// vhost-user, "Header": request, flags (version 1), size of the payload; then the payload.
const message = (request: number, payload: Buffer, flags = 1): Buffer => {
  const header = Buffer.alloc(12)
  header.writeUInt32LE(request, 0)
  header.writeUInt32LE(flags, 4)
  header.writeUInt32LE(payload.length, 8)
  return Buffer.concat([header, payload])
}
const u64 = (value: bigint): Buffer => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(value)
  return bytes
}
const GET_FEATURES = message(1, Buffer.alloc(0))
const SET_FEATURES_ALL = message(2, u64(0xffff_ffff_ffff_ffffn))
const SET_OWNER = message(3, Buffer.alloc(0))
/** One region, and no descriptor with it. */
const SET_MEM_TABLE = message(5, Buffer.concat([u64(1n), u64(0n), u64(1n << 30n), u64(0n), u64(0n)]))
/** Of a ring that there is not. */
const SET_VRING_NUM = message(8, u64(0x0000_0080_ffff_ffffn))
const SET_VRING_ADDR = message(9, Buffer.alloc(40, 0xff))
const SET_VRING_KICK = message(12, u64(0n))
const GET_CONFIG_OVERSIZED = message(24, Buffer.from('00000000ffffffff00000000', 'hex'))
const HUGE = Buffer.from('0200000001000000ffffff7f', 'hex')

await describeWith(GUEST_PROGRAMS, 'guests with vhost-user disks', () => {
  let target: VhostTarget
  let neighbour: Guest
  let neighbourHost: LinuxHost
  let load: VerifiedLoad
  const sockets = {} as Record<(typeof BDEVS)[number], string>

  const boot = (options: GuestOptions): Promise<Guest> =>
    bootGuest({ nics: 0, memoryMiB: 384, sharedMemory: true, ...options })

  beforeAll(async () => {
    target = await startVhost({ args: ['--reactors', '2'] })
    for (const name of BDEVS) {
      await target.daemon.rpc('bdev_malloc_create', { name, block_size: 512, num_blocks: SIZE / 512 })
      sockets[name] = await target.serveBlk(name, name)
    }
    neighbour = await boot({ cpus: 1, extraArgs: blkArgs({ id: 'steady', socket: sockets.steady }) })
    neighbourHost = new LinuxHost(neighbour)
  })
  afterAll(async () => {
    await neighbour?.stop()
    await target?.stop()
  })

  // Whatever one guest does, another on the same daemon works on and notices nothing.
  beforeEach(async () => {
    load = neighbourHost.startLoad('/dev/vdb')
    await load.progress()
  })
  afterEach(async () => {
    await load.stop()
    expect(await neighbourHost.ioErrors()).toBe('')
  })

  /** Waits until the daemon has let go of whoever was connected. */
  const idle = (name: string): Promise<void> =>
    eventually(async () => (await target.controller(name)).sessions.length).toBe(0)

  it('keeps its data over resets, new drivers and the death of QEMU', async () => {
    const disks = [
      ...blkArgs({ id: 'disk', socket: sockets.disk, queues: 2 }),
      ...blkArgs({ id: 'other', socket: sockets.other, packed: true }),
    ]
    let guest = await boot({ extraArgs: disks })
    try {
      const write =
        'dd if=/dev/urandom of=/dev/vdb bs=1M count=8 oflag=direct && dd if=/dev/vdb of=/dev/vdc bs=1M'
      const sum = async (device: string): Promise<string> =>
        (await guest.run(`dd if=${device} bs=1M count=8 iflag=direct | sha256sum`)).stdout
      const bothHold = async (expected: string): Promise<void> => {
        expect(await sum('/dev/vdb')).toBe(expected)
        expect(await sum('/dev/vdc')).toBe(expected)
      }
      const fio = (device: string): string =>
        `exec fio --name=load --filename=${device} --rw=randrw --offset=16m --bs=4k --iodepth=16 --ioengine=libaio --direct=1 --time_based --runtime=3600`
      await guest.run(write)
      const expected = await sum('/dev/vdb')

      for (const way of ['reset', 'driver', 'kill']) {
        const jobs = ['/dev/vdb', '/dev/vdc'].map(device => guest.start(fio(device), { check: false }))
        await guest.waitFor('[ $(awk "{ print \\$1 }" /sys/block/vdc/stat) -gt 500 ]')
        if (way === 'reset') await guest.reset()
        if (way === 'driver') {
          for (const job of jobs) await job.kill('KILL')
          for (const job of jobs) await job.done
          // The driver resets the device when it lets go of it, and again when it takes it.
          const rebind = `for device in $(ls -d /sys/block/vd[bc]/device); do
            name=$(basename $(readlink -f $device)); echo $name >/sys/bus/virtio/drivers/virtio_blk/unbind
            echo $name >/sys/bus/virtio/drivers/virtio_blk/bind; done`
          for (let round = 0; round < 3; round++) await guest.run(rebind)
        }
        if (way === 'kill') {
          await guest.stop()
          guest = await boot({ extraArgs: disks })
        }
        await bothHold(expected)
        await load.progress()
      }
      expect(await new LinuxHost(guest).ioErrors()).toBe('')
    } finally {
      await guest.stop()
    }
    await idle('disk')
    await idle('other')
  })

  it('gets and gives back a disk while it runs', async () => {
    const guest = await boot({ extraArgs: [...slotArgs('slot0', 1), ...slotArgs('slot1', 2)] })
    try {
      for (let round = 0; round < 2; round++) {
        const disk = { id: `plugged${round}`, socket: sockets.plugged, bus: `slot${round % 2}`, queues: 2 }
        await plugBlk(guest, disk)
        await guest.waitFor('test -b /dev/vdb')
        await guest.run(
          'fio --name=verify --filename=/dev/vdb --rw=randwrite --bs=4k --size=2m --iodepth=16 --ioengine=libaio --direct=1 --verify=crc32c --verify_state_save=0',
        )
        await unplug(guest, disk.id)
        await guest.waitFor('! test -e /sys/block/vdb')
        await idle('plugged')
      }
      expect(await new LinuxHost(guest).ioErrors()).toBe('')
    } finally {
      await guest.stop()
    }
  })

  it('gets and gives back memory under load, and uses it for I/O', async () => {
    const guest = await boot({
      spareMemoryMiB: 1024,
      extraArgs: blkArgs({ id: 'disk', socket: sockets.disk, queues: 2 }),
    })
    const host = new LinuxHost(guest)
    try {
      const busy = host.startLoad('/dev/vdb')
      await busy.progress()
      // What is plugged in becomes memory that can be given back.
      await guest.run('echo online_movable >/sys/devices/system/memory/auto_online_blocks')
      const total = async (): Promise<number> =>
        Number(await host.text("awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo"))
      const before = await total()
      for (let round = 0; round < 2; round++) {
        for (const piece of [0, 1]) {
          const props = {
            id: `memory${piece}`,
            'qom-type': 'memory-backend-memfd',
            size: 256 * MIB,
            share: true,
          }
          await guest.qmp.execute('object-add', props)
          await guest.qmp.execute('device_add', {
            driver: 'pc-dimm',
            id: `dimm${piece}`,
            memdev: `memory${piece}`,
          })
        }
        await eventually(total).toBe(before + 512)
        await busy.progress()
        // What files take comes out of that first.
        const free = `awk '/^Node/ { zone = $4 } zone == "Movable" && /nr_free_pages/ { sum += $2 } END { print sum }' /proc/zoneinfo`
        const freePages = Number(await host.text(free))
        await guest.run('dd if=/dev/urandom of=/tmp/large bs=1M count=40')
        expect(Number(await host.text(free))).toBeLessThan(freePages - 8000)
        await guest.run('dd if=/tmp/large of=/dev/vdb bs=1M seek=16 oflag=direct')
        await guest.run('dd if=/dev/vdb of=/tmp/back bs=1M skip=16 count=40 iflag=direct')
        await guest.run('cmp /tmp/large /tmp/back && rm /tmp/large /tmp/back')
        for (const piece of [0, 1]) {
          const gone = guest.qmp.event('DEVICE_DELETED', data => data['device'] === `dimm${piece}`)
          await guest.qmp.execute('device_del', { id: `dimm${piece}` })
          await gone
          await guest.qmp.execute('object-del', { id: `memory${piece}` })
        }
        await eventually(total).toBe(before)
        await busy.progress()
      }
      await busy.stop()
      expect(await host.ioErrors()).toBe('')
    } finally {
      await guest.stop()
    }
  })

  it('is not disturbed by front ends that send nonsense', async () => {
    const peer = async (bytes: readonly Uint8Array[]): Promise<Socket> => {
      const socket = connect(sockets.disk)
      // That it is thrown out is what is expected.
      socket.on('error', () => {})
      await once(socket, 'connect')
      socket.resume()
      for (const part of bytes) socket.write(part)
      return socket
    }
    const thrownOut = [
      [Buffer.alloc(4096, 0xff)],
      [Buffer.from('GET / HTTP/1.1\r\nHost: disk\r\n\r\n'.repeat(8))],
      [HUGE],
      [message(1, Buffer.alloc(0), 2)],
      [message(0xffff, Buffer.alloc(0))],
      [SET_FEATURES_ALL],
      [SET_OWNER, SET_MEM_TABLE],
      [SET_VRING_NUM],
      [SET_OWNER, SET_VRING_ADDR],
      [SET_OWNER, SET_VRING_KICK],
      [GET_FEATURES, GET_CONFIG_OVERSIZED],
    ]
    for (const bytes of thrownOut) {
      const socket = await peer(bytes)
      await new Promise<void>(resolve => (socket.destroyed ? resolve() : socket.once('close', resolve)))
      await load.progress()
    }
    const silent = [
      [],
      [GET_FEATURES.subarray(0, 5)],
      [GET_FEATURES],
      [SET_OWNER, SET_MEM_TABLE.subarray(0, 20)],
    ]
    for (const bytes of silent) {
      const socket = await peer(bytes)
      await load.progress()
      socket.destroy()
    }
    await idle('disk')
    const guest = await boot({ cpus: 1, extraArgs: blkArgs({ id: 'disk', socket: sockets.disk }) })
    await guest.run('dd if=/dev/vdb of=/dev/null bs=1M iflag=direct').finally(() => guest.stop())
  })
})
