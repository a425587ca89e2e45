/** nvme-cli and the block layer of Linux against a daemon as `qpair serve --disk` starts it: what each command answers. */

import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, expect, it, vi } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { Gateway, listenAddress } from './lab/gateway.ts'
import { bootGuest, type Guest, hostAddress } from './lab/guest.ts'
import { eventually, LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2026-11.io.qpair:disk0'
const DISCOVERY = 'nqn.2014-08.org.nvmexpress.discovery'
const MIB = 1 << 20
const SIZE = 64 * MIB
/** Namespace 1 has blocks of 512 bytes, namespace 2 of 4096. */
const BLOCK_SIZES = [512, 4096]

/** A port that is free now: the command line wants a number. */
async function freePort(): Promise<string> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return String(port)
}

await describeWith(GUEST_PROGRAMS, 'nvme-cli and a disk served by one command', () => {
  const directory = mkdtempSync(join(tmpdir(), 'qpair-disk-'))
  let daemon: Daemon
  let gateway: Gateway
  let guest: Guest
  let host: LinuxHost
  let port: string
  /** The very line that the daemon prints. */
  let line: string

  beforeAll(async () => {
    port = await freePort()
    const disk = ['--disk', join(directory, 'disk.img'), '--size', '64M', '--listen', `127.0.0.1:${port}`]
    daemon = await startDaemon({ args: [...disk, '--reactors', '2'] })
    gateway = new Gateway(daemon)
    line = await vi.waitUntil(() => daemon.output.match(/nvme connect.*/)?.[0], { timeout: 60_000 })
    await daemon.rpc('bdev_malloc_create', { name: 'big', block_size: 4096, num_blocks: SIZE / 4096 })
    await gateway.addNamespace(NQN, 'big')
    guest = await bootGuest({ modules: ['nvme-tcp'] })
    host = new LinuxHost(guest)
  })
  afterAll(async () => {
    await guest?.stop()
    await daemon?.stop()
    rmSync(directory, { recursive: true })
  })

  async function connect(options = ''): Promise<void> {
    await guest.run(`${line.replace('127.0.0.1', hostAddress())} ${options}`)
    await guest.waitFor('test -b /dev/nvme0n1 && test -b /dev/nvme0n2')
  }
  afterEach(async () => {
    expect(await host.ioErrors()).toBe('')
    await host.disconnectAll()
    await eventually(() => gateway.queues()).toBe(0)
  })

  it('connects by the line that the daemon prints, and lists both namespaces', async () => {
    await connect()
    const { Devices } = await host.json<{ Devices: { NameSpace: number }[] }>('list')
    expect(Devices.sort((a, b) => a.NameSpace - b.NameSpace)).toMatchObject([
      { DevicePath: '/dev/nvme0n1', SerialNumber: 'QPAIR0', PhysicalSize: SIZE, SectorSize: 512 },
      { DevicePath: '/dev/nvme0n2', SerialNumber: 'QPAIR0', PhysicalSize: SIZE, SectorSize: 4096 },
    ])
    const [{ Subsystems }] = await host.json<[{ Subsystems: object[] }]>('list-subsys')
    expect(Subsystems).toMatchObject([{ NQN, Paths: [{ Name: 'nvme0', Transport: 'tcp', State: 'live' }] }])
    const { stdout } = await guest.run(`nvme disconnect -n ${NQN}`)
    expect(stdout).toContain('disconnected 1 controller(s)')
  })

  it.each([1, 2])('describes namespace %i by the identifiers of its device', async nsid => {
    await connect()
    const [subsystem] = await daemon.rpc<{ namespaces: { uuid: string; nguid: string }[] }[]>(
      'nvmf_get_subsystems',
      { nqn: NQN },
    )
    const { uuid, nguid } = subsystem!.namespaces[nsid - 1]!
    const descriptors = (await host.text(`nvme ns-descs /dev/nvme0n${nsid}`)).toLowerCase()
    expect(descriptors).toContain(uuid)
    expect(descriptors).toContain(nguid.toLowerCase())
    const { nsze, nuse } = await host.json<{ nsze: number; nuse: number }>(`id-ns /dev/nvme0n${nsid}`)
    expect(nsze).toBe(SIZE / BLOCK_SIZES[nsid - 1]!)
    expect(nuse).toBeLessThanOrEqual(nsze)
  })

  it('shows registers, resets and is scanned again', async () => {
    await connect()
    const registers = await host.json<Record<string, number>>('show-regs /dev/nvme0')
    // Enabled and ready, no error, at least version 1.3.
    expect(registers['cc']! & 1).toBe(1)
    expect(registers['csts']).toBe(1)
    expect(registers['vs']).toBeGreaterThanOrEqual(0x1_0300)
    await guest.run('nvme reset /dev/nvme0')
    await host.waitForText('/sys/class/nvme/nvme0/state', 'live')
    await guest.run('nvme ns-rescan /dev/nvme0')
    await guest.run('dd if=/dev/nvme0n1 of=/dev/null bs=1M count=1 iflag=direct')
    await eventually(() => gateway.queues()).toBe(3)
  })

  it.each([
    ['error-log', 0],
    ['smart-log', 0],
    ['fw-log', 0],
    ['ana-log', 0],
    ['effects-log', 0],
    ['get-feature -f 7', 0],
    ['get-feature -f 0xb', 0],
    ['get-feature -f 0xf', 0],
    // A feature that no specification has: Invalid Field in Command, with Do Not Retry.
    ['get-feature -f 0xbe', 1],
    ['get-log --log-id=0x7f --log-len=512', 1],
  ])('answers %s with exit code %i', async (command, code) => {
    await connect()
    expect(await guest.run(`nvme ${command} /dev/nvme0`, { check: false })).toMatchObject({ code })
  })

  it('writes, reads, compares, flushes and zeroes single blocks', async () => {
    await connect()
    for (const [index, blockSize] of BLOCK_SIZES.entries()) {
      const device = `/dev/nvme0n${index + 1}`
      const range = `--start-block=40 --block-count=7 --data-size=${8 * blockSize}`
      await guest.run(`head -c ${8 * blockSize} /dev/urandom >/tmp/data`)
      await guest.run(`nvme write ${device} ${range} --data=/tmp/data`)
      await guest.run(`nvme flush ${device}`)
      await guest.run(`nvme read ${device} ${range} --data=/tmp/back && cmp /tmp/data /tmp/back`)
      await guest.run(`nvme compare ${device} ${range} --data=/tmp/data`)
      await guest.run(`nvme write-zeroes ${device} --start-block=42 --block-count=1`)
      const differs = await guest.run(`nvme compare ${device} ${range} --data=/tmp/data`, { check: false })
      expect(differs.stdout + differs.stderr).toMatch(/compare/i)
      expect(differs.code).not.toBe(0)
      await guest.run(`nvme dsm ${device} --ad --slbs=40 --blocks=8`)
      const past = `--start-block=${SIZE / blockSize} --block-count=0 --data-size=${blockSize}`
      const refused = await guest.run(`nvme read ${device} ${past}`, { check: false })
      expect(refused.stdout + refused.stderr).toMatch(/LBA/)
    }
    await host.clearKernelLog()
  })

  it('answers whatever operation code it is sent, and stays connected', async () => {
    await connect()
    await host.clearKernelLog()
    // Bits 0 and 1 say which way data goes (both ways is not possible here). Left out: an event request (0c), which waits for an event, Keep Alive
    // (18), and fabrics commands (7f), which are the host's own.
    const send = `
      for opcode in $(seq 0 33) $(seq 124 136) $(seq 191 194) 255; do
        case $1-$opcode in admin-12|admin-24|*-127) continue;; esac
        case $((opcode & 3)) in
          0|3) data=;;
          1) data="--write --data-len=4096 --input-file=/dev/zero";;
          2) data="--read --data-len=4096";;
        esac
        nvme $1-passthru $2 --opcode=$opcode --namespace-id=1 --timeout=20000 $data $3 >/tmp/out 2>&1
        grep -qE "NVMe status|is Success" /tmp/out || echo "$1 opcode $opcode: $(cat /tmp/out)"
        grep -qE "NVMe status.*(Abort|Path)" /tmp/out && echo "$1 opcode $opcode: $(cat /tmp/out)"
      done; true`
    await guest.run(`cat >/tmp/send <<'END'\n${send}\nEND`)
    for (const fields of ['', '"--cdw10=0xffffffff --cdw11=0xffffffff --cdw12=0xffffffff"']) {
      for (const [kind, device] of [
        ['admin', '/dev/nvme0'],
        ['io', '/dev/nvme0n1'],
      ]) {
        expect(await host.text(`sh /tmp/send ${kind} ${device} ${fields}`)).toBe('')
      }
    }
    expect(await host.text("dmesg | grep -iE 'timeout|reconnect|reset' || true")).toBe('')
    await guest.run('dd if=/dev/nvme0n1 of=/dev/null bs=1M count=1 iflag=direct')
    await host.clearKernelLog()
  })

  it('is told that a device may only be read', async () => {
    const filename = join(directory, 'readonly.img')
    writeFileSync(filename, Buffer.alloc(MIB, 0x5a))
    await daemon.rpc('bdev_aio_create', { name: 'readonly', filename, block_size: 512, readonly: true })
    const nsid = await gateway.addNamespace(NQN, 'readonly')
    await connect()
    const device = `/dev/nvme0n${nsid}`
    await guest.waitFor(`test -b ${device}`)
    expect(await host.text(`cat /sys/block/nvme0n${nsid}/ro`)).toBe('1')
    expect(
      await guest.run(`dd if=/dev/zero of=${device} bs=512 count=1`, { check: false }),
    ).not.toMatchObject({
      code: 0,
    })
    const write = `nvme write ${device} --start-block=0 --block-count=0 --data-size=512 --data=/dev/zero`
    const { code, stdout, stderr } = await guest.run(write, { check: false })
    expect(code, stdout + stderr).not.toBe(0)
    expect(await host.text(`head -c ${MIB} ${device} | tr -d Z | wc -c`)).toBe('0')
    await gateway.daemon.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid })
    await gateway.daemon.rpc('bdev_aio_delete', { name: 'readonly' })
    await host.clearKernelLog()
  })

  it('discards and zeroes whole devices', async () => {
    await connect()
    for (const nsid of [1, 2]) {
      const device = `/dev/nvme0n${nsid}`
      const isZero = `[ "$(cmp -n ${SIZE} ${device} /dev/zero 2>&1)" = "" ]`
      await guest.run(`dd if=/dev/urandom of=${device} bs=1M count=8 oflag=direct`)
      await guest.run(`blkdiscard ${device}`)
      await guest.run(`dd if=/dev/urandom of=${device} bs=1M count=8 oflag=direct`)
      await guest.run(`blkdiscard --zeroout ${device} && echo 1 >/proc/sys/vm/drop_caches`)
      await guest.run(isZero)
    }
  })

  it.each([
    ['', 2, 128],
    ['--nr-io-queues=1 --queue-size=16', 1, 16],
    ['--hdr-digest --data-digest', 2, 128],
    ['--hdr-digest --nr-write-queues=2 --queue-size=32', 4, 32],
    ['--data-digest --nr-poll-queues=1', 3, 128],
  ])('verifies data over a connection with [%s]', async (options, queues, queueSize) => {
    await connect(options)
    expect(await gateway.queues()).toBe(queues + 1)
    expect(await host.text('cat /sys/class/nvme/nvme0/queue_count')).toBe(String(queues + 1))
    expect(Number(await host.text('cat /sys/class/nvme/nvme0/sqsize'))).toBe(queueSize - 1)
    const check = '--verify=crc32c --verify_fatal=1 --verify_state_save=0'
    const load = '--rw=randwrite --bsrange=4k-256k --size=16m --iodepth=32 --ioengine=libaio --direct=1'
    await guest.run(`fio --name=small --filename=/dev/nvme0n1 ${load} ${check}`)
    await guest.run(`fio --name=big --filename=/dev/nvme0n2 ${load} ${check}`)
  })

  it('spreads the queues of a host over its reactors', async () => {
    await connect()
    const { poll_groups } = await daemon.rpc<{ poll_groups: { current_io_qpairs: number }[] }>(
      'nvmf_get_stats',
    )
    expect(poll_groups.map(({ current_io_qpairs }) => current_io_qpairs)).toEqual([1, 1])
  })

  it('tells why it refuses: a host that is not allowed, a name that is not there', async () => {
    const attempt = async (nqn: string): Promise<string> => {
      const result = await guest.run(`nvme connect -t tcp -a ${hostAddress()} -s ${port} -n ${nqn}`, {
        check: false,
      })
      expect(result.code).not.toBe(0)
      return result.stderr
    }
    const kernelLog = (): Promise<string> => host.text('dmesg')
    await host.clearKernelLog()
    await attempt(`${NQN}-missing`)
    expect(await kernelLog()).toMatch(/Connect Invalid Data Parameter, subsysnqn/i)

    await host.clearKernelLog()
    await daemon.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: false })
    await attempt(NQN)
    expect(await kernelLog()).toMatch(/Connect for subsystem .* is not allowed, hostnqn: nqn\.2014-08/)
    const hostnqn = await host.text('cat /etc/nvme/hostnqn')
    await daemon.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: hostnqn })
    await connect()
    await daemon.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: true })
    await daemon.rpc('nvmf_subsystem_remove_host', { nqn: NQN, host: hostnqn })
    expect(await host.text('cat /sys/class/nvme/nvme0/state')).toBe('live')
  })

  it('gets its disk back when the same command line is started on its state again', async () => {
    await connect('-l -1 -c 1')
    await guest.run('head -c 4096 /dev/urandom >/tmp/kept && dd if=/tmp/kept of=/dev/nvme0n1 oflag=direct')
    for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
      await daemon.restart(signal)
      await host.waitForText('/sys/class/nvme/nvme0/state', 'live')
      await vi.waitUntil(() => daemon.output.includes(line), { timeout: 60_000 })
      await guest.run('dd if=/dev/nvme0n1 bs=4096 count=1 iflag=direct | cmp - /tmp/kept')
    }
  })

  it('hears from a persistent discovery controller that the log has changed', async () => {
    // The kernel passes the event on as a uevent; 70 is the discovery log, f0 its notice.
    const script = '[ -n "$NVME_AEN" ] && echo "$NVME_AEN" >>/tmp/events'
    await guest.run(
      `printf '#!/bin/sh\\n%s\\n' '${script}' >/tmp/hear && chmod +x /tmp/hear && : >/tmp/events`,
    )
    const listener = guest.start('exec uevent /tmp/hear', { check: false })
    // It listens: a socket of a process, for events of kernel objects (protocol 15).
    await guest.waitFor("awk '$2 == 15 && $3 > 0 { found = 1 } END { exit !found }' /proc/net/netlink")
    await guest.run(`nvme connect -t tcp -a ${hostAddress()} -s ${port} -n ${DISCOVERY} -k 30`)
    await host.waitForText('/sys/class/nvme/nvme0/state', 'live')
    await daemon.rpc('nvmf_create_subsystem', { nqn: `${NQN}-late`, allow_any_host: true })
    await daemon.rpc('nvmf_subsystem_add_listener', {
      nqn: `${NQN}-late`,
      listen_address: listenAddress(port),
    })
    await guest.waitFor('grep -q 0x70f002 /tmp/events')
    const { records } = await host.json<{ records: { subnqn: string }[] }>('discover -d nvme0')
    expect(records.map(({ subnqn }) => subnqn)).toContain(`${NQN}-late`)
    await daemon.rpc('nvmf_delete_subsystem', { nqn: `${NQN}-late` })
    await listener.kill()
  })
})
