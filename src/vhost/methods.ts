/** The RPC methods of the vhost-user front end. Those that SPDK has are as SPDK has them. */
import { z } from 'zod'
import { RpcError } from '../core/errors.ts'
import { method } from '../rpc/method.ts'
import { done, int32, uint32 } from '../rpc/params.ts'
import type { Backing } from './backing.ts'
import type { SessionView, VhostController } from './controller.ts'
import type { VhostControllers } from './controllers.ts'
import { libvirtXml } from './libvirt-xml.ts'
import { type GuestDisk, qemuArgs } from './qemu-args.ts'

/** What the methods find in the application. */
export interface VhostContext {
  readonly vhost: VhostControllers
}

const TRANSPORT = 'vhost_user_blk'

const ctrlr = z.string().describe('The controller')
const newCtrlr = z.string().describe('Its name, and that of its socket in the directory of -S')
const access = {
  cpumask: z
    .string()
    .optional()
    .describe('The reactors that poll its queues, as a core mask; all of them when absent'),
  socket_mode: z
    .string()
    .optional()
    .describe('Who may connect, as for chmod: 0660; what --vhost-mode says when absent'),
  socket_owner: z
    .string()
    .optional()
    .describe('Whose the socket is, as for chown: libvirt-qemu:kvm; what --vhost-owner says when absent'),
}

const UNKNOWN = 'no controller has that name'
const CREATE_ERRORS = {
  EEXIST: 'a controller has that name, or a file that is no socket is at its path',
  EINVAL: 'the name, the mask, the mode or the owner is one that cannot be',
  ENOENT: 'the directory of the sockets does not exist',
  EACCES: 'this process may not write to the directory of the sockets',
  EADDRINUSE: 'another process listens at the path',
  EPERM: 'another user has the bdev for itself, or this process may not give the socket away',
} as const

const createBlk = method({
  name: 'vhost_create_blk_controller',
  summary: 'Shows a bdev to a guest as a virtio-blk disk, over a vhost-user socket.',
  params: z.object({
    ctrlr: newCtrlr,
    dev_name: z.string().describe('The bdev'),
    ...access,
    transport: z.string().default(TRANSPORT).describe(`Only ${TRANSPORT}`),
    readonly: z.boolean().default(false).describe('The guest may not write'),
    packed_ring: z.boolean().default(false).describe('Offer the guest packed virtqueues'),
  }),
  result: done,
  errors: { ...CREATE_ERRORS, ENODEV: 'no bdev has that name' },
  relaxed: true,
  saves: true,
  cli: {
    positional: ['ctrlr', 'dev_name'],
    flags: { readonly: 'r', packed_ring: 'p' },
    commands: ['vhost create-blk'],
  },
  async run(params, { vhost }: VhostContext) {
    if (params.transport.toLowerCase() !== TRANSPORT) {
      throw new RpcError(
        'EINVAL',
        `transport ${params.transport} of ${params.ctrlr}: there is only ${TRANSPORT}`,
      )
    }
    await vhost.createBlk({
      name: params.ctrlr,
      bdev: params.dev_name,
      cpumask: params.cpumask,
      access: { mode: params.socket_mode, owner: params.socket_owner },
      readOnly: params.readonly,
      packedRing: params.packed_ring,
    })
    return true as const
  },
})

const createScsi = method({
  name: 'vhost_create_scsi_controller',
  summary:
    'Makes a virtio-scsi controller for a guest, over a vhost-user socket; its disks are added as targets.',
  params: z.object({
    ctrlr: newCtrlr,
    ...access,
    delay: z.boolean().default(false).describe('Nobody can connect before vhost_start_scsi_controller'),
  }),
  result: done,
  errors: CREATE_ERRORS,
  saves: true,
  cli: { positional: ['ctrlr'], commands: ['vhost create-scsi'] },
  async run(params, { vhost }: VhostContext) {
    await vhost.createScsi({
      name: params.ctrlr,
      cpumask: params.cpumask,
      access: { mode: params.socket_mode, owner: params.socket_owner },
      delay: params.delay,
    })
    return true as const
  },
})

const startScsi = method({
  name: 'vhost_start_scsi_controller',
  summary: 'Opens the socket of a SCSI controller that was made with a delay.',
  params: z.object({ ctrlr }),
  result: done,
  errors: { ...CREATE_ERRORS, ENODEV: UNKNOWN },
  saves: true,
  cli: { positional: ['ctrlr'], commands: ['vhost start-scsi'] },
  async run({ ctrlr: name }, { vhost }: VhostContext) {
    await vhost.startScsi(name)
    return true as const
  },
})

