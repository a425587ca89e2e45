/** `bdev_nvme_attach_controller`, `bdev_nvme_detach_controller` */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, int32, uint32, uint64 } from '../../rpc/params.ts'
import { addressOf, checkNqn, checkReconnect, sourceOf } from '../attach-options.ts'
import { defaultHostNqn } from '../host-identity.ts'
import { toPolicy } from '../multipath-options.ts'
import type { ControllerOptions, NamedController, Path, PathOptions } from '../named-controller.ts'
import type { NvmeControllers } from '../nvme-controllers.ts'
import { multipathOpts, type NvmeContext } from './context.ts'

const attachParams = z.object({
  name: z.string().min(1).describe('Name of the controller: its devices are called after it, Nvme0n1'),
  trtype: z.string().describe('TCP'),
  traddr: z.string().describe('IP address of the target'),
  adrfam: z.string().optional().describe('ipv4 or ipv6; follows from the address'),
  trsvcid: z.string().optional().describe('Port of the target; 4420 when absent'),
  subnqn: z.string().optional().describe('NQN of the subsystem'),
  hostnqn: z.string().optional().describe('NQN of this host; one made of the machine-id when absent'),
  hostaddr: z.string().optional().describe('IP address to connect from'),
  hostsvcid: z.string().optional().describe('Port to connect from'),
  prchk_reftag: z.boolean().optional().describe('Accepted: there is no protection information to check'),
  prchk_guard: z.boolean().optional().describe('Accepted: there is no protection information to check'),
  hdgst: z.boolean().optional().describe('Only false: header digests are not supported'),
  ddgst: z.boolean().optional().describe('Only false: data digests are not supported'),
  fabrics_connect_timeout_us: uint64
    .optional()
    .describe('Time for each command while connecting; ten seconds when absent'),
  multipath: z
    .enum(['disable', 'failover', 'multipath'])
    .default('multipath')
    .describe('What to do when the controller exists: refuse, add an address to turn to, or add a path'),
  num_io_queues: z
    .int()
    .min(1)
    .max(65536)
    .default(1024)
    .describe('Accepted: each reactor has one I/O queue to each path'),
  ctrlr_loss_timeout_sec: int32
    .optional()
    .describe('A path that is gone for so long is deleted; -1 never, 0 with reconnect_delay_sec 0'),
  reconnect_delay_sec: uint32
    .optional()
    .describe('Time between two attempts to connect again; 0 for one attempt only'),
  fast_io_fail_timeout_sec: uint32
    .optional()
    .describe('I/O that has no path waits for so long before it fails; 0 for as long as the path is tried'),
  psk: z.string().optional().describe('Not supported'),
  dhchap_key: z.string().optional().describe('Not supported'),
  dhchap_ctrlr_key: z.string().optional().describe('Not supported'),
  max_bdevs: uint32.min(1).default(128).describe('Names in the answer, at most'),
  multipath_opts: multipathOpts.optional().describe('How I/O is spread over the paths'),
  disable_sq_flow_control: z.boolean().optional().describe('Do without SQ flow control'),
})

type AttachParams = z.output<typeof attachParams>

