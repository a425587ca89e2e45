/** The lab itself, on a real target that is not ours: so a failure elsewhere is not the lab's. */
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest, hostAddress } from './lab/guest.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.qpair:lab'

/** Linux's own NVMe/TCP target in the guest, over its loopback interface. */
const LINUX_TARGET = `
set -e
modprobe brd rd_nr=1 rd_size=327680
cd /sys/kernel/config/nvmet
mkdir subsystems/${NQN} subsystems/${NQN}/namespaces/1 ports/1
echo 1 >subsystems/${NQN}/attr_allow_any_host
echo /dev/ram0 >subsystems/${NQN}/namespaces/1/device_path
echo 1 >subsystems/${NQN}/namespaces/1/enable
echo tcp >ports/1/addr_trtype
echo ipv4 >ports/1/addr_adrfam
echo 127.0.0.1 >ports/1/addr_traddr
echo 4420 >ports/1/addr_trsvcid
ln -s /sys/kernel/config/nvmet/subsystems/${NQN} ports/1/subsystems/
`

await describeWith(GUEST_PROGRAMS, 'guest', () => {
  let guest: Guest

  beforeAll(async () => {
    guest = await bootGuest({
      nics: 2,
      // It has not a word to say by then, and is reset: all that follows holds after that, too.
      silenceMs: 1,
      modules: ['nvme-tcp', 'nvmet-tcp'],
      files: { '/opt/lab/greet': '#!/bin/sh\necho "hello $1"\n' },
    })
    await guest.run(LINUX_TARGET)
    await guest.run(`nvme connect -t tcp -a 127.0.0.1 -s 4420 -n ${NQN}`)
    await guest.waitFor('test -b /dev/nvme0n1')
  })
  afterAll(() => guest?.stop())

  it('keeps output, errors and exit code apart', async () => {
    const result = await guest.run('echo out; echo err >&2; exit 3', { check: false })
    expect(result).toEqual({ stdout: 'out\n', stderr: 'err\n', code: 3 })
  })

  it('fails a command with its output and the console of the guest', async () => {
    await expect(guest.run('echo reason >&2; false')).rejects.toThrow(/code 1\nreason[\s\S]*Run \/init/)
  })

  it('ends a command that takes too long', async () => {
    await expect(guest.run('sleep 1000', { timeoutMs: 200 })).rejects.toThrow('within 200 ms')
    await guest.waitFor('! pidof sleep')
  })

  it('carries a megabyte of output', async () => {
    const { stdout } = await guest.run('head -c 1048576 /dev/zero | tr "\\0" x')
    expect(stdout).toBe('x'.repeat(1 << 20))
  })

  it('has the files it was given', async () => {
    expect((await guest.run('/opt/lab/greet you')).stdout).toBe('hello you\n')
  })

  it('runs commands side by side and ends them with what they started', async () => {
    const job = guest.start('sleep 1000 & wait', { check: false })
    await guest.waitFor('pidof sleep')
    await job.kill()
    expect((await job.done).code).toBe(128 + 15)
    await guest.waitFor('! pidof sleep')
  })

  it('lists the disk of the Linux target with nvme-cli', async () => {
    const { stdout } = await guest.run('nvme list -o json')
    expect(JSON.parse(stdout).Devices).toMatchObject([
      { DevicePath: '/dev/nvme0n1', PhysicalSize: 320 << 20 },
    ])
  })

  it('verifies data on that disk with fio', async () => {
    const load = '--rw=randwrite --bs=4k --size=4m --ioengine=libaio --iodepth=8 --direct=1'
    const check = '--verify=crc32c --verify_fatal=1'
    await guest.run(`fio --name=verify --filename=/dev/nvme0n1 ${load} ${check}`)
  })

  it.each(['mkfs.ext4 -q', 'mkfs.xfs -q -f'])('makes and mounts a file system with %s', async mkfs => {
    await guest.run(`${mkfs} /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && echo kept >/mnt/file && umount /mnt`)
    expect((await guest.run('mount /dev/nvme0n1 /mnt && cat /mnt/file; umount /mnt')).stdout).toBe('kept\n')
  })

  it('loses packets silently on a network that is cut', async () => {
    const { port, received, close } = await listener()
    // Says one thing before the cut and one while it lasts; nc keeps the connection open.
    const talk = '(echo before; until [ -e /tmp/cut ]; do sleep 0.05; done; echo after; sleep 1000)'
    const job = guest.start(`${talk} | nc ${hostAddress(1)} ${port}`)
    await expect.poll(received).toBe('before\n')
    const hello = (nic: number): string => `nc ${hostAddress(nic)} ${port} </dev/null`

    await guest.setLink(1, false)
    await guest.run('touch /tmp/cut')
    const silence = { stdout: '', code: 128 + 15 }
    expect(await guest.run(`timeout 2 ${hello(1)}`, { check: false })).toMatchObject(silence)
    const greeted = guest.start(`exec ${hello(0)} >/tmp/hello`, { check: false })
    await guest.waitFor('[ "$(cat /tmp/hello)" = hello ]')
    await greeted.kill()
    expect(received()).toBe('before\n')
    expect((await guest.run('cat /sys/class/net/eth1/carrier')).stdout).toBe('1\n')

    await guest.setLink(1, true)
    await expect.poll(received, { timeout: 60_000 }).toBe('before\nafter\n')
    await job.kill()
    close()
  })

  it('comes back from a reset with nothing of before, and fails what was running', async () => {
    await guest.run('touch /root/before')
    const job = guest.start('sleep 1000')
    await guest.reset()
    await expect(job.done).rejects.toThrow('the guest was reset')
    expect((await guest.run('ls /root')).stdout).toBe('')
  })

  it('fails what was running when its kernel panics, with the last words of the kernel', async () => {
    await expect(guest.run('echo c >/proc/sysrq-trigger')).rejects.toThrow(/sysrq triggered crash/)
  })
})

await describeWith(GUEST_PROGRAMS, 'guest with shared memory', () => {
  it('boots, and leaves nothing behind when it is stopped', async () => {
    const guest = await bootGuest({ sharedMemory: true, memoryMiB: 256, cpus: 1, nics: 0 })
    expect(await guest.qmp.execute('query-memdev')).toMatchObject([{ id: 'memory', share: true }])
    await guest.stop()
    expect(() => process.kill(guest.pid, 0)).toThrow('ESRCH')
    await expect(guest.run('true')).rejects.toThrow('QEMU ended')
  })
})

/** A server on this machine that greets everyone and keeps what all connections have said. */
async function listener() {
  let text = ''
  const sockets = new Set<Socket>()
  const server = createServer(socket => {
    sockets.add(socket)
    socket.setEncoding('utf8').on('data', data => {
      text += data
    })
    socket.on('error', () => {})
    socket.write('hello\n')
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    received: () => text,
    close: () => {
      server.close()
      for (const socket of sockets) socket.destroy()
    },
  }
}
