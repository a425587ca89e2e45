/** `qpair doctor`: the machine that runs qpair, and the one that connects to it. */
import * as daemon from './checks/daemon.ts'
import { kvmDevice } from './checks/kvm.ts'
import * as nvmeHost from './checks/nvme-host.ts'
import { type Check, findAll } from './finding.ts'
import { runReport } from './report.ts'

const HELP = `Usage: qpair doctor [--json]

Checks this host: as the machine that runs qpair (Node.js, io_uring, memory, limits, ports) and as one that connects to it
(the kernel's NVMe modules and tools). For guests there is \`qpair host validate\`. Exit code 1 when the daemon cannot run
here.
`

/** Without KVM guests are slow; the daemon does not mind. */
const kvm: Check = async host => {
  const finding = await kvmDevice(host)
  return finding.level === 'fail' ? { ...finding, level: 'note' } : finding
}

const CHECKS: readonly Check[] = [
  daemon.node,
  daemon.kernel,
  daemon.ioUring,
  daemon.memory,
  daemon.processors,
  daemon.openFiles,
  daemon.lockedMemory,
  daemon.portIsFree(4420, 'the port of NVMe/TCP'),
  daemon.portIsFree(8009, 'the port of NVMe/TCP discovery'),
  daemon.rpcSocket,
  nvmeHost.nvmeModule,
  nvmeHost.nativeMultipath,
  nvmeHost.nvmeCli,
  kvm,
]

export const doctor = (argv: readonly string[]): Promise<number> =>
  runReport('doctor', HELP, argv, host => findAll(CHECKS, host))