const addTarget = method({
  name: 'vhost_scsi_controller_add_target',
  summary: 'Shows a bdev as LUN 0 of a SCSI target; a guest that is connected is told.',
  params: z.object({
    ctrlr,
    scsi_target_num: int32.describe('0 to 7; -1 for the first that is free'),
    bdev_name: z.string().describe('The bdev'),
  }),
  result: z.int().describe("The target's number"),
  errors: {
    ENODEV: 'no controller or no bdev has that name',
    EEXIST: 'the target is there already',
    ENOSPC: 'all eight targets are there',
    EINVAL: 'there is no target of that number, or it is a blk controller',
    EPERM: 'another user has the bdev for itself',
  },
  saves: true,
  cli: { positional: ['ctrlr', 'scsi_target_num', 'bdev_name'], commands: ['vhost add-target'] },
  run: ({ ctrlr: name, scsi_target_num, bdev_name }, { vhost }: VhostContext) =>
    vhost.addTarget(name, scsi_target_num, bdev_name),
})

const removeTarget = method({
  name: 'vhost_scsi_controller_remove_target',
  summary: 'Takes a SCSI target away: a guest that is connected is told; answers when its I/O has ended.',
  params: z.object({ ctrlr, scsi_target_num: uint32.describe('0 to 7') }),
  result: done,
  errors: {
    ENODEV: 'no controller has that name, or it has no such target',
    EINVAL: 'it is a blk controller',
  },
  saves: true,
  cli: { positional: ['ctrlr', 'scsi_target_num'], commands: ['vhost remove-target'] },
  async run({ ctrlr: name, scsi_target_num }, { vhost }: VhostContext) {
    await vhost.removeTarget(name, scsi_target_num)
    return true as const
  },
})

const blkInfo = z.object({
  readonly: z.boolean(),
  bdev: z.string().nullable().describe('Null once it was removed'),
  transport: z.string(),
})
const scsiInfo = z.object({
  scsi_dev_num: z.int(),
  id: z.int(),
  target_name: z.string(),
  luns: z.array(z.object({ id: z.int(), bdev_name: z.string() })),
})
const controllerRow = z.object({
  ctrlr: z.string(),
  cpumask: z.string(),
  delay_base_us: z.int(),
  iops_threshold: z.int(),
  socket: z.string(),
  sessions: z.array(
    z.object({
      vid: z.int(),
      id: z.int(),
      name: z.string(),
      started: z.boolean(),
      max_queues: z.int(),
      inflight_task_cnt: z.int(),
    }),
  ),
  backend_specific: z.union([z.object({ block: blkInfo }), z.object({ scsi: z.array(scsiInfo) })]),
})
type ControllerRow = z.output<typeof controllerRow>

const getControllers = method({
  name: 'vhost_get_controllers',
  summary: 'Lists the vhost controllers, or one of them, with the front ends that are connected.',
  params: z.object({ name: z.string().optional().describe('Only this controller') }),
  result: z.array(controllerRow),
  errors: { ENODEV: UNKNOWN },
  cli: {
    flags: { name: 'n' },
    columns: [
      'ctrlr',
      { title: 'bdevs', value: row => bdevNames(row) },
      { title: 'sessions', value: row => row.sessions.length },
      'cpumask',
      'socket',
    ],
    commands: ['vhost list'],
  },
  run: ({ name }, { vhost }: VhostContext) =>
    Promise.all(
      (name === undefined ? vhost.list() : [vhost.get(name)]).map(controller => rowOf(vhost, controller)),
    ),
})

async function rowOf(vhost: VhostControllers, controller: VhostController): Promise<ControllerRow> {
  const { name, tuning, socketPath, backing } = controller
  return {
    ctrlr: name,
    cpumask: vhost.cpumaskOf(controller),
    delay_base_us: tuning.delayBaseUs,
    iops_threshold: tuning.iopsThreshold,
    socket: socketPath,
    sessions: (await controller.sessions()).map(sessionRow),
    backend_specific: backingOf(backing),
  }
}

const sessionRow = ({
  vid,
  id,
  name,
  stats: { queues },
}: SessionView): ControllerRow['sessions'][number] => ({
  vid,
  id,
  name,
  started: queues.length > 0,
  max_queues: queues.length,
  inflight_task_cnt: queues.reduce((sum, { outstanding }) => sum + outstanding, 0),
})

