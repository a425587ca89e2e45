/** Guests: QEMU without libvirt, and a list of all there are. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { parseMemorySize } from '../../core/parse-size.ts'
import { method } from '../../rpc/method.ts'
import { listGuests } from '../list.ts'
import { parseDisks } from '../run/guest-disk.ts'
import { parseNet } from '../run/network.ts'
import { isRemote, type OpenScreen, parseScreen } from '../run/screen.ts'
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
    memory: z.string().default('1G').describe('Memory, such as 4G; a number alone is MiB'),
    disks: z
      .array(z.string().min(1))
      .default([])
      .describe(
        'A volume (POOL/NAME), else a bdev, else an absolute path. Behind it what is to be said of it: ' +
          ',bus=virtio|nvme|scsi ,means=vhost|nbd|direct ,format=raw|qcow2 ,serial=S ,readonly ,shared (although others write to it; without blanks). It boots from ' +
          'the first',
      ),
    cdrom: z
      .string()
      .min(1)
      .optional()
      .describe('A CD image: a volume or a path. It is booted from when no disk can be'),
    kernel: path.optional().describe('A kernel to start, instead of what the firmware finds'),
    initrd: path.optional().describe('Its first file system'),
    append: z.string().optional().describe("The kernel's command line, such as console=ttyS0"),
    firmware: z
      .string()
      .regex(/^(\/.*|uefi|uefi-secure)$/, 'uefi, uefi-secure or an absolute path')
      .optional()
      .describe("uefi, uefi-secure (Secure Boot), or the absolute path of one, instead of QEMU's own"),
    network: z
      .string()
      .default('user')
      .describe(
        'user, none, bridge=BRIDGE, tap=INTERFACE or macvtap=INTERFACE, behind which may be :bridge, :vepa, :private or :passthrough',
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
      .string()
      .min(1)
      .optional()
      .describe(
        "A screen over VNC: unix (a socket of the daemon's user), or, with a password, N (display N of 127.0.0.1, port 5900 + N), " +
          'auto (the first that is free), ADDRESS:N, ADDRESS:auto',
      ),
    vnc_password_file: path
      .optional()
      .describe(
        'A file with the password of the screen, at most 8 characters; one by chance, told once, when absent',
      ),
  }),
  result: z.object({
    name: z.string(),
    pid: z.int(),
    accel: z.enum(['kvm', 'tcg']),
    console: z.string().describe("Unix socket of the guest's serial port"),
    disks: z.array(z.object({ target: z.string(), volume: z.string(), means: z.string() })),
    vnc: z
      .object({
        address: z.string().describe('A Unix socket, or ADDRESS:PORT'),
        password: z.string().optional().describe('Not of a Unix socket, and not when a file has it'),
      })
      .optional(),
    nvram: z.string().optional().describe('The variables of its UEFI firmware, which stay when it ends'),
    notes: z.array(z.string()).describe('What is to be known'),
  }),
  errors: {
    EINVAL: 'a disk, the network or the memory makes no sense, or the daemon has no state directory',
    ENOENT: 'there is no such volume, path or program',
    EEXIST: 'there is a guest of that name, or two disks of one target',
    EBUSY: 'another guest, another program or a host has a disk, or volumes are made of it',
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
    // virt-install's words, too.
    flags: { cpus: ['c', 'vcpus'], memory: ['m', 'ram'], disks: ['d', 'disk'], network: ['n', 'net'] },
    text: ({ name, pid, accel, disks, vnc, nvram, notes }) =>
      [
        `guest ${name} runs as process ${pid} (${accel})`,
        ...disks.map(({ target, volume, means }) => `  ${target}: ${volume} (${means})`),
        `Its serial console: qpair vm console ${name}`,
        ...(vnc === undefined ? [] : [`Its screen: VNC at ${vnc.address}${passwordText(vnc.password)}`]),
        ...(nvram === undefined ? [] : [`Its UEFI variables, which stay when it ends: ${nvram}`]),
        ...notes,
        '',
      ].join('\n'),
  },
  async run(params, { ownGuests }: DiskContext) {
    const memoryBytes = parseMemorySize(params.memory, 'memory')
    if (memoryBytes < MEMORY_BYTES_MIN) {
      throw new RpcError(
        'EINVAL',
        `memory ${params.memory}: a guest needs ${formatSize(MEMORY_BYTES_MIN)} at least; sizes are such as 4G`,
      )
    }
    if (params.kernel === undefined && (params.initrd ?? params.append) !== undefined) {
      throw new RpcError('EINVAL', `guest ${params.name}: --initrd and --append belong to a --kernel`)
    }
    const screen = params.vnc === undefined ? undefined : parseScreen(params.vnc)
    if (params.vnc_password_file !== undefined && screen?.type !== 'tcp') {
      throw new RpcError(
        'EINVAL',
        `guest ${params.name}: --vnc-password-file belongs to --vnc N, auto or ADDRESS:N`,
      )
    }
    const { guest, firmware, notes, ...started } = await ownGuests.start({
      ...{ name: params.name, cpus: params.cpus, memoryBytes, hugePages: params.huge_pages },
      ...{ machine: params.machine, accel: params.accel, cdrom: params.cdrom },
      ...{ screen, passwordFile: params.vnc_password_file },
      ...{ kernel: params.kernel, initrd: params.initrd, append: params.append, firmware: params.firmware },
      ...{ net: parseNet(params.network), network: params.network },
      disks: parseDisks(params.disks).map(disk => ({ ...disk, pool: undefined, target: undefined })),
    })
    const { process, accel, disks } = guest.record
    return {
      ...{ name: params.name, pid: process.pid, accel, console: guest.paths.console },
      ...(firmware?.kind === 'flash' && { nvram: firmware.variables.path }),
      ...(started.screen !== undefined && { vnc: told(started.screen, params.vnc_password_file) }),
      notes: [...notes, ...(screen !== undefined && isRemote(screen) ? [VNC_IN_THE_CLEAR] : [])],
      disks: disks.map(({ target, volume, means }) => ({ target, volume, means })),
    }
  },
})

/** A password that has a file is in that file. */
const told = (
  { address, password }: OpenScreen,
  file: string | undefined,
): { address: string; password?: string } => ({
  address,
  ...(password !== undefined && file === undefined && { password }),
})

