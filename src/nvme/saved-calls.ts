/** The calls that bring a daemon's NVMe controllers back: options, every path in its order, policies. */
import type { MethodCall } from '../rpc/config.ts'
import type { Path } from './named-controller.ts'
import type { NvmeControllers } from './nvme-controllers.ts'

export function savedCalls(nvme: NvmeControllers): MethodCall[] {
  const calls: MethodCall[] = []
  if (nvme.givenOptions !== undefined) {
    calls.push({ method: 'bdev_nvme_set_options', params: nvme.givenOptions })
  }
  for (const controller of nvme.list()) {
    for (const path of controller.paths) {
      if (!path.isDetaching && !path.isDiscovered) calls.push(...attachCalls(path))
    }
  }
  calls.push(...nvme.discovery.savedCalls())
  for (const [name, { policy, selector, rrMinIo }] of nvme.policies) {
    const spread = policy === 'active_active' && { selector, rr_min_io: rrMinIo }
    calls.push({ method: 'bdev_nvme_set_multipath_policy', params: { name, policy, ...spread } })
  }
  return calls
}

function attachCalls(path: Path): MethodCall[] {
  const { options, paths } = path.controller
  const { reconnect, policy } = options
  return path.targets.map(({ host, port }, index) => {
    const isFirst = path === paths[0] && index === 0
    const params = {
      name: options.name,
      trtype: 'TCP',
      adrfam: host.includes(':') ? 'IPv6' : 'IPv4',
      traddr: host,
      trsvcid: String(port),
      subnqn: options.subnqn,
      // An address to turn to is one of failover mode; the first of them is a path like any other.
      multipath: index > 0 ? 'failover' : path.mode,
      ...(isFirst && options.isHostNqnGiven && { hostnqn: options.hostnqn }),
      ...(path.source !== undefined && { hostaddr: path.source.host }),
      ...(path.source !== undefined && path.source.port !== 0 && { hostsvcid: String(path.source.port) }),
      ctrlr_loss_timeout_sec: reconnect.ctrlrLossTimeoutSec,
      reconnect_delay_sec: reconnect.reconnectDelaySec,
      fast_io_fail_timeout_sec: reconnect.fastIoFailTimeoutSec,
      ...(options.fabricsTimeoutUs > 0 && { fabrics_connect_timeout_us: options.fabricsTimeoutUs }),
      ...(options.disableSqFlowControl && { disable_sq_flow_control: true }),
      ...(isFirst && {
        multipath_opts: {
          policy: policy.policy,
          ...(policy.policy === 'active_active' && { selector: policy.selector, min_io: policy.rrMinIo }),
        },
      }),
    }
    return { method: 'bdev_nvme_attach_controller', params }
  })
}
