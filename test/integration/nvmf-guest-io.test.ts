/** Verified I/O of a Linux host over several kinds of device, and beside hosts that mean harm. */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { type Gateway, startGateway } from './lab/gateway.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { eventually, LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.qpair:io'
const MIB = 1 << 20
const SIZE = 64 * MIB
/** The namespaces, in order. */
const BDEVS = ['memory', 'file', 'slow']

// NVMe TCP Transport specification 1.1, section 3.6.2: type, flags, HLEN, PDO, PLEN, and then what the type has.
const IC_REQ = Buffer.concat([Buffer.from('0000800080000000', 'hex'), Buffer.alloc(120)])
const CAPSULE_OVERSIZED = Buffer.concat([Buffer.from('04004848ffffff7f', 'hex'), Buffer.alloc(64)])
const CAPSULE_HALF = Buffer.concat([Buffer.from('0400480048000000', 'hex'), Buffer.alloc(20)])
/** Data of a command that there is not. */
const H2C_UNASKED = Buffer.concat([Buffer.from('0600181828000000', 'hex'), Buffer.alloc(32)])

await describeWith(GUEST_PROGRAMS, 'verified I/O of a Linux host', () => {
  let gateway: Gateway
  let port: string
  let guest: Guest
  let host: LinuxHost

  beforeAll(async () => {
    gateway = await startGateway({ args: ['--reactors', '2'] })
    const { daemon } = gateway
    const filename = gateway.image('disk.raw', SIZE)
    await daemon.rpc('bdev_malloc_create', { name: 'memory', block_size: 512, num_blocks: SIZE / 512 })
    await daemon.rpc('bdev_uring_create', { name: 'file', filename, block_size: 4096 })
    await daemon.rpc('bdev_malloc_create', { name: 'base', block_size: 512, num_blocks: SIZE / 512 })
    await daemon.rpc('bdev_delay_create', {
      name: 'slow',
      base_bdev_name: 'base',
      avg_read_latency: 3000,
      p99_read_latency: 20_000,
      avg_write_latency: 5000,
      p99_write_latency: 30_000,
    })
    port = await gateway.serve(NQN, BDEVS)
    guest = await bootGuest({ modules: ['nvme-tcp'] })
    host = new LinuxHost(guest)
    await host.connect({ nqn: NQN, port })
    await guest.waitFor('test -b /dev/nvme0n3')
  })
  afterAll(async () => {
    await guest?.stop()
    await gateway?.daemon.stop()
  })

  const cases = BDEVS.flatMap((bdev, index) =>
    [
      { bs: '4k', size: '8m' },
      { bs: '64k', size: '32m' },
      { bs: '1m', size: '48m' },
    ].map(shape => ({ bdev, device: `/dev/nvme0n${index + 1}`, ...shape })),
  )
  it.each(cases)('reads back what it wrote: $bdev, $bs at depth 32', async ({ device, bs, size }) => {
    const load = `--filename=${device} --rw=randwrite --bs=${bs} --size=${size} --iodepth=32 --ioengine=libaio --direct=1`
    const check = '--verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1'
    await guest.run(`fio --name=verify ${load} ${check}`)
    expect(await host.ioErrors()).toBe('')
  })

  it('splits what is larger than the target takes at once', async () => {
    // MDTS counts pages of 4 KiB as a power of two.
    const { mdts } = await host.json<{ mdts: number }>('id-ctrl /dev/nvme0')
    expect(Number(await host.text('cat /sys/block/nvme0n1/queue/max_hw_sectors_kb'))).toBe(4 * 2 ** mdts)
    expect(4096 * 2 ** mdts).toBeLessThan(MIB)
  })

  /** A peer that says this after it has connected, and then nothing more; its answers are read unless it is deaf. */
  async function peer(bytes: readonly Uint8Array[], isDeaf = false): Promise<Socket> {
    const socket = connect(Number(port), '127.0.0.1')
    // That it is thrown out is what is expected.
    socket.on('error', () => {})
    await once(socket, 'connect')
    if (!isDeaf) socket.resume()
    for (const part of bytes) socket.write(part)
    return socket
  }

  it('is not disturbed by peers that send nonsense, half of something, too much or nothing', async () => {
    await host.clearKernelLog()
    const load = host.startLoad('/dev/nvme0n2')
    await load.progress()
    const before = await gateway.queues()
    const thrownOut = [
      [Buffer.from('GET / HTTP/1.1\r\nHost: disk\r\n\r\n'.repeat(8))],
      [Buffer.alloc(MIB, 0xff)],
      [IC_REQ, CAPSULE_OVERSIZED],
      [IC_REQ, H2C_UNASKED],
      [IC_REQ, IC_REQ],
      [CAPSULE_OVERSIZED],
    ]
    const silent = [[], [IC_REQ.subarray(0, 50)], [IC_REQ], [IC_REQ, CAPSULE_HALF]]
    const idle = await Promise.all(silent.map(bytes => peer(bytes)))
    const deaf = await Promise.all(Array.from({ length: 8 }, () => peer([IC_REQ], true)))
    for (let round = 0; round < 2; round++) {
      const sockets = await Promise.all(thrownOut.map(bytes => peer(bytes)))
      await Promise.all(sockets.map(socket => socket.destroyed || once(socket, 'close')))
      await load.progress()
    }
    for (const socket of deaf) socket.write(Buffer.alloc(8 * MIB, 0x5a))
    await load.progress()
    for (const socket of [...idle, ...deaf]) socket.destroy()
    await load.stop()
    await eventually(() => gateway.queues()).toBe(before)
    expect(await host.ioErrors()).toBe('')
    expect(await host.text('dmesg | grep -c reconnect || true')).toBe('0')
  })
})
