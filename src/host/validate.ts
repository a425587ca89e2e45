/** `qpair host validate`: what `virt-host-validate` looks at, and what qpair needs to give guests their disks. */
import * as daemon from './checks/daemon.ts'
import * as guests from './checks/guests.ts'
import * as kvm from './checks/kvm.ts'
import { type Check, type Finding, findAll } from './finding.ts'
import type { Host } from './host.ts'
import { runReport } from './report.ts'

const HELP = `Usage: qpair host validate [--json]

Checks whether this machine can run guests, and qpair beside them: hardware virtualisation, /dev/kvm (there, accessible,
working), /dev/vhost-net, /dev/net/tun, control groups, IOMMU, secure guests, QEMU, libvirt, AppArmor or SELinux; the kernel,
io_uring, memory and limits. Each finding is PASS, NOTE, WARN or FAIL with what was found and, where something can be done,
what to type. Exit code 0 without a FAIL, 1 with one, 2 for a wrong command line.
`

const CHECKS: readonly Check[] = [
  kvm.hardwareVirtualization,
  kvm.kvmDevice,
  kvm.kvmAccess,
  kvm.kvmWorks,
  guests.vhostNet,
  guests.tun,
  ...guests.CGROUP_CONTROLLERS.map(guests.cgroupController),
  guests.iommu,
  kvm.secureGuests,
  guests.qemu,
  guests.libvirt,
  guests.confinement,
  daemon.node,
  daemon.kernel,
  daemon.ioUring,
  daemon.memory,
  daemon.openFiles,
]

/** Every finding about a machine, in the order of the report. */
export const validate = (host: Host): Promise<Finding[]> => findAll(CHECKS, host)

export const hostValidate = (argv: readonly string[]): Promise<number> =>
  runReport('host validate', HELP, argv, validate)
