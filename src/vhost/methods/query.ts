import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import type { Backing } from '../backing.ts'
import type { SessionView, VhostController } from '../controller.ts'
import type { VhostControllers } from '../controllers.ts'
import { TRANSPORT, UNKNOWN, type VhostContext } from './context.ts'

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

const queueRow = z.object({
  index: z.int(),
  polled: z.boolean(),
  requests: z.int(),
  outstanding: z.int(),
  interrupts: z.int(),
  notifications: z.int(),
})
const statsRow = z.object({
  ctrlr: z.string(),
  quiet_us: z.int(),
  sessions: z.array(z.object({ id: z.int(), name: z.string(), queues: z.array(queueRow) })),
})
type StatsRow = z.output<typeof statsRow>

const queuesOf = ({ sessions }: StatsRow): StatsRow['sessions'][number]['queues'] =>
  sessions.flatMap(({ queues }) => queues)

/** A column with the sum over all queues of a controller. */
const summed = (title: 'requests' | 'outstanding' | 'interrupts' | 'notifications') => ({
  title,
  value: (row: StatsRow) => queuesOf(row).reduce((sum, queue) => sum + queue[title], 0),
})

const getStats = method({
  name: 'vhost_get_stats',
  summary:
    'Tells what the virtqueues of connected front ends did, and which of them are polled at this moment.',
  params: z.object({ ctrlr: z.string().optional().describe('Only this controller') }),
  result: z.array(statsRow),
  errors: { ENODEV: UNKNOWN },
  cli: {
    positional: ['ctrlr'],
    columns: [
      'ctrlr',
      'quiet_us',
      { title: 'sessions', value: row => row.sessions.length },
      { title: 'queues', value: row => queuesOf(row).length },
      { title: 'polled', value: row => queuesOf(row).filter(({ polled }) => polled).length },
      summed('requests'),
      summed('outstanding'),
      summed('interrupts'),
      summed('notifications'),
    ],
    commands: ['vhost stats'],
  },
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

export const queryMethods = [getControllers, getStats]
