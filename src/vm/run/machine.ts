/** The command line of QEMU for a guest of ours. */
import { RpcError } from '../../core/errors.ts'
import { optionText } from '../../libvirt/disk-xml.ts'
import type { Firmware, FlashFile } from './firmware.ts'
import { type DiskObjects, diskArguments, SCSI_CONTROLLER, type Version } from './guest-disk.ts'

export type Accel = 'kvm' | 'tcg'

export interface MachineOptions {
  readonly name: string
  readonly cpus: number
  readonly memoryBytes: number
  /** Huge pages, which the host must have reserved. */
  readonly hugePages: boolean
  /** As QEMU names it: `q35`, `pc`. */
  readonly machine: string
  readonly accel: Accel
  readonly version: Version
  /** Linux, without a firmware's search for something to boot. */
  readonly kernel: string | undefined
  readonly initrd: string | undefined
  readonly append: string | undefined
  /** Instead of QEMU's own. */
  readonly firmware: Firmware | undefined
  readonly disks: readonly DiskObjects[]
  /** Of the network: see `openNet`. */
  readonly network: readonly string[]
  /** The value of -vnc; undefined for no screen. */
  readonly vnc: string | undefined
  /** Ports for disks, those that are there at the start among them. */
  readonly ports: number
  /** Sockets where QEMU listens. */
  readonly qmpPath: string
  readonly consolePath: string
  /** QEMU starts a program of its own for the network, which its sandbox would forbid. */
  readonly needsHelper: boolean
}

/** The program for guests of the machine's own kind, and where disks are plugged in. */
const ARCHITECTURES: Readonly<Record<string, { readonly program: string; readonly machine: string }>> = {
  x64: { program: 'qemu-system-x86_64', machine: 'q35' },
  arm64: { program: 'qemu-system-aarch64', machine: 'virt' },
}

export function architecture(arch: string = process.arch): {
  readonly program: string
  readonly machine: string
} {
  const found = ARCHITECTURES[arch]
  if (found !== undefined) return found
  throw new RpcError(
    'ENOTSUP',
    `guests on ${arch} are unknown here: ${Object.keys(ARCHITECTURES).join(' and ')} are`,
  )
}

/** PCI Express takes one device a port; the bus of the old `pc` has slots for all. */
export const hasPorts = (machine: string): boolean => !/^(pc|pc-i440fx.*|isapc|microvm)$/.test(machine)

/** Eight ports a slot, from this one on: far from where QEMU puts what has no address. */
const PORT_SLOT = 0x10
const MEMORY = 'memory'

export const portName = (index: number): string => `port${index}`

/** How the argument of the monitor's socket begins: it is in no other QEMU's. */
export const qmpOption = (path: string): string => `socket,${optionText({ id: 'qmp', path })}`

export function machineArguments(options: MachineOptions): string[] {
  const { name, cpus, memoryBytes, machine, accel, version } = options
  const megabytes = `${Math.ceil(memoryBytes / 2 ** 20)}M`
  return [
    ...['-name', optionText({ guest: name, 'debug-threads': 'on' })],
    ...['-no-user-config', '-nodefaults'],
    ...['-machine', `${machine},memory-backend=${MEMORY}${flashMachine(options.firmware)}`],
    ...['-accel', accel === 'tcg' ? 'tcg,thread=multi' : 'kvm', '-cpu', accel === 'tcg' ? 'max' : 'host'],
    ...['-smp', String(cpus), '-m', megabytes],
    // Shared, because vhost-user controllers map it.
    ...[
      '-object',
      `memory-backend-memfd,id=${MEMORY},size=${megabytes},share=on${options.hugePages ? ',hugetlb=on' : ''}`,
    ],
    ...bootArguments(options),
    ...firmwareArguments(options.firmware),
    ...displayArguments(options),
    ...['-chardev', `${qmpOption(options.qmpPath)},server=on,wait=off`],
    ...['-mon', 'chardev=qmp,mode=control'],
    ...[
      '-chardev',
      `socket,${optionText({ id: 'console', path: options.consolePath, server: 'on', wait: 'off' })}`,
    ],
    ...['-serial', 'chardev:console'],
    ...(hasPorts(machine) ? portArguments(options.ports) : []),
    ...['-device', `virtio-scsi-pci,id=${SCSI_CONTROLLER}`],
    ...options.disks.flatMap(disk => diskArguments(disk, version)),
    ...options.network,
    ...(options.needsHelper
      ? []
      : ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny']),
  ]
}

function bootArguments({ kernel, initrd, append }: MachineOptions): string[] {
  return [
    ...(kernel === undefined ? [] : ['-kernel', kernel]),
    ...(initrd === undefined ? [] : ['-initrd', initrd]),
    ...(append === undefined ? [] : ['-append', append]),
  ]
}

const CODE = 'firmware-code'
const VARIABLES = 'firmware-variables'

function flashMachine(firmware: Firmware | undefined): string {
  if (firmware?.kind !== 'flash') return ''
  return `,pflash0=${CODE},pflash1=${VARIABLES}${firmware.needsSmm ? ',smm=on' : ''}`
}

function firmwareArguments(firmware: Firmware | undefined): string[] {
  if (firmware === undefined) return []
  if (firmware.kind === 'bios') return ['-bios', firmware.path]
  const { code, variables, needsSmm } = firmware
  const node = (name: string, { path, format }: FlashFile, isReadOnly: boolean): string[] => [
    '-blockdev',
    JSON.stringify({
      ...{ 'node-name': name, driver: format, 'read-only': isReadOnly },
      file: { driver: 'file', filename: path },
    }),
  ]
  return [
    ...node(CODE, code, true),
    ...node(VARIABLES, variables, false),
    // Sleep would leave that mode open to the system.
    ...(needsSmm
      ? ['-global', 'driver=cfi.pflash01,property=secure,value=on', '-global', 'ICH9-LPC.disable_s3=1']
      : []),
  ]
}

function displayArguments({ vnc }: MachineOptions): string[] {
  if (vnc === undefined) return ['-display', 'none']
  return ['-vnc', vnc, '-device', 'VGA', '-device', 'qemu-xhci', '-device', 'usb-tablet']
}

function portArguments(count: number): string[] {
  return Array.from({ length: count }, (_, index) => {
    const address = `0x${(PORT_SLOT + (index >> 3)).toString(16)}.${index & 7}`
    const port = { id: portName(index), chassis: index + 1, port: index, addr: address }
    const multifunction = (index & 7) === 0 ? { multifunction: 'on' } : {}
    return ['-device', `pcie-root-port,${optionText({ ...port, ...multifunction })}`]
  }).flat()
}
