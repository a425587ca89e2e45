/** Our NVMe/TCP host against a target that nobody here wrote: the Linux kernel's, in a guest, through two ports. */
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.example:linux'
const UUID = '7b1f3c52-8a44-4f0e-9f25-0d6a4c8e1b7d'

/** One file-backed namespace, with the blocks of 4 KiB that tmpfs has, behind a port on each of the two networks. */
const LINUX_TARGET = `
set -e
truncate -s 64M /tmp/disk
cd /sys/kernel/config/nvmet
mkdir subsystems/${NQN} subsystems/${NQN}/namespaces/1
echo 1 >subsystems/${NQN}/attr_allow_any_host
cd subsystems/${NQN}/namespaces/1
echo /tmp/disk >device_path
echo 1 >buffered_io
echo ${UUID} >device_uuid
echo 1 >enable
cd /sys/kernel/config/nvmet
for port in 1 2; do
  mkdir ports/$port
  echo tcp >ports/$port/addr_trtype
  echo ipv4 >ports/$port/addr_adrfam
  echo 10.0.$((port + 1)).15 >ports/$port/addr_traddr
  echo 4420 >ports/$port/addr_trsvcid
  ln -s /sys/kernel/config/nvmet/subsystems/${NQN} ports/$port/subsystems/
done
`
const PORTS = '/sys/kernel/config/nvmet/ports'

interface Report {
  readonly reads: number
  readonly writes: number
  readonly errors: number
  readonly miscompares: number
  readonly read_backs: number
  readonly first_errors: readonly string[]
}

await describeWith(GUEST_PROGRAMS, 'the host and a Linux target', () => {
  let guest: Guest
  let daemon: Daemon
  let ports: number[]

  beforeAll(async () => {
    guest = await bootGuest({ nics: 2, modules: ['nvmet-tcp'] })
    await guest.run(LINUX_TARGET)
    ports = []
    for (const nic of [0, 1]) ports.push(await guest.forward(4420, nic))
  })
  afterAll(() => guest?.stop())

  beforeEach(async () => {
    daemon = await startDaemon()
    await daemon.rpc('bdev_nvme_set_options', { keep_alive_timeout_ms: 4000 })
    for (const port of ports) {
      await daemon.rpc('bdev_nvme_attach_controller', {
        name: 'Nvme0',
        trtype: 'TCP',
        traddr: '127.0.0.1',
        trsvcid: String(port),
        subnqn: NQN,
        multipath: 'multipath',
        ctrlr_loss_timeout_sec: -1,
        reconnect_delay_sec: 1,
      })
    }
  })
  afterEach(() => daemon.stop())

  const start = (options: object): Promise<number> =>
    daemon.rpc<number>('workload_start', { bdev_name: 'Nvme0n1', verify: true, read_percent: 50, ...options })

  /** Waits until the workload has done more I/O, and some. */
  async function progress(id: number): Promise<void> {
    const count = async (): Promise<number> => {
      const [report] = await daemon.rpc<Report[]>('workload_get', { id })
      return report!.reads + report!.writes
    }
    const before = await count()
    while ((await count()) < before + 200) await delay(50)
  }

  async function stop(id: number): Promise<Report> {
    const report = await daemon.rpc<Report>('workload_stop', { id })
    expect(report).toMatchObject({ errors: 0, miscompares: 0, first_errors: [] })
    expect(report.read_backs).toBeGreaterThan(0)
    return report
  }

  /** Connections of the target's first port. */
  const established = async (): Promise<number> => {
    const { stdout } = await guest.run("grep -c ': 0F02000A:1144 [0-9A-F:]* 01 ' /proc/net/tcp", {
      check: false,
    })
    return Number(stdout)
  }

  /** Which port is in use. */
  async function current(): Promise<number | undefined> {
    const { poll_groups } = await daemon.rpc<{
      poll_groups: { io_paths: { current: boolean; transport: { trsvcid: string } }[] }[]
    }>('bdev_nvme_get_io_paths', { name: 'Nvme0n1' })
    const path = poll_groups.flatMap(({ io_paths }) => io_paths).find(row => row.current)
    return path === undefined ? undefined : ports.indexOf(Number(path.transport.trsvcid))
  }

  async function until(condition: () => Promise<boolean>): Promise<void> {
    while (!(await condition())) await delay(50)
  }

  /** Of both paths; fewer while a daemon that was started anew still waits for the target. */
  const states = async (): Promise<string[]> => {
    const [controller] = await daemon.rpc<{ ctrlrs: { state: string }[] }[]>('bdev_nvme_get_controllers')
    return controller?.ctrlrs.map(({ state }) => state) ?? []
  }
  const areEnabled = async (): Promise<boolean> => (await states()).join() === 'enabled,enabled'

  it('sees the namespace as Linux describes it', async () => {
    const [bdev] = await daemon.rpc<object[]>('bdev_get_bdevs', { name: 'Nvme0n1' })
    expect(bdev).toMatchObject({ name: 'Nvme0n1', uuid: UUID, num_blocks: 16_384, block_size: 4096 })
  })

  it.each([4096, 65_536, 1 << 20])('reads back what it wrote, %i bytes at a time', async io_size => {
    const id = await start({ io_size, queue_depth: io_size > 65_536 ? 4 : 32 })
    await progress(id)
    await stop(id)
  })

  it('follows ANA states under I/O, with no error', async () => {
    const id = await start({})
    await progress(id)
    await until(async () => (await current()) === 0)
    await guest.run(`echo inaccessible >${PORTS}/1/ana_groups/1/ana_state`)
    await until(async () => (await current()) === 1)
    await progress(id)
    await guest.run(`echo optimized >${PORTS}/1/ana_groups/1/ana_state`)
    await until(async () => (await current()) === 0)
    await progress(id)
    await stop(id)
  })

  it('survives ports that vanish and return under I/O', async () => {
    const id = await start({})
    for (const port of [1, 2]) {
      await progress(id)
      await guest.run(`rm ${PORTS}/${port}/subsystems/${NQN}`)
      await until(async () => (await states())[port - 1] !== 'enabled')
      await progress(id)
      await guest.run(`ln -s /sys/kernel/config/nvmet/subsystems/${NQN} ${PORTS}/${port}/subsystems/`)
      await until(areEnabled)
    }
    await progress(id)
    await stop(id)
  })

  it('survives a network that drops every packet', async () => {
    const id = await start({})
    await progress(id)
    expect(await established()).toBeGreaterThan(0)
    await guest.setLink(0, false)
    await until(async () => (await current()) === 1)
    await progress(id)
    // QEMU's network has taken what was under way, and lets the target have it as soon as it can be reached: late writes,
    // unless the target has given the connections up.
    await until(async () => (await established()) === 0)
    await guest.setLink(0, true)
    await until(areEnabled)
    await progress(id)
    await stop(id)
  })

  it('grows with the namespace', async () => {
    await guest.run(
      `truncate -s 96M /tmp/disk && echo 1 >/sys/kernel/config/nvmet/subsystems/${NQN}/namespaces/1/revalidate_size`,
    )
    await until(async () => {
      const [bdev] = await daemon.rpc<{ num_blocks: number }[]>('bdev_get_bdevs', { name: 'Nvme0n1' })
      return bdev!.num_blocks === 24_576
    })
  })

  it('keeps its paths over a crash of the daemon', async () => {
    await daemon.restart('SIGKILL')
    await until(areEnabled)
    await daemon.rpc('bdev_get_bdevs', { name: 'Nvme0n1', timeout: 60_000 })
    const id = await start({})
    await progress(id)
    await stop(id)
  })
})