export const bdevNvmeAttachController = method({
  name: 'bdev_nvme_attach_controller',
  summary: 'Connects to an NVMe/TCP controller, or adds a path to one, and answers with the new devices.',
  params: attachParams,
  result: z.array(z.string()),
  errors: {
    EALREADY: 'a controller has that name and multipath is disabled, or it has that path',
    EINVAL: 'the path does not lead to the same subsystem, host or namespaces',
    EIO: 'the controller cannot be reached or refuses',
    ENOTSUP: 'another transport, digests, TLS or authentication are asked for',
    ERANGE: 'there are more namespaces than max_bdevs',
  },
  saves: true,
  concurrent: true,
  ignored: ['priority', 'allow_unrecognized_csi'],
  cli: {
    flags: {
      name: 'b',
      trtype: 't',
      traddr: 'a',
      adrfam: 'f',
      trsvcid: 's',
      subnqn: 'n',
      hostnqn: 'q',
      hostaddr: 'i',
      hostsvcid: 'c',
      prchk_reftag: 'r',
      prchk_guard: 'g',
      hdgst: 'e',
      ddgst: 'd',
      fabrics_connect_timeout_us: 'fabrics-timeout',
      multipath: 'x',
      ctrlr_loss_timeout_sec: 'l',
      reconnect_delay_sec: 'o',
      fast_io_fail_timeout_sec: 'u',
      psk: 'k',
      max_bdevs: 'm',
      priority: 'p',
      allow_unrecognized_csi: { on: 'U' },
      'multipath_opts.policy': 'policy',
      'multipath_opts.selector': 'selector',
      'multipath_opts.min_io': 'min-io',
    },
    commands: ['nvme attach'],
  },
  async run(params, { nvme }: NvmeContext) {
    refuseUnsupported(params)
    const target = addressOf(params)
    const { subnqn } = params
    if (subnqn === undefined) {
      throw new RpcError('INVALID_PARAMS', `subnqn is missing: name the subsystem at ${target.host} (-n)`)
    }
    checkNqn('subnqn', subnqn)
    const source = sourceOf(params.hostaddr, params.hostsvcid)
    const path: PathOptions = { target, source, mode: params.multipath }
    const existing = nvme.find(params.name)
    const devices =
      existing === undefined
        ? await nvme.attach(newController(nvme, params, subnqn), path)
        : await nvme.addPath(existing, checkedPath(existing, params, path))
    if (devices.length > params.max_bdevs) {
      throw new RpcError(
        'ERANGE',
        `${params.name} has ${devices.length} namespaces, more than max_bdevs, ${params.max_bdevs}: all are attached`,
      )
    }
    return devices.map(({ name }) => name)
  },
})

function refuseUnsupported(params: AttachParams): void {
  const { hdgst, ddgst, psk, dhchap_key, dhchap_ctrlr_key } = params
  if (hdgst === true || ddgst === true) {
    throw new RpcError('ENOTSUP', 'hdgst, ddgst: digests are not supported: leave them out, TCP checks too')
  }
  if (psk !== undefined) throw new RpcError('ENOTSUP', 'psk: TLS is not supported: use a trusted network')
  if (dhchap_key !== undefined || dhchap_ctrlr_key !== undefined) {
    throw new RpcError(
      'ENOTSUP',
      'dhchap_key: in-band authentication is not supported: allow the host by NQN',
    )
  }
}

function newController(nvme: NvmeControllers, params: AttachParams, subnqn: string): ControllerOptions {
  const { hostnqn } = params
  if (hostnqn !== undefined) checkNqn('hostnqn', hostnqn)
  const { defaults } = nvme
  const reconnect = {
    ctrlrLossTimeoutSec: params.ctrlr_loss_timeout_sec ?? defaults.reconnect.ctrlrLossTimeoutSec,
    reconnectDelaySec: params.reconnect_delay_sec ?? defaults.reconnect.reconnectDelaySec,
    fastIoFailTimeoutSec: params.fast_io_fail_timeout_sec ?? defaults.reconnect.fastIoFailTimeoutSec,
  }
  checkReconnect(reconnect)
  return {
    name: params.name,
    subnqn,
    hostnqn: hostnqn ?? defaultHostNqn(),
    isHostNqnGiven: hostnqn !== undefined,
    reconnect,
    fabricsTimeoutUs: params.fabrics_connect_timeout_us ?? 0,
    disableSqFlowControl: params.disable_sq_flow_control ?? false,
    policy: params.multipath_opts === undefined ? defaults.policy : toPolicy(params.multipath_opts),
  }
}

