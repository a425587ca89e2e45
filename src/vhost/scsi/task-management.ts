/**
 * The control queue: task management functions (SAM-5, section 7) and asynchronous notifications. A guest's tasks may be on
 * any reactor, so the control thread has all of them look; the answer comes when what was stopped has ended.
 */
import type { Logger } from '../../core/log.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import {
  ControlType,
  NotificationRequest,
  NotificationResponse,
  ScsiResponse,
  TaskManagement,
  TaskManagementRequest,
  TaskManagementResponse,
} from '../../spec/virtio-scsi.ts'
import type { GuestRequest } from '../ring/request.ts'
import { type ManageTasks, ScsiTopic } from './messages.ts'
import type { LogicalUnit } from './unit.ts'

/** What the control queue needs of the device. */
export interface ControlHost {
  readonly reactor: Reactor
  readonly log: Logger
  readonly initiator: string
  readonly nexus: number
  readonly scratch: DataView
  readonly scratchAddress: number
  unit(target: number): LogicalUnit | null
}

type Plan = Pick<ManageTasks, 'stopWith' | 'reset'> & { readonly isOfOne: boolean }

/** How each function is a selection of tasks; what is not here is rejected. */
const PLANS = new Map<number, Plan>([
  [TaskManagement.ABORT_TASK, { isOfOne: true, stopWith: ScsiResponse.ABORTED, reset: null }],
  [TaskManagement.ABORT_TASK_SET, { isOfOne: false, stopWith: ScsiResponse.ABORTED, reset: null }],
  [TaskManagement.CLEAR_TASK_SET, { isOfOne: false, stopWith: ScsiResponse.ABORTED, reset: null }],
  [TaskManagement.I_T_NEXUS_RESET, { isOfOne: false, stopWith: ScsiResponse.RESET, reset: 'nexus' }],
  [TaskManagement.LOGICAL_UNIT_RESET, { isOfOne: false, stopWith: ScsiResponse.RESET, reset: 'unit' }],
  [TaskManagement.QUERY_TASK, { isOfOne: true, stopWith: null, reset: null }],
  [TaskManagement.QUERY_TASK_SET, { isOfOne: false, stopWith: null, reset: null }],
])

/** A request on the control queue. */
export function startControl(host: ControlHost, request: GuestRequest): void {
  const size = Math.min(request.readableBytes, TaskManagementRequest.size)
  if (size < TaskManagementRequest.type.size) {
    request.complete(0)
    return
  }
  const { scratch } = host
  request.segments.copyTo(host.scratchAddress, 0, size)
  const type = TaskManagementRequest.type.get(scratch, 0)
  if (type === ControlType.TASK_MANAGEMENT && size === TaskManagementRequest.size) {
    manage(host, request)
  } else if (type === ControlType.TASK_MANAGEMENT) {
    answer(host, request, ScsiResponse.FAILURE)
  } else {
    notify(host, request, size)
  }
}

/** No disk has notifications: none is enabled. */
function notify(host: ControlHost, request: GuestRequest, size: number): void {
  const { scratch, scratchAddress } = host
  const isKnown =
    TaskManagementRequest.type.get(scratch, 0) <= ControlType.NOTIFICATION_SUBSCRIBE &&
    size >= NotificationRequest.size
  NotificationResponse.eventActual.set(scratch, 0, 0)
  NotificationResponse.response.set(scratch, 0, isKnown ? ScsiResponse.OK : ScsiResponse.FAILURE)
  const written = Math.min(request.writableBytes, NotificationResponse.size)
  if (written > 0) request.segments.copyFrom(scratchAddress, request.readableBytes, written)
  request.complete(written)
}

function manage(host: ControlHost, request: GuestRequest): void {
  const { scratch } = host
  const plan = PLANS.get(TaskManagementRequest.subtype.get(scratch, 0))
  const lun = TaskManagementRequest.lun.get(scratch, 0)
  const [one, target, high, low] = lun
  const unit = one === 1 ? host.unit(target!) : null
  if (unit === null) answer(host, request, ScsiResponse.BAD_TARGET)
  else if ((high! & 0x3f) !== 0 || low !== 0) answer(host, request, ScsiResponse.INCORRECT_LUN)
  else if (plan === undefined) answer(host, request, ScsiResponse.FUNCTION_REJECTED)
  else ask(host, request, unit, plan)
}

function ask(host: ControlHost, request: GuestRequest, unit: LogicalUnit, plan: Plan): void {
  const { scratch, nexus, initiator } = host
  const id = [TaskManagementRequest.idLow.get(scratch, 0), TaskManagementRequest.idHigh.get(scratch, 0)]
  const message: ManageTasks = {
    nexus,
    initiator,
    bdev: unit.bdev,
    target: unit.number,
    id: plan.isOfOne ? [id[0]!, id[1]!] : null,
    stopWith: plan.stopWith,
    reset: plan.reset,
  }
  host.reactor.control.call<number>(ScsiTopic.MANAGE, message).then(
    count => {
      const isFound = plan.stopWith === null && count > 0
      answer(host, request, isFound ? ScsiResponse.FUNCTION_SUCCEEDED : ScsiResponse.OK)
    },
    error => {
      host.log.error(`${initiator}: task management for ${unit.bdev}: ${error}`)
      answer(host, request, ScsiResponse.FAILURE)
    },
  )
}

function answer(host: ControlHost, request: GuestRequest, response: number): void {
  const written = Math.min(request.writableBytes, TaskManagementResponse.size)
  TaskManagementResponse.response.set(host.scratch, 0, response)
  if (written > 0) request.segments.copyFrom(host.scratchAddress, request.readableBytes, written)
  request.complete(written)
}
