import { describe, expect, it } from 'vitest'
import * as daemon from '../../src/host/checks/daemon.ts'
import * as guests from '../../src/host/checks/guests.ts'
import * as kvm from '../../src/host/checks/kvm.ts'
import * as nvmeHost from '../../src/host/checks/nvme-host.ts'
import { type Check, type Finding, renderFindings } from '../../src/host/finding.ts'
import type { Host } from '../../src/host/host.ts'
import { machine } from './machine.ts'

const look = async (check: Check, host: Host): Promise<Finding> => check(host)
const cpu = (flags: string): Record<string, string> => ({
  '/proc/cpuinfo': `processor: 0\nflags\t\t: fpu ${flags}\n`,
})

describe('hardware virtualisation', () => {
  it.each([
    ['vmx', 'pass', 'the processor has vmx'],
    ['svm', 'pass', 'the processor has svm'],
    ['sse2', 'fail', 'no vmx or svm'],
  ])('with the flag %s is %s', async (flag, level, found) => {
    expect(await look(kvm.hardwareVirtualization, machine(cpu(flag)))).toMatchObject({
      level,
      found: expect.stringContaining(found),
    })
  })

  it('sends those in a virtual machine to its host, others to the firmware', async () => {
    const nested = await look(kvm.hardwareVirtualization, machine(cpu('hypervisor')))
    expect(nested.remedy).toContain('nested=1')
    expect((await look(kvm.hardwareVirtualization, machine(cpu('')))).remedy).toContain('firmware')
  })

  it('is left to /dev/kvm where the processor has no flag', async () => {
    expect((await look(kvm.hardwareVirtualization, machine({}, { arch: 'arm64' }))).level).toBe('note')
  })
})

describe('/dev/kvm', () => {
  it('names the module of this processor when it is missing', async () => {
    expect(await look(kvm.kvmDevice, machine(cpu('svm')))).toMatchObject({
      level: 'fail',
      remedy: expect.stringContaining('modprobe kvm_amd'),
    })
  })

  it('fails when it is there and makes no virtual machine', async () => {
    const host = machine({ '/dev/kvm': 'no device' })
    expect((await look(kvm.kvmDevice, host)).level).toBe('pass')
    expect((await look(kvm.kvmAccess, host)).level).toBe('pass')
    expect(await look(kvm.kvmWorks, host)).toMatchObject({
      level: 'fail',
      found: expect.stringContaining('ENOTTY'),
    })
  })
})

describe('control groups', () => {
  const version2 = { '/sys/fs/cgroup/cgroup.controllers': 'cpuset cpu io memory pids\n' }
  const version1 = { '/proc/self/cgroup': '4:memory:/\n2:cpu,cpuacct:/\n0::/\n' }

  it('of version 2 have io for blkio, and need no controller for devices and processor time', async () => {
    for (const name of guests.CGROUP_CONTROLLERS) {
      expect((await look(guests.cgroupController(name), machine(version2))).found).toBe('version 2')
    }
  })

  it('of version 1 count when they are mounted', async () => {
    const levels = await Promise.all(
      guests.CGROUP_CONTROLLERS.map(
        async name => (await look(guests.cgroupController(name), machine(version1))).level,
      ),
    )
    expect(levels).toEqual(['pass', 'pass', 'pass', 'warn', 'warn', 'warn'])
  })

  it('name the one that is missing', async () => {
    const host = machine({ '/sys/fs/cgroup/cgroup.controllers': 'cpu' })
    expect(await look(guests.cgroupController('blkio'), host)).toMatchObject({
      level: 'warn',
      remedy: expect.stringContaining('controller io'),
    })
  })
})

describe('the IOMMU', () => {
  it('is on when the kernel has groups', async () => {
    const host = machine({ '/sys/kernel/iommu_groups/0/': '', '/sys/kernel/iommu_groups/1/': '' })
    expect(await look(guests.iommu, host)).toMatchObject({ level: 'pass', found: 'on, 2 groups of devices' })
  })

  it.each([
    ['DMAR', 'intel_iommu=on'],
    ['IVRS', 'amd_iommu=on'],
  ])('of table %s is switched on by %s', async (table, remedy) => {
    const host = machine({ [`/sys/firmware/acpi/tables/${table}`]: '' })
    expect(await look(guests.iommu, host)).toMatchObject({
      level: 'warn',
      remedy: expect.stringContaining(remedy),
    })
  })
})