const passwordText = (password: string | undefined): string =>
  password === undefined ? '' : `, password ${password} (told once)`

const VNC_IN_THE_CLEAR =
  'VNC travels in the clear, its password nearly so: on a network that others are on, --vnc unix and ssh -L PORT:SOCKET'

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
  console_taken: z
    .boolean()
    .optional()
    .describe('Somebody is at it, and the next one waits until that has left'),
  vnc: z.string().optional().describe('Where its screen is: a Unix socket, or ADDRESS:PORT'),
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

const endings = (isForced: boolean) => ({
  'powered down': 'has shut down',
  quit: isForced ? 'is ended' : 'has not reacted to its power button in time, and is ended by force',
  killed: 'is killed, since its QEMU did not answer',
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
    EINVAL: 'it stands still, and hears no power button',
    EIO: 'QEMU does not answer: --force',
  },
  concurrent: true,
  cli: {
    positional: ['name'],
    flags: { force: 'f', timeout: 't' },
    text: ({ name, how, released }, { force }) =>
      [`guest ${name} ${endings(force === true)[how]}`, ...released.map(each => `closed: ${each}`), ''].join(
        '\n',
      ),
  },
  async run({ name, force, timeout }, { ownGuests }: DiskContext) {
    const { how, released } = await ownGuests.stop(name, { force, timeoutMs: timeout * 1000 })
    return { name, how, released: [...released] }
  },
})

const power = {
  params: z.object({ name: guestName.describe("The guest's name") }),
  result: z.object({ name: z.string(), state: z.string() }),
  errors: {
    ENODEV: 'there is no such guest',
    EAGAIN: 'it is being found again',
    EIO: 'QEMU refuses, for the reason given',
  },
  concurrent: true,
  cli: {
    positional: ['name'] as const,
    text: ({ name, state }: { readonly name: string; readonly state: string }) => `guest ${name}: ${state}\n`,
  },
}

const suspend = method({
  ...power,
  name: 'vm_suspend',
  summary:
    'Has a guest that qpair has started stand still, until it is resumed. Its memory stays where it is.',
  run: async ({ name }, { ownGuests }: DiskContext) => ({ name, state: await ownGuests.get(name).suspend() }),
})

const resume = method({
  ...power,
  name: 'vm_resume',
  summary:
    'Has a guest go on that stands still: suspended, or because there was no room for the data of a disk.',
  run: async ({ name }, { ownGuests }: DiskContext) => ({ name, state: await ownGuests.get(name).resume() }),
})

export const guestMethods = [run, list, stop, suspend, resume]
