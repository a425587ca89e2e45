/** What an operator changes while a Linux host is connected: namespaces, devices and subsystems come and go under I/O. */
import { readdirSync } from 'node:fs'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { type Gateway, startGateway } from './lab/gateway.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { eventually, LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.qpair:changes'
const OTHER_NQN = 'nqn.2016-06.io.qpair:other'
const MIB = 1 << 20
const BLOCKS = (32 * MIB) / 512

/** Reads and writes without verification until an error ends it. */
const unverified = (device: string): string =>
  `fio --name=doomed --filename=${device} --rw=randrw --bs=4k --iodepth=16 --ioengine=libaio --direct=1 --time_based --runtime=3600`

await describeWith(GUEST_PROGRAMS, 'a Linux host while things change', () => {
  let gateway: Gateway
  let port: string
  let guest: Guest
  let host: LinuxHost

  const makeDisk = (name: string): Promise<unknown> =>
    gateway.daemon.rpc('bdev_malloc_create', { name, block_size: 512, num_blocks: BLOCKS })

  beforeAll(async () => {
    gateway = await startGateway({ args: ['--reactors', '2'] })
    await makeDisk('steady')
    port = await gateway.serve(NQN, ['steady'])
    guest = await bootGuest({ modules: ['nvme-tcp'] })
    host = new LinuxHost(guest)
  })
  afterAll(async () => {
    await guest?.stop()
    await gateway?.daemon.stop()
  })
  beforeEach(async () => {
    await host.connect({ nqn: NQN, port })
    await guest.waitFor('test -b /dev/nvme0n1')
  })
  afterEach(async () => {
    await host.disconnectAll()
    await eventually(() => gateway.queues()).toBe(0)
  })

  it('sees namespaces come and go while it works on another', async () => {
    const load = host.startLoad('/dev/nvme0n1')
    await load.progress()
    for (let round = 0; round < 3; round++) {
      await makeDisk('passing')
      const nsid = await gateway.addNamespace(NQN, 'passing')
      await guest.waitFor(`test -b /dev/nvme0n${nsid}`)
      await guest.run(`dd if=/dev/urandom of=/dev/nvme0n${nsid} bs=64k count=8 oflag=direct`)
      await gateway.daemon.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid })
      await guest.waitFor(`! test -e /sys/block/nvme0n${nsid}`)
      await gateway.daemon.rpc('bdev_malloc_delete', { name: 'passing' })
    }
    await load.stop()
  })

  it('gets errors, and hangs on nothing, when a device is pulled under I/O', async () => {
    await makeDisk('pulled')
    const nsid = await gateway.addNamespace(NQN, 'pulled')
    await guest.waitFor(`test -b /dev/nvme0n${nsid}`)
    const load = host.startLoad('/dev/nvme0n1')
    await load.progress()
    const doomed = guest.start(unverified(`/dev/nvme0n${nsid}`), { check: false })
    await eventually(() => gateway.completed('pulled')).toBeGreaterThan(500)
    await gateway.daemon.rpc('bdev_malloc_delete', { name: 'pulled' })
    const { code, stderr, stdout } = await doomed.done
    expect(code).not.toBe(0)
    // What Linux makes of Invalid Namespace; or of a device that is gone already.
    expect(stdout + stderr).toMatch(/Operation not supported|Input\/output error|No such device/)
    await guest.waitFor(`! test -e /sys/block/nvme0n${nsid}`)
    await load.stop()
    expect(await host.text('cat /sys/class/nvme/nvme0/state')).toBe('live')
  })

  it('gets errors, and hangs on nothing, when a subsystem is deleted under I/O', async () => {
    await makeDisk('lost')
    const otherPort = await gateway.serve(OTHER_NQN, ['lost'])
    await guest.run(
      `nvme connect -t tcp -a 10.0.2.2 -s ${otherPort} -n ${OTHER_NQN} --ctrl-loss-tmo=2 --reconnect-delay=1`,
    )
    await guest.waitFor('test -b /dev/nvme1n1')
    const load = host.startLoad('/dev/nvme0n1')
    await load.progress()
    const doomed = guest.start(unverified('/dev/nvme1n1'), { check: false })
    await eventually(() => gateway.completed('lost')).toBeGreaterThan(500)
    await gateway.daemon.rpc('nvmf_delete_subsystem', { nqn: OTHER_NQN })
    expect((await doomed.done).code).not.toBe(0)
    await guest.waitFor('! test -e /sys/class/nvme/nvme1')
    await gateway.daemon.rpc('bdev_malloc_delete', { name: 'lost' })
    await load.stop()
  })

  it('is reported errors of the device, one by one, and goes on', async () => {
    await makeDisk('base')
    await gateway.daemon.rpc('bdev_error_create', { base_name: 'base' })
    const nsid = await gateway.addNamespace(NQN, 'EE_base')
    const device = `/dev/nvme0n${nsid}`
    await guest.waitFor(`test -b ${device}`)
    await gateway.daemon.rpc('bdev_error_inject_error', {
      name: 'EE_base',
      io_type: 'write',
      error_type: 'failure',
      num: 1000,
    })
    const write = `dd if=/dev/zero of=${device} bs=4k count=1 oflag=direct`
    const failed = await guest.run(write, { check: false })
    expect(failed.stderr).toContain('Input/output error')
    await gateway.daemon.rpc('bdev_error_inject_error', {
      name: 'EE_base',
      io_type: 'clear',
      error_type: 'failure',
    })
    await guest.run(write)
    await gateway.daemon.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid })
    await gateway.daemon.rpc('bdev_error_delete', { name: 'EE_base' })
    await gateway.daemon.rpc('bdev_malloc_delete', { name: 'base' })
  })

  it('connects and disconnects twenty times and leaves nothing open', async () => {
    const cycle = async (): Promise<void> => {
      await host.disconnectAll()
      await eventually(() => gateway.queues()).toBe(0)
      await host.connect({ nqn: NQN, port })
      await guest.waitFor('test -b /dev/nvme0n1')
      await guest.run('dd if=/dev/nvme0n1 of=/dev/null bs=64k count=4 iflag=direct')
    }
    const openFiles = (): number => readdirSync(`/proc/${gateway.daemon.pid}/fd`).length
    await cycle()
    const before = openFiles()
    for (let round = 0; round < 20; round++) await cycle()
    await eventually(openFiles).toBe(before)
  })
})