describe('devices for networks', () => {
  it('name the module when the kernel has it, and the package when not', async () => {
    const modules = { '/lib/modules/6.1.0/modules.dep': 'kernel/drivers/net/tun.ko.xz:\n' }
    expect((await look(guests.tun, machine(modules))).remedy).toContain('modprobe tun')
    expect((await look(guests.vhostNet, machine(modules))).remedy).toContain('linux-modules-extra')
    expect((await look(guests.tun, machine({ '/dev/net/tun': '' }))).level).toBe('pass')
  })
})

describe('programs', () => {
  const script = (said: string): Record<string, string> => ({
    '/usr/bin/qemu-system-x86_64': `#!/bin/sh\n${said}\n`,
  })

  it('tell their version', async () => {
    const host = machine(script('echo "QEMU emulator version 7.2.9 (Debian 1:7.2)"'))
    expect(await look(guests.qemu, host)).toMatchObject({
      level: 'pass',
      found: '/usr/bin/qemu-system-x86_64 7.2',
    })
  })

  it('are called old when they are', async () => {
    expect((await look(guests.qemu, machine(script('echo "QEMU emulator version 4.2.1"')))).level).toBe(
      'warn',
    )
  })

  it('that cannot run are broken', async () => {
    const finding = await look(guests.qemu, machine(script('echo "no libfoo.so" >&2; exit 127')))
    expect(finding).toMatchObject({ level: 'fail', found: expect.stringContaining('no libfoo.so') })
  })

  it('that are missing have a package', async () => {
    expect((await look(guests.qemu, machine({}))).remedy).toContain('apt-get install qemu-system-x86')
    expect((await look(guests.libvirt, machine({}))).remedy).toContain('libvirt-daemon-system')
  })

  it('count as running by their socket', async () => {
    expect((await look(guests.libvirt, machine({ '/run/libvirt/libvirt-sock': '' }))).level).toBe('pass')
    expect((await look(guests.libvirt, machine({ '/usr/bin/virsh': '' }))).found).toBe('not running')
  })
})

describe('other findings', () => {
  it('tell who confines guests', async () => {
    const apparmor = machine({ '/sys/module/apparmor/parameters/enabled': 'Y\n' })
    expect((await look(guests.confinement, apparmor)).found).toBe('AppArmor')
    const selinux = machine({ '/sys/fs/selinux/enforce': '1' })
    expect((await look(guests.confinement, selinux)).found).toBe('SELinux, enforcing')
    expect((await look(guests.confinement, machine({}))).level).toBe('note')
  })

  it('tell of guests with secret memory, and how to switch them on', async () => {
    const on = machine({ '/sys/module/kvm_amd/parameters/sev': 'Y' })
    expect((await look(kvm.secureGuests, on)).found).toBe('AMD SEV')
    expect((await look(kvm.secureGuests, machine(cpu('sev')))).remedy).toContain('kvm_amd.sev=1')
  })

  it('refuse a kernel that is too old', () => {
    expect(daemon.kernel(machine({}, { kernelRelease: '5.10.0' }))).toMatchObject({ level: 'fail' })
    expect(daemon.kernel(machine({}))).toMatchObject({ level: 'pass' })
  })

  it('read limits', () => {
    const limits = {
      '/proc/self/limits':
        'Limit  Soft  Hard  Units\nMax open files            1024                 4096                 files\n',
    }
    expect(daemon.openFiles(machine(limits))).toMatchObject({
      level: 'warn',
      found: expect.stringContaining('1024'),
    })
  })

  it('find the kernel’s NVMe host', async () => {
    expect((await look(nvmeHost.nvmeModule, machine({ '/sys/module/nvme_tcp/': '' }))).level).toBe('pass')
    const off = machine({ '/sys/module/nvme_core/parameters/multipath': 'N' })
    expect(await look(nvmeHost.nativeMultipath, off)).toMatchObject({ level: 'warn' })
  })
})

describe('renderFindings', () => {
  it('has a line for each, its remedy below', () => {
    const findings: Finding[] = [
      { check: 'a', level: 'pass', found: 'fine' },
      { check: 'b', level: 'fail', found: 'broken', remedy: 'mend it' },
    ]
    expect(renderFindings(findings, { isTerminal: false })).toBe(
      `PASS  ${'a'.padEnd(24)}  fine\nFAIL  ${'b'.padEnd(24)}  broken\n${' '.repeat(32)}-> mend it\n`,
    )
  })
})