function backingOf(backing: Backing): ControllerRow['backend_specific'] {
  if (backing.kind === 'blk') {
    const { isReadOnly: readonly, bdev } = backing
    return { block: { readonly, bdev: bdev?.name ?? null, transport: TRANSPORT } }
  }
  const targets = [...backing.targets.values()].sort((a, b) => a.number - b.number)
  return {
    scsi: targets.map(({ number, id, name, bdev }) => ({
      scsi_dev_num: number,
      id,
      target_name: name,
      luns: [{ id: 0, bdev_name: bdev.name }],
    })),
  }
}

function bdevNames({ backend_specific: shown }: ControllerRow): string[] {
  if ('scsi' in shown) return shown.scsi.flatMap(({ luns }) => luns.map(({ bdev_name }) => bdev_name))
  return shown.block.bdev === null ? [] : [shown.block.bdev]
}

const deleteController = method({
  name: 'vhost_delete_controller',
  summary: 'Deletes a controller and its socket, once no front end is connected.',
  params: z.object({ ctrlr }),
  result: done,
  errors: { ENODEV: UNKNOWN, EBUSY: 'front ends are connected' },
  saves: true,
  cli: { positional: ['ctrlr'], commands: ['vhost delete'] },
  async run({ ctrlr: name }, { vhost }: VhostContext) {
    await vhost.delete(name)
    return true as const
  },
})

const setCoalescing = method({
  name: 'vhost_controller_set_coalescing',
  summary: 'Delays interrupts of busy queues, so that one tells of several requests.',
  params: z.object({
    ctrlr,
    delay_base_us: uint32.describe('At the threshold; grows with the load above it. 0: no delay'),
    iops_threshold: uint32.describe('Completions a second of a queue, from 100, above which it begins'),
  }),
  result: done,
  errors: { ENODEV: UNKNOWN, EINVAL: 'a value is out of its range' },
  saves: true,
  cli: { positional: ['ctrlr', 'delay_base_us', 'iops_threshold'], commands: ['vhost set-coalescing'] },
  async run({ ctrlr: name, delay_base_us, iops_threshold }, { vhost }: VhostContext) {
    await vhost.setCoalescing(name, delay_base_us, iops_threshold)
    return true as const
  },
})

const setPolling = method({
  name: 'vhost_controller_set_polling',
  summary: 'Says how long a queue without requests is polled before its guest is asked for notifications.',
  params: z.object({
    ctrlr,
    quiet_us: uint32.max(1_000_000).describe('In microseconds; 50 at first, 0: not polled when it is empty'),
  }),
  result: done,
  errors: { ENODEV: UNKNOWN },
  saves: true,
  cli: { positional: ['ctrlr', 'quiet_us'], commands: ['vhost set-polling'] },
  async run({ ctrlr: name, quiet_us }, { vhost }: VhostContext) {
    await vhost.setPolling(name, quiet_us)
    return true as const
  },
})

const setOptions = method({
  name: 'vhost_set_options',
  summary: 'Sets what holds for every controller, from the next front end on.',
  params: z.object({
    require_sealed_memory: z
      .boolean()
      .optional()
      .describe(
        'Refuse guest memory that could be truncated under the daemon, which would end it; at first true',
      ),
  }),
  result: done,
  state: 'any',
  saves: true,
  run({ require_sealed_memory }, { vhost }: VhostContext) {
    if (require_sealed_memory !== undefined) vhost.setOptions({ requireSealedMemory: require_sealed_memory })
    return true as const
  },
})

const getStats = method({
  name: 'vhost_get_stats',
  summary:
    'Tells what the virtqueues of connected front ends did, and which of them are polled at this moment.',
  params: z.object({ ctrlr: z.string().optional().describe('Only this controller') }),
  result: z.array(
    z.object({
      ctrlr: z.string(),
      quiet_us: z.int(),
      sessions: z.array(
        z.object({
          id: z.int(),
          name: z.string(),
          queues: z.array(
            z.object({
              index: z.int(),
              polled: z.boolean(),
              requests: z.int(),
              outstanding: z.int(),
              interrupts: z.int(),
              notifications: z.int(),
            }),
          ),
        }),
      ),
    }),
  ),
  errors: { ENODEV: UNKNOWN },
  cli: { positional: ['ctrlr'], commands: ['vhost stats'] },
  run: ({ ctrlr: name }, { vhost }: VhostContext) =>
    Promise.all(
      (name === undefined ? vhost.list() : [vhost.get(name)]).map(async controller => ({
        ctrlr: controller.name,
        quiet_us: controller.tuning.quietUs,
        sessions: (await controller.sessions()).map(({ id, name, stats }) => ({
          id,
          name,
          queues: stats.queues.map(({ index, isPolled, requests, outstanding, calls, kicks }) => ({
            index,
            polled: isPolled,
            requests,
            outstanding,
            interrupts: calls,
            notifications: kicks,
          })),
        })),
      })),
    ),
})

