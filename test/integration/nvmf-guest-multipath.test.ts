/**
 * Linux's own multipath over two gateways of ours, as one would run them on two machines: two daemons, one image, one
 * subsystem in both.
 *
 *   fio ── /dev/nvme0n1 ─┬─ nvme0 ── eth0 ── daemon A ─┬─ image
 *                        └─ nvme1 ── eth1 ── daemon B ─┘
 */
import { truncateSync } from 'node:fs'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { type AnaState, type Gateway, startGateway } from './lab/gateway.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { eventually, LinuxHost, type VerifiedLoad } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.qpair:shared'
const MIB = 1 << 20
const SIZE = 64 * MIB
/** Of controller identifiers. A path that was lost for a moment has another one of its own. */
const RANGES = [
  { min_cntlid: 1, max_cntlid: 32_760 },
  { min_cntlid: 32_761, max_cntlid: 65_519 },
] as const
/** Short for those tests that wait for its end, and longer than a guest on a busy machine stands still in all others. */
const KEEP_ALIVE = '-k 4'
/** Where random data lies that no load touches. */
const KEPT_MIB = 32

await describeWith(GUEST_PROGRAMS, 'Linux multipath over two gateways', () => {
  let gateways: Gateway[] = []
  let ports: string[]
  let image: string
  let guest: Guest
  let host: LinuxHost
  let load: VerifiedLoad

  const state = (path: number): string => `/sys/class/nvme/nvme${path}/state`
  const anaState = (path: number): string => `/sys/class/nvme/nvme${path}/nvme0c${path}n1/ana_state`
  const live = (path: number): Promise<void> => host.waitForText(state(path), 'live')

  /** Sets the ANA state of a path, and waits until the host has heard of it. */
  async function switchPath(path: number, ana: AnaState): Promise<void> {
    await gateways[path]!.setAnaState(NQN, ports[path]!, ana)
    await host.waitForText(anaState(path), ana.replace('_', '-'))
  }

  /** Waits until nothing is under way on a path any more. */
  const ended = (path: number): Promise<void> =>
    guest.waitFor(`[ "$(tr -d ' \\n' </sys/block/nvme0c${path}n1/inflight)" = 00 ]`)

  beforeAll(async () => {
    gateways = [await startGateway(), await startGateway()]
    image = gateways[0]!.image('shared.raw', SIZE)
    ports = []
    for (const [index, gateway] of gateways.entries()) {
      await gateway.daemon.rpc('bdev_uring_create', { name: 'disk', filename: image, block_size: 512 })
      const params = { serial_number: 'SHARED', ana_reporting: true, ...RANGES[index] }
      ports.push(await gateway.serve(NQN, ['disk'], params))
    }
    guest = await bootGuest({ nics: 2, modules: ['nvme-tcp'] })
    host = new LinuxHost(guest)
    await host.connect({ nqn: NQN, port: ports[0]!, nic: 0, args: KEEP_ALIVE })
    await host.connect({ nqn: NQN, port: ports[1]!, nic: 1, args: KEEP_ALIVE })
    await guest.waitFor('test -b /dev/nvme0n1')
    await guest.run(
      `dd if=/dev/urandom of=/tmp/kept bs=1M count=4 && dd if=/tmp/kept of=/dev/nvme0n1 bs=1M seek=${KEPT_MIB} oflag=direct`,
    )
  })
  afterAll(async () => {
    await guest?.stop()
    // The image is in the directory of the first.
    for (const { daemon } of gateways.reverse()) await daemon.stop()
  })

  beforeEach(async () => {
    await live(0)
    await live(1)
    await host.clearKernelLog()
    load = host.startLoad('/dev/nvme0n1')
    await load.progress()
  })
  afterEach(async () => {
    await load.stop()
    expect(await host.ioErrors()).toBe('')
    await guest.run(
      `dd if=/dev/nvme0n1 of=/tmp/back bs=1M skip=${KEPT_MIB} count=4 iflag=direct && cmp /tmp/kept /tmp/back`,
    )
  })

  it('is one device with two paths, whose controllers have identifiers of their own', async () => {
    const [subsystem] =
      await host.json<{ Subsystems: { NQN: string; Paths: { State: string }[] }[] }[]>('list-subsys')
    expect(subsystem!.Subsystems).toMatchObject([{ NQN, Paths: [{ State: 'live' }, { State: 'live' }] }])
    expect(await host.text('ls /sys/block | grep nvme')).toBe('nvme0c0n1\nnvme0c1n1\nnvme0n1')
    const identifiers = await host.text('cat /sys/class/nvme/nvme0/cntlid /sys/class/nvme/nvme1/cntlid')
    const [first, second] = identifiers.split('\n').map(Number)
    expect(first).toBeGreaterThanOrEqual(RANGES[0].min_cntlid)
    expect(first).toBeLessThanOrEqual(RANGES[0].max_cntlid)
    expect(second).toBeGreaterThanOrEqual(RANGES[1].min_cntlid)
  })

  it.each([0, 1])('loses no byte when gateway %i is killed and started again', async path => {
    const { daemon } = gateways[path]!
    await daemon.kill()
    await host.waitForText(state(path), 'connecting')
    await load.progress()
    await daemon.start()
    await live(path)
    await host.waitForText(anaState(path), 'optimized')
    await load.progress()
  })

  it('moves I/O with the ANA states, and waits while no path is accessible', async () => {
    for (const path of [0, 1]) {
      await switchPath(path, 'inaccessible')
      await ended(path)
      const idle = await gateways[path]!.completed('disk')
      await load.progress()
      expect(await gateways[path]!.completed('disk')).toBe(idle)
      await switchPath(path, 'non_optimized')
      await load.progress()
      await switchPath(path, 'optimized')
      await load.progress()
    }
    // With both inaccessible the host keeps what it has, until one is back.
    await switchPath(0, 'inaccessible')
    await switchPath(1, 'inaccessible')
    await switchPath(0, 'optimized')
    await load.progress()
    await switchPath(1, 'optimized')
  })

  it('keeps the ANA state of a path over a crash of its gateway', async () => {
    await switchPath(0, 'inaccessible')
    await gateways[0]!.daemon.kill()
    await host.waitForText(state(0), 'connecting')
    await gateways[0]!.daemon.start()
    await live(0)
    await host.waitForText(anaState(0), 'inaccessible')
    await load.progress()
    expect(await gateways[0]!.completed('disk')).toBe(0)
    await switchPath(0, 'optimized')
  })

  it('spreads I/O by round robin, and loses no byte when either gateway ends', async () => {
    const policy = '/sys/class/nvme-subsystem/nvme-subsys0/iopolicy'
    await guest.run(`echo round-robin >${policy}`)
    for (const [path, signal] of [[0, 'SIGKILL'] as const, [1, 'SIGTERM'] as const]) {
      const before = await Promise.all(gateways.map(gateway => gateway.completed('disk')))
      await load.progress(256)
      for (const [index, gateway] of gateways.entries()) {
        expect(await gateway.completed('disk')).toBeGreaterThan(before[index]! + 50)
      }
      const { daemon } = gateways[path]!
      expect(await daemon.kill(signal)).toMatchObject(signal === 'SIGTERM' ? { code: 0 } : { signal })
      await host.waitForText(state(path), 'connecting')
      await daemon.start()
      await load.progress()
      await live(path)
      await host.waitForText(anaState(path), 'optimized')
      await load.progress()
    }
    await guest.run(`echo numa >${policy}`)
  })

  it('sees the image grow, without a new connection', async () => {
    truncateSync(image, SIZE + 16 * MIB)
    for (const { daemon } of gateways) await daemon.rpc('bdev_uring_rescan', { name: 'disk' })
    await host.waitForText('/sys/block/nvme0n1/size', String((SIZE + 16 * MIB) / 512))
    await guest.run('dd if=/tmp/kept of=/dev/nvme0n1 bs=1M seek=72 oflag=direct')
    expect(await host.text("dmesg | grep -c 'reconnect' || true")).toBe('0')
  })

  it('survives listeners that are taken away and come back', async () => {
    for (const path of [0, 1]) {
      await gateways[path]!.unlisten(NQN, ports[path]!)
      await host.waitForText(state(path), 'connecting')
      await load.progress()
      expect(await gateways[path]!.listen(NQN, ports[path]!)).toBe(ports[path])
      await live(path)
      await load.progress()
    }
  })

  it('reads by the other path while a gateway hangs, and by both once it goes on', async () => {
    // Reads only: a write that a hung gateway has received already may still be done when it goes on.
    await load.stop()
    await switchPath(1, 'non_optimized')
    const read = `dd if=/dev/nvme0n1 of=/tmp/back bs=64k skip=${KEPT_MIB * 16} count=64 iflag=direct`
    const reader = guest.start(
      `until [ -e /tmp/enough ]; do ${read} && cmp /tmp/kept /tmp/back || exit 9; done; rm /tmp/enough`,
    )
    await eventually(() => gateways[0]!.completed('disk')).toBeGreaterThan(100)
    gateways[0]!.daemon.signal('SIGSTOP')
    await host.waitForText(state(0), 'connecting')
    const before = await gateways[1]!.completed('disk')
    await eventually(() => gateways[1]!.completed('disk')).toBeGreaterThan(before + 100)
    gateways[0]!.daemon.signal('SIGCONT')
    await live(0)
    await guest.run('touch /tmp/enough')
    await reader.done
    await switchPath(1, 'optimized')
    load = host.startLoad('/dev/nvme0n1')
    await load.progress()
  })

  it.each([0, 1])('survives a silent network on path %i', async path => {
    // The I/O that is under way there waits for the keep-alive time-out and then goes the other way.
    await switchPath(1 - path, 'non_optimized')
    await guest.setLink(path, false)
    await host.waitForText(state(path), 'connecting')
    await load.progress()
    await eventually(() => gateways[path]!.queues()).toBe(0)
    await guest.setLink(path, true)
    await live(path)
    await switchPath(1 - path, 'optimized')
    await load.progress()
  })
})
