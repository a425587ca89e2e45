/** A /proc of a QEMU under libvirt, as the kernel writes it. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { RpcError } from '../../../src/core/errors.ts'
import { inspect } from '../../../src/vm/inspect/inspect.ts'
import {
  cpuPercent,
  processOfUuid,
  readMemory,
  readThreads,
  roleOf,
} from '../../../src/vm/inspect/threads.ts'

const PID = 4711
let proc: string

beforeEach(() => {
  proc = mkdtempSync(join(tmpdir(), 'qpair-proc-'))
})
afterEach(() => rmSync(proc, { recursive: true }))

/** Members 1 to 17 of stat: utime is 14, stime 15. */
function thread(tid: number, comm: string, utime = 0, stime = 0): void {
  const directory = join(proc, String(PID), 'task', String(tid))
  mkdirSync(directory, { recursive: true })
  writeFileSync(
    join(directory, 'stat'),
    `${tid} (${comm}) S 1 4711 4711 0 -1 138412416 9 0 0 0 ${utime} ${stime} 0 0\n`,
  )
}

describe('a thread of QEMU', () => {
  const known = { pid: PID, vcpus: new Map([[4720, 3]]), iothreads: new Map([[4721, 'disks']]) }

  it.each([
    [PID, 'qemu-system-x86', 'main loop'],
    [4720, 'qemu-system-x86', 'vCPU 3'],
    [4721, 'qemu-system-x86', 'I/O thread disks'],
    [4712, 'CPU 0/KVM', 'vCPU 0'],
    [4713, 'CPU 11/TCG', 'vCPU 11'],
    [4714, 'IO mon_iothread', 'monitor'],
    [4715, 'IO iothread1', 'I/O thread iothread1'],
    [4716, 'SPICE Worker', 'SPICE'],
    [4717, 'vnc_worker', 'VNC'],
    [4718, 'worker', 'worker'],
    [4719, 'call_rcu', 'RCU'],
    [4722, 'iou-wrk-4711', 'io_uring'],
    [4723, 'vhost-4711', 'vhost in the kernel'],
    [4724, 'something', 'other'],
  ])('%i, which calls itself %s, is: %s', (tid, comm, role) => {
    expect(roleOf({ tid, comm }, known)).toBe(role)
  })

  it('is read whatever its name has in it', () => {
    thread(PID, 'a) S 1 (b', 150, 50)
    expect(readThreads(PID, proc)).toEqual([{ tid: PID, comm: 'a) S 1 (b', ticks: 200 }])
  })

  it('has used what lies between two readings, in hundredths of a second', () => {
    const before = [{ tid: 1, comm: 'x', ticks: 100 }]
    expect(cpuPercent(before, { tid: 1, comm: 'x', ticks: 150 }, 1000)).toBe(50)
    expect(cpuPercent(before, { tid: 1, comm: 'x', ticks: 350 }, 2500)).toBe(100)
    expect(cpuPercent(before, { tid: 2, comm: 'new', ticks: 999 }, 1000)).toBe(0)
  })
})

it('adds up the memory of a guest, reserved huge pages beside what counts as resident', () => {
  mkdirSync(join(proc, String(PID)))
  writeFileSync(
    join(proc, String(PID), 'smaps_rollup'),
    [
      '55d1a0000000-7ffd0a1ff000 ---p 00000000 00:00 0                          [rollup]',
      'Rss:              102400 kB',
      'Pss:               91200 kB',
      'AnonHugePages:     20480 kB',
      'ShmemPmdMapped:     4096 kB',
      'FilePmdMapped:         0 kB',
      'Shared_Hugetlb:        0 kB',
      'Private_Hugetlb:  1048576 kB',
      'Swap:                  8 kB',
      'Locked:              512 kB',
    ].join('\n'),
  )
  expect(readMemory(PID, proc)).toEqual({
    resident: (102400 + 1048576) * 1024,
    proportional: (91200 + 1048576) * 1024,
    transparentHuge: (20480 + 4096) * 1024,
    reservedHuge: 1048576 * 1024,
    locked: 512 * 1024,
    swapped: 8 * 1024,
  })
})

