import { describe, expect, it } from 'vitest'
import type { Firmware } from '../../../src/vm/run/firmware.ts'
import { architecture, hasPorts, type MachineOptions, machineArguments } from '../../../src/vm/run/machine.ts'
import { startFailure } from '../../../src/vm/run/qemu-failure.ts'

const OPTIONS: MachineOptions = {
  ...{
    name: 'web',
    cpus: 2,
    memoryBytes: 1 << 30,
    hugePages: false,
    machine: 'q35',
    accel: 'kvm',
    version: [7, 2],
  },
  ...{ kernel: undefined, initrd: undefined, append: undefined, firmware: undefined, disks: [], network: [] },
  ...{ vnc: undefined, ports: 9, qmpPath: '/s/qmp', consolePath: '/s/console', needsHelper: false },
}

/** The values of an option, in order. */
const valuesOf = (args: readonly string[], option: string): string[] =>
  args.flatMap((arg, index) => (arg === option ? [args[index + 1]!] : []))

describe("a guest's command line", () => {
  const args = machineArguments(OPTIONS)

  it('has memory that vhost-user controllers can map', () => {
    expect(valuesOf(args, '-object')).toEqual(['memory-backend-memfd,id=memory,size=1024M,share=on'])
    expect(valuesOf(args, '-machine')).toEqual(['q35,memory-backend=memory'])
  })

  it('listens for the daemon and for a terminal, and waits for neither', () => {
    expect(valuesOf(args, '-chardev')).toEqual([
      'socket,id=qmp,path=/s/qmp,server=on,wait=off',
      'socket,id=console,path=/s/console,server=on,wait=off',
    ])
  })

  it('has eight ports a slot', () => {
    const ports = valuesOf(args, '-device').filter(device => device.startsWith('pcie-root-port'))
    expect(ports).toHaveLength(9)
    expect(ports[0]).toBe('pcie-root-port,id=port0,chassis=1,port=0,addr=0x10.0,multifunction=on')
    expect(ports[7]).toBe('pcie-root-port,id=port7,chassis=8,port=7,addr=0x10.7')
    expect(ports[8]).toBe('pcie-root-port,id=port8,chassis=9,port=8,addr=0x11.0,multifunction=on')
  })

  it('has none on the old machine, whose bus has slots', () => {
    expect(hasPorts('pc')).toBe(false)
    expect(machineArguments({ ...OPTIONS, machine: 'pc' }).join(' ')).not.toContain('pcie-root-port')
  })

  it('may start no other program, unless the network needs that', () => {
    expect(valuesOf(args, '-sandbox')[0]).toContain('spawn=deny')
    expect(machineArguments({ ...OPTIONS, needsHelper: true })).not.toContain('-sandbox')
  })

  it('emulates with a thread a processor', () => {
    const emulated = machineArguments({ ...OPTIONS, accel: 'tcg', hugePages: true, vnc: '127.0.0.1:3' })
    expect(valuesOf(emulated, '-accel')).toEqual(['tcg,thread=multi'])
    expect(valuesOf(emulated, '-cpu')).toEqual(['max'])
    expect(valuesOf(emulated, '-object')[0]).toContain(',hugetlb=on')
    expect(valuesOf(emulated, '-vnc')).toEqual(['127.0.0.1:3'])
  })

  it('has a firmware in two parts of flash memory, of which the guest may write one', () => {
    const firmware: Firmware = {
      ...{ kind: 'flash', needsSmm: true, code: { path: '/f/code.fd', format: 'qcow2' } },
      variables: { path: '/s/nvram/web.fd', format: 'raw', template: '/f/vars.fd' },
    }
    const flashed = machineArguments({ ...OPTIONS, firmware })
    expect(valuesOf(flashed, '-machine')).toEqual([
      'q35,memory-backend=memory,pflash0=firmware-code,pflash1=firmware-variables,smm=on',
    ])
    expect(valuesOf(flashed, '-blockdev').map(text => JSON.parse(text))).toEqual([
      {
        ...{ 'node-name': 'firmware-code', driver: 'qcow2', 'read-only': true },
        file: { driver: 'file', filename: '/f/code.fd' },
      },
      {
        ...{ 'node-name': 'firmware-variables', driver: 'raw', 'read-only': false },
        file: { driver: 'file', filename: '/s/nvram/web.fd' },
      },
    ])
    const open = machineArguments({ ...OPTIONS, firmware: { ...firmware, needsSmm: false } })
    expect(valuesOf(open, '-global')).toEqual([])
    const plain = machineArguments({ ...OPTIONS, firmware: { kind: 'bios', path: '/f/seabios.bin' } })
    expect(valuesOf(plain, '-bios')).toEqual(['/f/seabios.bin'])
  })

  it('is for the kind of this machine', () => {
    expect(architecture('arm64')).toEqual({ program: 'qemu-system-aarch64', machine: 'virt' })
    expect(() => architecture('mips')).toThrow('guests on mips are unknown here: x64 and arm64 are')
  })
})

// What QEMU 7.2 writes.
it.each([
  [
    'qemu-system-x86_64: -accel kvm: Could not access KVM kernel module: Permission denied\n' +
      'qemu-system-x86_64: -accel kvm: failed to initialize kvm: Permission denied\n',
    'EACCES',
    /usermod -aG kvm/,
  ],
  [
    'qemu-system-x86_64: -device {"driver":"nvme"}: Failed to get "write" lock\nIs another process using the image [/a]?\n',
    'EBUSY',
    /two writers would destroy it/,
  ],
  [
    "failed to parse default acl file `/etc/qemu/bridge.conf'\n" +
      'qemu-system-x86_64: -netdev bridge,id=net0,br=br0: bridge helper failed\n',
    'EPERM',
    /"allow BRIDGE" to \/etc\/qemu\/bridge.conf/,
  ],
  [
    'qemu-system-x86_64: -object memory-backend-memfd: cannot set up guest memory: Cannot allocate memory\n',
    'ENOMEM',
    /huge pages/,
  ],
  ["qemu-system-x86_64: -blockdev {}: Unknown driver 'rbd'\n", 'ENOTSUP', /qemu-block-extra/],
  [
    'error: failed to set MSR 0x10a to 0x69\n' +
      "qemu-system-x86_64: ../../target/i386/kvm/kvm.c:3183: kvm_buf_set_msrs: Assertion `ret == 1' failed.\n",
    'ENODEV',
    /--accel tcg/,
  ],
  ["Unknown driver 'rbd'.\n", 'ENOTSUP', /'rbd'\. QEMU has/],
  ['', 'EIO', /without a word/],
  ['something new\n', 'EIO', /has not started: something new$/],
] as const)('says why QEMU has not started: %s', (said, code, reason) => {
  const error = startFailure('web', said)
  expect(error.code).toBe(code)
  expect(error.message).toMatch(reason)
})