/** The rules for a further path, with SPDK's messages. */
function checkedPath(controller: NamedController, params: AttachParams, path: PathOptions): PathOptions {
  const { name } = params
  const refuse = (code: 'EALREADY' | 'EINVAL', what: string): never => {
    throw new RpcError(code, `A controller named ${name} already exists ${what}`)
  }
  const { subnqn, hostnqn } = controller.options
  if (path.mode === 'disable' || controller.paths.some(({ mode }) => mode === 'disable')) {
    refuse('EALREADY', 'and multipath is disabled: choose another name, or attach with multipath (-x)')
  }
  const { host, port } = path.target
  const isKnown = controller.paths.some(({ targets, source }) => {
    const isSameSource = path.source === undefined || path.source.host === source?.host
    return isSameSource && targets.some(target => target.host === host && target.port === port)
  })
  if (isKnown) refuse('EALREADY', `with the specified network path, ${host} port ${port}`)
  if (params.subnqn !== subnqn) refuse('EINVAL', `but uses a different subnqn (${subnqn})`)
  if (params.hostnqn !== undefined && params.hostnqn !== hostnqn) {
    refuse('EINVAL', `but uses a different hostnqn (${hostnqn})`)
  }
  if (params.prchk_reftag === true || params.prchk_guard === true) {
    refuse('EINVAL', 'so that no PI options may be specified for a further path')
  }
  return { ...path, source: path.source ?? controller.paths[0]?.source }
}

export const bdevNvmeDetachController = method({
  name: 'bdev_nvme_detach_controller',
  summary: 'Detaches a controller with all its paths and devices, or only the paths that are described.',
  params: z.object({
    name: z.string().describe('The controller'),
    trtype: z.string().optional().describe('Only paths of that transport: TCP'),
    traddr: z.string().optional().describe('Only paths to that address'),
    adrfam: z.string().optional().describe('Only paths of that address family'),
    trsvcid: z.string().optional().describe('Only paths to that port'),
    subnqn: z.string().optional().describe('Only paths to that subsystem'),
    hostaddr: z.string().optional().describe('Only paths from that address'),
    hostsvcid: z.string().optional().describe('Only paths from that port'),
  }),
  result: done,
  errors: { ENODEV: 'no controller has that name', ENXIO: 'none of its paths is as described' },
  saves: true,
  cli: {
    positional: ['name'],
    flags: {
      trtype: 't',
      traddr: 'a',
      adrfam: 'f',
      trsvcid: 's',
      subnqn: 'n',
      hostaddr: 'i',
      hostsvcid: 'c',
    },
    commands: ['nvme detach'],
  },
  async run(params, { nvme }: NvmeContext) {
    const controller = nvme.get(params.name)
    let found = 0
    for (const path of [...controller.paths]) found += await detachMatching(nvme, path, params)
    if (found === 0) {
      const paths = controller.paths.flatMap(({ targets }) =>
        targets.map(({ host, port }) => `${host}:${port}`),
      )
      throw new RpcError('ENXIO', `no path of ${params.name} is like that: there is ${paths.join(', ')}`)
    }
    return true as const
  },
})

interface PathFilter {
  readonly trtype?: string | undefined
  readonly traddr?: string | undefined
  readonly adrfam?: string | undefined
  readonly trsvcid?: string | undefined
  readonly subnqn?: string | undefined
  readonly hostaddr?: string | undefined
  readonly hostsvcid?: string | undefined
}

/** Says how many addresses of the path were detached. */
async function detachMatching(nvme: NvmeControllers, path: Path, filter: PathFilter): Promise<number> {
  const differs = (given: string | undefined, own: string | undefined): boolean =>
    given !== undefined && given.toLowerCase() !== own?.toLowerCase()
  const { source, controller } = path
  const isOther =
    differs(filter.trtype, 'tcp') ||
    differs(filter.subnqn, controller.options.subnqn) ||
    differs(filter.hostaddr, source?.host) ||
    differs(filter.hostsvcid, source === undefined ? undefined : String(source.port))
  if (isOther) return 0
  const matching = path.targets.filter(
    ({ host, port }) =>
      !differs(filter.traddr, host) &&
      !differs(filter.trsvcid, String(port)) &&
      !differs(filter.adrfam, host.includes(':') ? 'ipv6' : 'ipv4'),
  )
  if (matching.length === path.targets.length) await nvme.detachPath(path)
  else for (const target of matching) await nvme.removeTarget(path, target)
  return matching.length
}
