/** Methods that show controllers and paths. */
import { z } from 'zod'
import type { IoCounters } from '../../bdev/iostat.ts'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { SmartLog } from '../../spec/nvme-log.ts'
import { type IoPathRow, type PathIostat, Topic } from '../messages.ts'
import type { Path } from '../named-controller.ts'
import { type NvmeContext, trid } from './context.ts'

/** A path's state in SPDK's words. */
const STATE_NAMES = {
  connecting: 'resetting',
  ready: 'enabled',
  waiting: 'reconnect_is_delayed',
  failed: 'failed',
  lost: 'failed',
  disabled: 'disabled',
} as const

const controllerRow = z.object({
  name: z.string(),
  ctrlrs: z.array(
    z.object({
      state: z.enum(['deleting', 'failed', 'resetting', 'reconnect_is_delayed', 'disabled', 'enabled']),
      trid,
      alternate_trids: z.array(trid).optional(),
      cntlid: z.int(),
      host: z.object({
        nqn: z.string(),
        addr: z.string(),
        svcid: z.string(),
        no_shn_notification: z.boolean(),
      }),
      /** Why the path is not enabled; SPDK has no such member. */
      reason: z.string().optional(),
    }),
  ),
})

function pathRow(path: Path): z.input<typeof controllerRow>['ctrlrs'][number] {
  const { options } = path.controller
  const { status, source } = path
  const active = path.trid
  const others = path.targets.filter(
    ({ host, port }) => host !== active.traddr || String(port) !== active.trsvcid,
  )
  const { subnqn } = options
  return {
    state: path.isDetaching ? 'deleting' : STATE_NAMES[status.state],
    trid: active,
    ...(others.length > 0 && {
      alternate_trids: others.map(({ host, port }) => ({
        ...active,
        adrfam: host.includes(':') ? 'IPv6' : 'IPv4',
        traddr: host,
        trsvcid: String(port),
        subnqn,
      })),
    }),
    cntlid: status.controller?.cntlid ?? 0,
    host: {
      nqn: options.hostnqn,
      addr: source?.host ?? '',
      svcid: source === undefined || source.port === 0 ? '' : String(source.port),
      no_shn_notification: false,
    },
    ...(status.state !== 'ready' && { reason: status.reason }),
  }
}

export const bdevNvmeGetControllers = method({
  name: 'bdev_nvme_get_controllers',
  summary: 'Shows NVMe controllers and the state of each of their paths.',
  params: z.object({ name: z.string().optional().describe('Only that controller') }),
  result: z.array(controllerRow),
  errors: { EINVAL: 'no controller has that name' },
  cli: {
    positional: ['name'],
    flags: { name: 'n' },
    columns: [
      'name',
      {
        title: 'PATHS',
        value: row => row.ctrlrs.map(({ trid: at }) => `${at.traddr}:${at.trsvcid}`).join(' '),
      },
      { title: 'STATES', value: row => row.ctrlrs.map(({ state }) => state).join(' ') },
    ],
    commands: ['nvme list'],
  },
  run({ name }, { nvme }: NvmeContext) {
    const found = name === undefined ? nvme.list() : [nvme.find(name)]
    return found.map(controller => {
      if (controller === undefined) {
        throw new RpcError('EINVAL', `Controller ${name} does not exist`)
      }
      return { name: controller.name, ctrlrs: controller.paths.map(pathRow) }
    })
  },
})

export const bdevNvmeGetIoPaths = method({
  name: 'bdev_nvme_get_io_paths',
  summary: 'Shows, for each reactor, which paths its devices have and which one is in use.',
  params: z.object({ name: z.string().optional().describe('Only that device: Nvme0n1') }),
  result: z.object({
    poll_groups: z.array(
      z.object({
        thread: z.string(),
        io_paths: z.array(
          z.object({
            bdev_name: z.string(),
            cntlid: z.int(),
            current: z.boolean(),
            connected: z.boolean(),
            accessible: z.boolean(),
            transport: trid.omit({ subnqn: true }),
          }),
        ),
      }),
    ),
  }),
  errors: { ENODEV: 'no NVMe device has that name' },
  cli: {
    positional: ['name'],
    flags: { name: 'n' },
  },
  async run({ name }, { nvme }: NvmeContext) {
    const only = name === undefined ? undefined : nvme.ownerOf(name).info.name
    const answers = await nvme.askReactors<IoPathRow[]>(Topic.IO_PATHS, null)
    return {
      poll_groups: answers.map((rows, index) => ({
        thread: `reactor_${index}`,
        io_paths: rows.flatMap(row => {
          const path = nvme.pathById(row.pathId)
          if (path === undefined || (only !== undefined && row.bdev !== only)) return []
          const { subnqn, ...transport } = path.trid
          return [
            {
              bdev_name: row.bdev,
              cntlid: path.status.controller?.cntlid ?? 0,
              current: row.current,
              connected: row.connected,
              accessible: row.accessible,
              transport,
            },
          ]
        }),
      })),
    }
  },
})

