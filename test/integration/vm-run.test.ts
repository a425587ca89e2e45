/** Guests without libvirt: real QEMU, emulated, with the lab's Linux in it. The guest is the witness of its disks. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createConnection } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type LabImage, labImage } from '../../src/vm/lab/lab-image.ts'
import { macAddressOf } from '../../src/vm/run/network.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { CAN_MAKE_NETWORKS, GuestNetwork } from './lab/guest-network.ts'
import { labKernel } from './lab/image.ts'
import { qpair } from './lab/qpair.ts'
import { greetScreen } from './lab/rfb.ts'
import { SerialShell } from './lab/serial-shell.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
const QPAIR = fileURLToPath(new URL('../../bin/qpair.js', import.meta.url))

interface Listed {
  readonly name: string
  readonly owner: string
  readonly state: string
  readonly pid: number
  readonly disks: readonly string[]
  readonly console: string
}

interface Run {
  readonly pid: number
  readonly console: string
  readonly nvram?: string
  readonly vnc?: { readonly address: string; readonly password?: string }
}

interface Inspection {
  readonly pid: number
  readonly threads: readonly { readonly role: string; readonly cpu: number }[]
  readonly disks: readonly { readonly disk: string; readonly served_by: string }[]
  readonly memory: { readonly resident: number }
}

const PROGRAMS = [
  ...(['qemu-system-x86_64', 'busybox', 'nvme', 'lspci', 'fdisk', 'xz', 'ip', 'bridge'] as const),
  '60-edk2-x86_64.json',
] as const

await describeWith(PROGRAMS, 'guests without libvirt', () => {
  let daemon: Daemon
  let network: GuestNetwork | undefined
  let sockets: string
  let image: LabImage
  let shell: SerialShell

  const file = (name: string): string => {
    const path = join(daemon.directory, name)
    writeFileSync(path, '')
    truncateSync(path, SIZE)
    return path
  }
  const bdev = async (name: string): Promise<string> => {
    await daemon.rpc('bdev_uring_create', { name, filename: file(`${name}.raw`), block_size: 512 })
    return name
  }
  const run = (name: string, disks: readonly string[], more: object = {}): Promise<Run> =>
    daemon.rpc('vm_run', {
      ...{ name, disks, memory: '256M', cpus: 2, accel: 'tcg', ...image, initrd: image.initrd },
      append:
        'console=ttyS0 quiet panic=-1 cryptomgr.notests LAB_DISKS=0 LAB_CONSOLE=ttyS0 LAB_ROWS=50 LAB_COLUMNS=250 LAB_HINT=x',
      ...more,
    })
  const list = (): Promise<Listed[]> => daemon.rpc('vm_list')
  /** Of the first guest; `no answer` while its QEMU has none, for which a busy machine is enough. */
  const state = async (): Promise<string | undefined> => (await list())[0]?.state
  const sizeOf = (disk: string): Promise<string> => shell.run(`cat /sys/block/${disk}/size 2>/dev/null`)
  const blocks = String(SIZE / 512)
  const served = async (): Promise<string[]> => [
    ...(await daemon.rpc<{ ctrlr: string }[]>('vhost_get_controllers')).map(({ ctrlr }) => ctrlr),
    ...(await daemon.rpc<{ name: string }[]>('nbd_export_list')).map(({ name }) => name),
  ]

  beforeAll(async () => {
    sockets = mkdtempSync(join(tmpdir(), 'qpair-vm-'))
    if (CAN_MAKE_NETWORKS) network = await GuestNetwork.create()
    daemon = await startDaemon({ args: ['-S', sockets], within: network?.within ?? [] })
    // Whoever knows a server of files has programs started by a process apart, QEMU too.
    const far = { type: 'netfs', source_host: '192.0.2.1', source_path: '/x', target: '/run/qpair-far' }
    await daemon.rpc('pool_define_as', { name: 'far', ...far })
    const directory = join(daemon.directory, 'image')
    mkdirSync(directory)
    image = await labImage({
      ...{ kernel: await labKernel(), isEmulated: true, directory, cache: directory },
      say: () => {},
    })
    const { console } = await run(
      'first',
      [await bdev('d0'), `${file('d1.raw')},bus=nvme`, `${file('d2.raw')},bus=scsi`],
      { network: network === undefined ? 'user' : 'bridge=br0', vnc: 'unix' },
    )
    shell = await SerialShell.open(console)
  })
  afterAll(async () => {
    shell?.close()
    if (daemon !== undefined) {
      for (const { name } of await list()) await daemon.rpc('vm_stop', { name, force: true })
      await daemon.stop()
    }
    rmSync(sockets, { recursive: true })
    await network?.remove()
  })

  it('run with their disks on each bus, and are listed', async () => {
    expect([await sizeOf('vda'), await sizeOf('nvme0n1'), await sizeOf('sda')]).toEqual([
      blocks,
      blocks,
      blocks,
    ])
    expect(await shell.run('/usr/sbin/nvme list')).toContain('first-nvme0')
    const [guest] = await list()
    expect(guest).toMatchObject({ name: 'first', owner: 'qpair', state: 'running', console_taken: true })
    expect(guest!.disks.map(disk => disk.split(' ')[0])).toEqual(['vda', 'nvme0', 'sda'])
    expect(readFileSync(`/proc/${guest!.pid}/comm`, 'utf8')).toMatch(/^qemu-system/)
    const [, parent] = /^PPid:\t(\d+)$/m.exec(readFileSync(`/proc/${guest!.pid}/status`, 'utf8'))!
    expect(readFileSync(`/proc/${parent}/cmdline`, 'utf8')).toContain('program-main.js')
    expect(JSON.parse(await qpair(daemon, 'vm', 'disks', 'first'))).toMatchObject([
      { type: 'vhostuser', target: 'vda', bus: 'virtio', bdev: 'd0' },
      { type: 'file', target: 'nvme0', bus: 'nvme' },
      { type: 'file', target: 'sda', bus: 'scsi' },
    ])
  })

  it.skipIf(!CAN_MAKE_NETWORKS)('are reached over a bridge (needs root)', async () => {
    await shell.run('ip addr add 10.77.0.10/24 dev eth0; ip link set eth0 up')
    await network!.ping('10.77.0.10')
  })

  it("have a screen on a socket, which the daemon's user sees", async () => {
    const vnc = join(daemon.state, 'guests/first/vnc')
    expect((await list())[0]).toMatchObject({ vnc })
    expect(await greetScreen(createConnection(vnc))).toEqual({ securityTypes: [1], desktop: 'QEMU (first)' })
  })

  it('get disks and lose them while they run, with what served those', async () => {
    await bdev('d3')
    for (const [bus, means, target, seen] of [
      ['virtio', 'vhost', 'vdb', 'vdb'],
      ['nvme', 'nbd', 'nvme1', 'nvme1n1'],
    ] as const) {
      const attached = await daemon.rpc('vm_attach', { domain: 'first', volume: 'd3', bus })
      expect(attached).toMatchObject({ target, means, live: true, config: false })
      await expect.poll(() => sizeOf(seen), { timeout: 60_000 }).toBe(blocks)
      expect(await served()).toContain(`first-${target}`)
      const detached = await daemon.rpc('vm_detach', { domain: 'first', disk: 'd3' })
      expect(detached).toMatchObject({ target, live: true })
      await expect.poll(() => sizeOf(seen), { timeout: 60_000 }).toBe('')
      expect(await served()).toEqual(['first-vda'])
    }
  })

  it('show their threads, disks and memory', async () => {
    const seen = await daemon.rpc<Inspection>('vm_inspect', { domain: 'first', interval: 0.1 })
    const roles = seen.threads.map(({ role }) => role)
    expect(roles.slice(0, 3)).toEqual(['main loop', 'vCPU 0', 'vCPU 1'])
    expect(seen.disks.map(({ disk, served_by }) => `${disk}: ${served_by}`).sort()).toEqual([
      'nvme0: main loop',
      'sda: main loop',
      'vda: qpair, bdev d0, over vhost-user',
    ])
    expect(seen.memory.resident).toBeGreaterThan(32 * MIB)
  })

  it('stand still and go on', async () => {
    await qpair(daemon, 'vm', 'suspend', 'first')
    await expect.poll(state, { timeout: 60_000 }).toBe('paused')
    await expect(daemon.rpc('vm_stop', { name: 'first' })).rejects.toThrow(
      /qpair vm resume first first, or --force/,
    )
    expect(await daemon.rpc('vm_resume', { name: 'first' })).toEqual({ name: 'first', state: 'running' })
    expect(await shell.run('echo on')).toBe('on')
  })

  it('are typed to from a terminal, which Ctrl-] gives back', async () => {
    const console = spawn(process.execPath, [QPAIR, '-r', daemon.socket, 'vm', 'console', 'first'])
    let text = ''
    console.stdout.setEncoding('utf8').on('data', piece => {
      text += String(piece)
    })
    // The port has one reader at a time.
    shell.close()
    console.stdin.write("echo hel''lo\n")
    await expect.poll(() => text, { timeout: 60_000 }).toContain('hello')
    console.stdin.write('\x1d')
    expect(await once(console, 'exit')).toEqual([0, null])
    await expect.poll(state, { timeout: 60_000 }).toBe('running')
  })

  it('outlive a daemon that is killed, and have their disks again', async () => {
    const [before] = await list()
    shell = await SerialShell.reopen(before!.console)
    await shell.run('dd if=/dev/urandom of=/tmp/written bs=64k count=16 2>/dev/null')
    await shell.run('dd if=/tmp/written of=/dev/vda bs=64k oflag=direct 2>/dev/null')
    await daemon.kill('SIGKILL')
    // Under way while nobody serves the disk.
    const reading = shell.run(
      'dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/written && echo same',
    )
    await daemon.start()
    expect(await reading).toBe('same')
    // Its monitor is asked anew, which takes a moment.
    await expect.poll(state, { timeout: 60_000 }).toBe('running')
    expect((await list())[0]).toMatchObject({ name: 'first', pid: before!.pid })
    await bdev('d4')
    await daemon.rpc('vm_attach', { domain: 'first', volume: 'd4' })
    await expect.poll(() => sizeOf('vdb'), { timeout: 60_000 }).toBe(blocks)
    await daemon.rpc('vm_detach', { domain: 'first', disk: 'vdb' })
  })

  it('are known again, and lose a half plugged disk, when the daemon was killed before all was written down', async () => {
    const [{ pid } = { pid: 0 }] = await list()
    await daemon.kill('SIGKILL')
    const path = join(daemon.state, 'guests/first/guest.json')
    const record = JSON.parse(readFileSync(path, 'utf8'))
    const half = { ...record.disks[1], target: 'nvme9', volume: 'half' }
    writeFileSync(
      path,
      JSON.stringify({ ...record, process: { pid: 0, startTicks: 0 }, disks: [...record.disks, half] }),
    )
    await daemon.start()
    await expect.poll(state, { timeout: 60_000 }).toBe('running')
    expect((await list())[0]).toMatchObject({ name: 'first', pid })
    expect(await daemon.rpc('vm_detach', { domain: 'first', disk: 'half' })).toMatchObject({
      target: 'nvme9',
    })
    expect((await list())[0]!.disks).toHaveLength(3)
  })

  it('have one writer, and one name each', async () => {
    await expect(run('second', ['d0'])).rejects.toThrow(
      /d0 is in use by vhost controller first-vda, and two writers would destroy it/,
    )
    await expect(run('second', [join(daemon.directory, 'd1.raw')])).rejects.toThrow(
      /two writers would destroy it/,
    )
    await expect(run('first', [])).rejects.toThrow('there is a guest first already')
  })

  it('that do not start leave nothing behind, and say why', async () => {
    await expect(run('second', ['d3'], { machine: 'pdp11' })).rejects.toThrow(
      /unsupported machine type.*-machine help/,
    )
    await expect(run('second', ['d3'], { network: 'bridge=nonesuch0' })).rejects.toThrow(
      'bridge: there is no interface nonesuch0',
    )
    await expect(run('second', ['d3', '/nonexistent.raw'])).rejects.toThrow(/nonexistent/)
    expect(await served()).toEqual(['first-vda'])
    expect(readdirSync(join(daemon.state, 'guests'))).toEqual(['first'])
    expect((await list()).map(({ name }) => name)).toEqual(['first'])
  })

  it('stop by their power button, and release what served their disks', async () => {
    const stopped = await daemon.rpc('vm_stop', { name: 'first', timeout: 40 })
    expect(stopped).toEqual({ name: 'first', how: 'powered down', released: ['vhost controller first-vda'] })
    expect(await list()).toEqual([])
    expect(await served()).toEqual([])
    expect(existsSync(join(daemon.state, 'guests/first'))).toBe(false)
  })

  it.skipIf(!CAN_MAKE_NETWORKS)(
    'have UEFI, whose variables stay, a screen with a password, macvtap and taps (needs root)',
    async () => {
      const interfaces = await network!.interfaces()
      const nvram = join(daemon.state, 'nvram/uefi.fd')
      const uefi = {
        kernel: undefined,
        initrd: undefined,
        append: undefined,
        firmware: 'uefi',
        memory: '128M',
      }
      const runs = (net: string): Promise<Run> => run('uefi', [], { ...uefi, network: net, vnc: 'auto' })
      // It has nothing to boot, and asks the network for something.
      const isHeardFrom = (port: string): Promise<void> =>
        expect.poll(() => network!.portOf(macAddressOf('uefi')), { timeout: 120_000 }).toBe(port)

      const { vnc, ...guest } = await runs('macvtap=near')
      expect(guest.nvram).toBe(nvram)
      const port = Number(/^127\.0\.0\.1:(59\d\d)$/.exec(vnc!.address)![1])
      expect(await greetScreen(network!.connect(port), vnc!.password)).toEqual({
        ...{ securityTypes: [2], desktop: 'QEMU (uefi)' },
      })
      expect((await greetScreen(network!.connect(port), 'wrong')).desktop).toBeUndefined()
      await isHeardFrom('far')
      await daemon.rpc('vm_stop', { name: 'uefi', force: true })
      expect(await network!.interfaces()).toEqual(interfaces)

      const written = statSync(nvram).ino
      await runs('tap=tap0')
      await isHeardFrom('tap0')
      await daemon.rpc('vm_stop', { name: 'uefi', force: true })
      expect(statSync(nvram).ino).toBe(written)
      expect(await network!.interfaces()).toEqual(interfaces)
    },
  )

  it('that ended while the daemon was away are found out at its start', async () => {
    const { pid } = await run('third', ['d0'])
    await daemon.kill('SIGKILL')
    process.kill(pid, 'SIGKILL')
    await daemon.start()
    await expect.poll(async () => [await list(), await served()], { timeout: 60_000 }).toEqual([[], []])
    expect(daemon.output).toContain(`guest third (process ${pid}) has ended while the daemon was away`)
    const { pid: again } = await run('third', ['d0'])
    process.kill(again, 'SIGKILL')
    await expect.poll(async () => [await list(), await served()], { timeout: 60_000 }).toEqual([[], []])
  })
})
