/** Methods that act on controllers and on the choice of paths. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, uint16, uint32 } from '../../rpc/params.ts'
import { toPolicy } from '../multipath-options.ts'
import type { Path } from '../named-controller.ts'
import type { NvmeControllers } from '../nvme-controllers.ts'
import { multipathPolicy, multipathSelector, type NvmeContext } from './context.ts'

const pathParams = z.object({
  name: z.string().describe('The controller'),
  cntlid: uint16.optional().describe('Only the path with that controller id; all paths when absent'),
})

const pathErrors = { ENODEV: 'no controller has that name, or no path that controller id' } as const

function pathsOf(nvme: NvmeControllers, name: string, cntlid: number | undefined): Path[] {
  const { paths } = nvme.get(name)
  if (cntlid === undefined) return [...paths]
  const path = paths.find(({ status }) => status.controller?.cntlid === cntlid)
  if (path !== undefined) return [path]
  const ids = paths.map(({ status }) => status.controller?.cntlid ?? 'one never connected')
  throw new RpcError('ENODEV', `${name} has no controller id ${cntlid}: there is ${ids.join(', ')}`)
}

const place = ({ status }: Path): string => `${status.target.host} port ${status.target.port}`

export const bdevNvmeResetController = method({
  name: 'bdev_nvme_reset_controller',
  summary:
    'Drops the connections to a controller and makes them anew; I/O waits or goes other ways meanwhile.',
  params: pathParams,
  result: done,
  errors: {
    ...pathErrors,
    EIO: 'a path could not be connected again',
    EALREADY: 'a path is disabled',
  },
  concurrent: true,
  cli: { positional: ['name'], flags: { cntlid: 'c' } },
  async run({ name, cntlid }, { nvme }: NvmeContext) {
    // One after another, so that there is a way for I/O all the time.
    for (const path of pathsOf(nvme, name, cntlid)) {
      if (path.status.state === 'disabled') {
        throw new RpcError('EALREADY', `${place(path)} is disabled: use bdev_nvme_enable_controller`)
      }
      const { state, reason } = await nvme.commandAndWait(
        path,
        { pathId: path.id, command: 'reset' },
        status => status.state !== 'connecting',
      )
      if (state !== 'ready') throw new RpcError('EIO', `${name}, ${place(path)}: ${reason}`)
    }
    return true as const
  },
})

export const bdevNvmeDisableController = method({
  name: 'bdev_nvme_disable_controller',
  summary: 'Disconnects a controller and leaves it so until it is enabled again.',
  params: pathParams,
  result: done,
  errors: { ...pathErrors, EALREADY: 'it is disabled' },
  cli: { positional: ['name'], flags: { cntlid: 'c' } },
  async run({ name, cntlid }, { nvme }: NvmeContext) {
    for (const path of pathsOf(nvme, name, cntlid)) {
      if (path.status.state === 'disabled')
        throw new RpcError('EALREADY', `${place(path)} is disabled already`)
      await nvme.commandUntil(path, { pathId: path.id, command: 'disable' }, 'disabled')
    }
    return true as const
  },
})

export const bdevNvmeEnableController = method({
  name: 'bdev_nvme_enable_controller',
  summary: 'Connects a controller that was disabled.',
  params: pathParams,
  result: done,
  errors: { ...pathErrors, EALREADY: 'it is enabled', EIO: 'it cannot be reached' },
  concurrent: true,
  cli: { positional: ['name'], flags: { cntlid: 'c' } },
  async run({ name, cntlid }, { nvme }: NvmeContext) {
    for (const path of pathsOf(nvme, name, cntlid)) {
      if (path.status.state !== 'disabled') throw new RpcError('EALREADY', `${place(path)} is not disabled`)
      const { state, reason } = await nvme.commandAndWait(
        path,
        { pathId: path.id, command: 'enable' },
        status => status.state !== 'connecting',
      )
      if (state !== 'ready') throw new RpcError('EIO', `${name}, ${place(path)}: ${reason}`)
    }
    return true as const
  },
})

export const bdevNvmeSetMultipathPolicy = method({
  name: 'bdev_nvme_set_multipath_policy',
  summary: 'Says how the I/O of a device is spread over its paths.',
  params: z.object({
    name: z.string().describe('The device: Nvme0n1'),
    policy: multipathPolicy.describe('One path at a time, or all that are equally good'),
    selector: multipathSelector.optional().describe('For active_active; round_robin when absent'),
    rr_min_io: uint32.optional().describe('I/Os on a path before the next has its turn; 1 when absent'),
  }),
  result: done,
  errors: {
    ENODEV: 'no NVMe device has that name',
    EINVAL: 'a selector for active_passive, or rr_min_io without round_robin',
  },
  saves: true,
  cli: {
    flags: {
      name: ['b', 'name'],
      policy: ['p', 'policy'],
      selector: ['s', 'selector'],
      rr_min_io: ['r', 'rr-min-io'],
    },
  },
  async run({ name, policy, selector, rr_min_io }, { nvme }: NvmeContext) {
    const chosen = toPolicy({ policy, selector, min_io: rr_min_io })
    // A device that is not there yet, since its paths are down, is told when it comes.
    const bdev = nvme.isRestoring ? name : nvme.ownerOf(name).info.name
    await nvme.setPolicy(bdev, { ...chosen, preferredPathId: nvme.policyOf(bdev).preferredPathId })
    return true as const
  },
})

export const bdevNvmeSetPreferredPath = method({
  name: 'bdev_nvme_set_preferred_path',
  summary: 'Says which path a device uses first, with the policy active_passive.',
  params: z.object({
    name: z.string().describe('The device: Nvme0n1'),
    cntlid: uint16.describe('Controller id of the path'),
  }),
  result: done,
  errors: { ENODEV: 'no NVMe device has that name, or no path that controller id' },
  cli: { flags: { name: ['b', 'name'], cntlid: ['c', 'cntlid'] } },
  async run({ name, cntlid }, { nvme }: NvmeContext) {
    const { controller, info } = nvme.ownerOf(name)
    const [path] = pathsOf(nvme, controller.name, cntlid)
    await nvme.setPolicy(info.name, { ...nvme.policyOf(info.name), preferredPathId: path!.id })
    return true as const
  },
})