export const bdevNvmeGetPathIostat = method({
  name: 'bdev_nvme_get_path_iostat',
  summary: 'Counts the I/O of a device on each of its paths; needs io_path_stat of bdev_nvme_set_options.',
  params: z.object({ name: z.string().describe('The device: Nvme0n1') }),
  result: z.object({
    name: z.string(),
    stats: z.array(
      z.object({
        trid,
        stat: z.record(z.string(), z.unknown()),
        /** Writes that were on their way when a connection was lost and then went another way; SPDK has no such member. */
        unfenced_writes: z.int(),
      }),
    ),
  }),
  errors: { ENODEV: 'no NVMe device has that name', EPERM: 'the I/O of paths is not counted' },
  cli: { flags: { name: ['b', 'name'] } },
  async run({ name }, { nvme }: NvmeContext) {
    const { controller, info } = nvme.ownerOf(name)
    if (!nvme.options.countPathIo) {
      throw new RpcError(
        'EPERM',
        'RPC not enabled if enable_io_path_stat is false: set io_path_stat with bdev_nvme_set_options before attaching',
      )
    }
    const rows = (await nvme.askReactors<PathIostat[]>(Topic.PATH_IOSTAT, info.name)).flat()
    return {
      name: info.name,
      stats: controller.paths.map(path => {
        const own = rows.filter(({ pathId }) => pathId === path.id)
        return {
          trid: path.trid,
          stat: addCounters(own.map(({ counters }) => counters)),
          unfenced_writes: own.reduce((sum, { unfencedWrites }) => sum + unfencedWrites, 0),
        }
      }),
    }
  },
})

/** The counters of several reactors as one: sums, and the extremes of the extremes. */
function addCounters(all: readonly IoCounters[]): Record<string, unknown> {
  const sum: Record<string, unknown> = {}
  for (const counters of all) {
    for (const [name, value] of Object.entries(counters)) {
      const before = sum[name]
      if (typeof value !== 'number') sum[name] = { ...(before as object), ...value }
      else if (typeof before !== 'number') sum[name] = value
      else if (name.startsWith('max_')) sum[name] = Math.max(before, value)
      else if (name.startsWith('min_')) sum[name] = before === 0 ? value : Math.min(before, value || before)
      else sum[name] = before + value
    }
  }
  return sum
}

const KELVIN = 273

export const bdevNvmeGetControllerHealthInfo = method({
  name: 'bdev_nvme_get_controller_health_info',
  summary: 'Reads the SMART log page of a controller.',
  params: z.object({ name: z.string().describe('The controller') }),
  result: z.record(z.string(), z.union([z.string(), z.number()])),
  errors: { ENODEV: 'no controller has that name', EIO: 'no path of it answers' },
  concurrent: true,
  cli: { flags: { name: 'c' } },
  async run({ name }, { nvme }: NvmeContext) {
    const { paths } = nvme.get(name)
    const path = paths.find(({ status }) => status.state === 'ready')
    if (path === undefined) throw new RpcError('EIO', `no path of ${name} is connected`)
    const page = await nvme.command<Uint8Array>(path, { pathId: path.id, command: 'health' })
    const view = new DataView(page.buffer, page.byteOffset, page.byteLength)
    const get = (field: { get(view: DataView, base: number): number }): number => field.get(view, 0)
    const { modelNumber, serialNumber, firmwareRevision } = path.status.controller!
    return {
      model_number: modelNumber,
      serial_number: serialNumber,
      firmware_revision: firmwareRevision,
      traddr: path.status.target.host,
      critical_warning: get(SmartLog.cw),
      temperature_celsius: get(SmartLog.ctemp) - KELVIN,
      available_spare_percentage: get(SmartLog.avsp),
      available_spare_threshold_percentage: get(SmartLog.avspt),
      percentage_used: get(SmartLog.pused),
      data_units_read: get(SmartLog.dur),
      data_units_written: get(SmartLog.duw),
      host_read_commands: get(SmartLog.hrc),
      host_write_commands: get(SmartLog.hwc),
      controller_busy_time: get(SmartLog.cbt),
      power_cycles: get(SmartLog.pwrc),
      power_on_hours: get(SmartLog.poh),
      unsafe_shutdowns: get(SmartLog.upl),
      media_errors: get(SmartLog.mdie),
      num_err_log_entries: get(SmartLog.nele),
      warning_temperature_time_minutes: get(SmartLog.wctt),
      critical_composite_temperature_time_minutes: get(SmartLog.cctt),
    }
  },
})