const transportRow = z.object({ name: z.string() })

const createTransport = method({
  name: 'virtio_blk_create_transport',
  summary: `Accepted for SPDK's clients: there is one transport, ${TRANSPORT}, from the start.`,
  params: z.object({ name: z.string().describe('The transport') }),
  result: done,
  errors: { EEXIST: 'it is there already', ENOENT: 'there is no such transport' },
  relaxed: true,
  cli: { positional: ['name'] },
  run({ name }): true {
    if (name.toLowerCase() === TRANSPORT) {
      throw new RpcError(
        'EEXIST',
        `the transport ${TRANSPORT} is there from the start: nothing is to be done`,
      )
    }
    throw new RpcError(
      'ENOENT',
      `there is no transport ${name}: ${TRANSPORT} is the only one, and there already`,
    )
  },
})

const getTransports = method({
  name: 'virtio_blk_get_transports',
  summary: 'Lists the transports of blk controllers: there is one.',
  params: z.object({ name: z.string().optional().describe('Only this transport') }),
  result: z.array(transportRow),
  errors: { ENODEV: 'there is no such transport' },
  run({ name }) {
    if (name === undefined || name.toLowerCase() === TRANSPORT) return [{ name: TRANSPORT }]
    throw new RpcError('ENODEV', `there is no transport ${name}: ${TRANSPORT} is the only one`)
  },
})

const queues = z.int().min(1).max(256)
const disk_only = z.boolean().default(false)

const guestQemuArgs = method({
  name: 'vhost_qemu_args',
  summary: 'Prints the arguments that give a QEMU guest the disks of a controller.',
  params: z.object({
    ctrlr,
    memory: z
      .string()
      .regex(/^[1-9]\d*[KMGT]$/i, 'a size with its unit, such as 4G')
      .default('1G')
      .describe("The guest's memory"),
    queues: queues
      .optional()
      .describe("Virtqueues for requests; one for each of the guest's processors when absent"),
    bootindex: uint32.optional().describe('Where it comes when the guest looks for something to boot'),
    qemu: z
      .string()
      .regex(/^\d+\.\d+/, 'a version such as 9.2')
      .default('8.2')
      .describe("QEMU's version, where it is before 8.2 or from 9.2 on: the option to reconnect has changed"),
    disk_only: disk_only.describe('Without the memory: for the second disk of a guest'),
  }),
  result: z.string(),
  concurrent: true,
  errors: { ENODEV: UNKNOWN, EINVAL: 'a shell would tear the path of the socket apart' },
  cli: { positional: ['ctrlr'], flags: { memory: 'm', queues: 'q' } },
  run(
    { ctrlr: name, memory, queues: count, bootindex, qemu, disk_only: isDiskOnly },
    { vhost }: VhostContext,
  ) {
    const [major, minor] = qemu.split('.').map(Number)
    return qemuArgs(guestDisk(vhost.get(name)), {
      memory: isDiskOnly ? undefined : memory,
      queues: count,
      bootIndex: bootindex,
      version: [major!, minor!],
    })
  },
})

const guestLibvirtXml = method({
  name: 'vhost_libvirt_xml',
  summary: 'Prints the elements that give a libvirt domain the disks of a controller.',
  params: z.object({
    ctrlr,
    target: z.string().default('vda').describe('What the domain calls the disk (not for SCSI controllers)'),
    queues: queues
      .optional()
      .describe("Virtqueues for requests; one for each of the guest's processors when absent"),
    disk_only: disk_only.describe(
      'Without the memory: for `virsh attach-device`, and the second disk of a domain',
    ),
  }),
  result: z.string(),
  concurrent: true,
  errors: { ENODEV: UNKNOWN, EINVAL: "the path of the socket cannot be among QEMU's arguments" },
  cli: { positional: ['ctrlr'], flags: { target: 't', queues: 'q' } },
  run: ({ ctrlr: name, target, queues: count, disk_only: diskOnly }, { vhost }: VhostContext) =>
    libvirtXml(guestDisk(vhost.get(name)), { target, queues: count, diskOnly }),
})

const guestDisk = ({ name, backing, socketPath, offersPacked }: VhostController): GuestDisk => ({
  name,
  kind: backing.kind,
  socketPath,
  offersPacked,
})

export const vhostMethods = [
  createBlk,
  createScsi,
  startScsi,
  addTarget,
  removeTarget,
  getControllers,
  deleteController,
  setCoalescing,
  setPolling,
  setOptions,
  getStats,
  createTransport,
  getTransports,
  guestQemuArgs,
  guestLibvirtXml,
]