it("finds libvirt's QEMU by the UUID among its arguments", () => {
  for (const [pid, words] of [
    ['12', ['bash', '-c', 'grep c7a5fdbd']],
    ['4711', ['qemu-system-x86_64', '-uuid', 'c7a5fdbd-edaf-9455-926a-d65c16db1809', '-S']],
    ['self', ['qemu', '-uuid', 'other']],
  ] as const) {
    mkdirSync(join(proc, pid))
    writeFileSync(join(proc, pid, 'cmdline'), `${words.join('\0')}\0`)
  }
  expect(processOfUuid('c7a5fdbd-edaf-9455-926a-d65c16db1809', proc)).toBe(4711)
  expect(processOfUuid('00000000-edaf-9455-926a-d65c16db1809', proc)).toBeUndefined()
})

describe('a guest that is looked into', () => {
  /** Answers of QEMU 7.2, of which those members are kept that are looked at. */
  const ANSWERS: Readonly<Record<string, unknown>> = {
    'query-cpus-fast': [{ 'cpu-index': 0, 'thread-id': 4712 }],
    'query-iothreads': [{ id: 'io1', 'thread-id': 4713 }],
    'query-block': [
      {
        device: '',
        qdev: '/machine/peripheral/virtio-disk0/virtio-backend',
        inserted: { file: '/srv/a.raw' },
      },
      { device: '', qdev: 'scsi0-0-0-0', inserted: { file: '/srv/b.raw' } },
      { device: 'nvme0', qdev: '/machine/peripheral-anon/device[3]', inserted: { file: '/srv/c.raw' } },
      { device: 'cd0', qdev: '/machine/peripheral/cd' },
    ],
    'qom-get /machine/peripheral/virtio-disk0/virtio-backend iothread': '/objects/io1',
    'qom-get /machine/peripheral/scsi0-0-0-0 parent_bus': '/machine/peripheral/scsi0/virtio-backend/scsi0.0',
    'qom-get /machine/peripheral/scsi0/virtio-backend iothread': '/objects/io1',
  }
  const monitor = async (command: string, { path, property }: Record<string, unknown>): Promise<unknown> => {
    const key = command === 'qom-get' ? `qom-get ${path} ${property}` : command
    if (!(key in ANSWERS)) throw new RpcError('EIO', `QEMU's ${command}: Property not found`)
    return ANSWERS[key]
  }

  it('shows its threads in order of their roles, and who serves each disk', async () => {
    thread(4713, 'IO io1')
    thread(4714, 'worker')
    thread(4712, 'CPU 0/KVM')
    thread(PID, 'qemu-system-x86')
    writeFileSync(join(proc, String(PID), 'smaps_rollup'), 'Rss: 4 kB\n')
    const vhostDisks = [
      { target: 'vdb', source: '/run/s', bdev: 'disk0' },
      { target: 'vdc', source: '/run/t', bdev: undefined },
    ]
    const seen = await inspect({ name: 'web', pid: PID, monitor, vhostDisks }, { intervalMs: 1, proc })
    expect(seen.threads.map(({ role }) => role)).toEqual(['main loop', 'vCPU 0', 'I/O thread io1', 'worker'])
    expect(seen.disks).toEqual([
      { disk: 'virtio-disk0', source: '/srv/a.raw', servedBy: 'I/O thread io1' },
      { disk: 'scsi0-0-0-0', source: '/srv/b.raw', servedBy: 'I/O thread io1' },
      { disk: 'device[3]', source: '/srv/c.raw', servedBy: 'main loop' },
      { disk: 'cd', source: 'empty', servedBy: 'main loop' },
      { disk: 'vdb', source: '/run/s', servedBy: 'qpair, bdev disk0, over vhost-user' },
      { disk: 'vdc', source: '/run/t', servedBy: 'another process, over vhost-user' },
    ])
    expect(seen.memory?.resident).toBe(4096)
  })

  it('that has ended meanwhile is said so', async () => {
    const looking = inspect({ name: 'web', pid: PID, monitor, vhostDisks: [] }, { intervalMs: 1, proc })
    await expect(looking).rejects.toThrow('guest web has ended while it was looked at')
  })
})
