/** Guests: QEMU without libvirt, and a list of all there are. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { parseSize } from '../../core/parse-size.ts'
import { method } from '../../rpc/method.ts'
import { listGuests } from '../list.ts'
import { parseDisks } from '../run/guest-disk.ts'
import { parseNet } from '../run/network.ts'
import type { DiskContext } from './disks.ts'

const path = z.string().regex(/^\//, 'an absolute path')
const guestName = z
  .string()
  .regex(/^[a-zA-Z0-9][\w.-]{0,49}$/, 'at most 50 letters, digits, -, . or _, a letter or digit first')
const MEMORY_BYTES_MIN = 16 << 20

const run = method({
  name: 'vm_run',
  summary:
    'Starts a guest in QEMU, without libvirt. It goes on when the daemon ends, and is found again at its next start.',
  params: z.object({
    name: guestName.describe("The guest's name"),
    cpus: z.int().min(1).max(512).default(1).describe('Processors'),
    memory: z.string().default('1G').describe('Memory, such as 4G'),
    disks: z
      .array(z.string().min(1))
      .default([])
      .describe(
        'A volume (POOL/NAME), else a bdev, else an absolute path, with what is to be said of it: ' +
          'VOLUME[,bus=virtio|nvme|scsi][,means=vhost|nbd|direct][,format=raw|qcow2][,serial=S][,readonly]. It boots from the first',
      ),
    cdrom: z
      .string()
      .min(1)
      .optional()
      .describe('A CD image: a volume or a path. It is booted from when no disk can be'),
    kernel: path.optional().describe('A kernel to start, instead of what the firmware finds'),
    initrd: path.optional().describe('Its first file system'),
    append: z.string().optional().describe("The kernel's command line, such as console=ttyS0"),
    firmware: path.optional().describe("A firmware, such as OVMF's for UEFI, instead of QEMU's own"),
    network: z
      .string()
      .default('user')
      .describe(
        'user, none, bridge=BRIDGE, tap=INTERFACE or macvtap=INTERFACE[:bridge|vepa|private|passthrough]',
      ),
    machine: z
      .string()
      .regex(/^[\w.-]+$/, 'a machine of QEMU, such as q35')
      .optional()
      .describe('What kind of machine, as QEMU names it: q35 when absent, virt on ARM'),
    accel: z
      .enum(['auto', 'kvm', 'tcg'])
      .default('auto')
      .describe('kvm: by the processor; tcg: emulated, many times slower; auto: kvm where that works'),
    huge_pages: z
      .boolean()
      .default(false)
      .describe('Memory of huge pages, which the host must have reserved'),
    vnc: z
      .int()
      .min(0)
      .max(99)
      .optional()
      .describe('A screen over VNC: display N of 127.0.0.1, port 5900 + N'),
  }),
  result: z.object({
    name: z.string(),
    pid: z.int(),
    accel: z.enum(['kvm', 'tcg']),
    console: z.string().describe("Unix socket of the guest's serial port"),
    disks: z.array(z.object({ target: z.string(), volume: z.string(), means: z.string() })),
    notes: z.array(z.string()).describe('What is to be known'),
  }),
  errors: {
    EINVAL: 'a disk, the network or the memory makes no sense, or the daemon has no state directory',
    ENOENT: 'there is no such volume, path or program',
    EEXIST: 'there is a guest of that name, or two disks of one target',
    EBUSY: 'another program has a disk open',
    EACCES: 'QEMU may not open something',
    ENODEV: 'KVM does not work here',
    ENOMEM: 'the host has less memory',
    ENOSPC: 'more disks than a guest has places for',
    ENOTSUP: 'QEMU on this machine lacks something',
    EPERM: 'the network needs rights that the daemon has not',
    EADDRINUSE: 'the VNC display is taken',
    EIO: 'QEMU has not started, for the reason given',
    ETIMEDOUT: 'QEMU has not started in time',
  },
  // It waits for QEMU, and calls methods that take their turn.
  concurrent: true,
  cli: {
    positional: ['name'],
    flags: { cpus: 'c', memory: 'm', disks: ['d', 'disk'], network: ['n', 'net'] },
    text: ({ name, pid, accel, disks, notes }) =>
      [
        `guest ${name} runs as process ${pid} (${accel})`,
        ...disks.map(({ target, volume, means }) => `  ${target}: ${volume} (${means})`),
        `Its serial console: qpair vm console ${name}`,
        ...notes,
        '',
      ].join('\n'),
  },
  async run(params, { ownGuests }: DiskContext) {
    const memoryBytes = parseSize(params.memory, 'memory')
    if (memoryBytes < MEMORY_BYTES_MIN) {
      throw new RpcError(
        'EINVAL',
        `memory ${params.memory}: a guest needs ${formatSize(MEMORY_BYTES_MIN)} at least; sizes are such as 4G`,
      )
    }
    if (params.kernel === undefined && (params.initrd ?? params.append) !== undefined) {
      throw new RpcError('EINVAL', `guest ${params.name}: --initrd and --append belong to a --kernel`)
    }
    const { guest, notes } = await ownGuests.start({
      ...{ name: params.name, cpus: params.cpus, memoryBytes, hugePages: params.huge_pages },
      ...{ machine: params.machine, accel: params.accel, cdrom: params.cdrom, vnc: params.vnc },
      ...{ kernel: params.kernel, initrd: params.initrd, append: params.append, firmware: params.firmware },
      ...{ net: parseNet(params.network), network: params.network },
      disks: parseDisks(params.disks).map(disk => ({ ...disk, pool: undefined, target: undefined })),
    })
    const { process, accel, disks } = guest.record
    return {
      ...{ name: params.name, pid: process.pid, accel, console: guest.paths.console, notes },
      disks: disks.map(({ target, volume, means }) => ({ target, volume, means })),
    }
  },
})

const row = z.object({
  name: z.string(),
  owner: z.enum(['qpair', 'libvirt']),
  state: z.string(),
  cpus: z.int(),
  memory: z.int().describe('In bytes'),
  pid: z.int().optional(),
  accel: z.string().optional(),
  disks: z.array(z.string()),
  console: z.string().optional().describe("Unix socket of the guest's serial port"),
})
type Row = z.output<typeof row>

const list = method({
  name: 'vm_list',
  summary: 'Lists the guests that qpair has started, and those of libvirt, where there is one.',
  params: z.object({
    uri: z
      .string()
      .min(1)
      .optional()
      .describe("Which libvirt, as for virsh -c; virsh's own choice when absent"),
  }),
  result: z.array(row),
  errors: {
    ECONNREFUSED: 'the libvirt that was asked for does not answer',
    ENOENT: 'a libvirt was asked for, and there is no virsh',
  },
  concurrent: true,
  cli: {
    flags: { uri: 'c' },
    columns: [
      'name',
      'state',
      'owner',
      'cpus',
      { title: 'Memory', value: (each: Row) => formatSize(each.memory) },
      'pid',
      'disks',
    ],
  },
  run: ({ uri }, { ownGuests, libvirtGuests }: DiskContext) => listGuests(uri, ownGuests, libvirtGuests),
})

const stop = method({
  name: 'vm_stop',
  summary: 'Ends a guest that qpair has started: by its power button, and by force when it does not react.',
  params: z.object({
    name: guestName.describe("The guest's name"),
    force: z
      .boolean()
      .default(false)
      .describe('At once, like pulling the plug: what it has not written is lost'),
    timeout: z
      .number()
      .min(0)
      .max(3600)
      .default(30)
      .describe('Seconds for it to react to the power button, before it is ended by force'),
  }),
  result: z.object({
    name: z.string(),
    how: z.enum(['powered down', 'quit', 'killed']),
    released: z.array(z.string()).describe('What served its disks'),
  }),
  errors: {
    ENODEV: 'there is no such guest',
    EAGAIN: 'it is being found again',
    EIO: 'QEMU does not answer: --force',
  },
  concurrent: true,
  cli: {
    positional: ['name'],
    flags: { force: 'f', timeout: 't' },
    text: ({ name, how, released }) =>
      [`guest ${name} has ended: ${how}`, ...released.map(each => `closed: ${each}`), ''].join('\n'),
  },
  async run({ name, force, timeout }, { ownGuests }: DiskContext) {
    const { how, released } = await ownGuests.stop(name, { force, timeoutMs: timeout * 1000 })
    return { name, how, released: [...released] }
  },
})

export const guestMethods = [run, list, stop]
