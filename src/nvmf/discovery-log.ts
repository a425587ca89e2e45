/**
 * The Discovery log (Base specification 2.1, section 5.1.12.3.1) as one host sees it through one listener: the discovery
 * service itself, every listener of every subsystem that the host may use, and referrals to other discovery services.
 */
import type { SocketAddress } from '../reactor/network.ts'
import { DiscoveryLogEntry, DiscoveryLogHeader } from '../spec/nvme-log.ts'
import {
  AddressFamily,
  CNTLID_DYNAMIC,
  DISCOVERY_NQN,
  DiscoveryFlag,
  SubsystemType,
  TransportRequirement,
  TransportType,
} from '../spec/nvmf.ts'
import { isWildcard, type TransportAddress, transportAddressOf } from './address.ts'
import type { SubsystemSnapshot, TargetSnapshot } from './messages.ts'

/** Who reads the log, and by which way. */
export interface DiscoveryReader {
  readonly hostnqn: string
  readonly listenerId: number
  /** The controller's end of the connection. */
  readonly local: SocketAddress
}

interface Entry {
  readonly subtype: number
  readonly subnqn: string
  readonly address: TransportAddress
  readonly portid: number
  readonly eflags: number
  readonly treq: number
}

const TREQ = TransportRequirement.SECURE_CHANNEL_NOT_SPECIFIED | TransportRequirement.DISABLE_SQ_FLOW

export function discoveryLog(
  subsystems: Iterable<SubsystemSnapshot>,
  target: TargetSnapshot,
  reader: DiscoveryReader,
): Uint8Array {
  const entries = [
    ...ownEntries(target, reader),
    ...subsystemEntries(subsystems, target, reader),
    ...target.referrals.map(
      (referral): Entry => ({
        subtype: SubsystemType.REFERRAL,
        subnqn: referral.subnqn,
        address: referral.address,
        portid: 0,
        eflags: 0,
        treq: referral.secureChannel ? TransportRequirement.SECURE_CHANNEL_REQUIRED : 0,
      }),
    ),
  ]
  const view = new DataView(
    new ArrayBuffer(DiscoveryLogHeader.size + entries.length * DiscoveryLogEntry.size),
  )
  DiscoveryLogHeader.genctr.set(view, 0, target.genctr)
  DiscoveryLogHeader.numrec.set(view, 0, entries.length)
  entries.forEach((entry, index) => {
    writeEntry(view, DiscoveryLogHeader.size + index * DiscoveryLogEntry.size, entry, target)
  })
  return new Uint8Array(view.buffer)
}

/** The service itself, by the address the host came to: it may stay connected. */
function ownEntries(target: TargetSnapshot, reader: DiscoveryReader): Entry[] {
  const listener = target.listeners.find(({ id }) => id === reader.listenerId)
  if (listener === undefined) return []
  return [
    {
      subtype: SubsystemType.CURRENT_DISCOVERY,
      subnqn: DISCOVERY_NQN,
      address: reachable(listener.address, reader),
      portid: listener.id,
      eflags: DiscoveryFlag.PERSISTENT_CONNECTION | DiscoveryFlag.DUPLICATE,
      treq: TREQ,
    },
  ]
}

function* subsystemEntries(
  subsystems: Iterable<SubsystemSnapshot>,
  { listeners, discoveryFilter }: TargetSnapshot,
  reader: DiscoveryReader,
): Generator<Entry> {
  const own = listeners.find(({ id }) => id === reader.listenerId)?.address
  for (const subsystem of subsystems) {
    if (subsystem.isDiscovery) continue
    if (!subsystem.allowAnyHost && !subsystem.hosts.includes(reader.hostnqn)) continue
    for (const { id, address } of subsystem.listeners) {
      if (discoveryFilter.address && address.traddr !== own?.traddr) continue
      if (discoveryFilter.svcid && address.trsvcid !== own?.trsvcid) continue
      yield {
        subtype: SubsystemType.NVM,
        subnqn: subsystem.nqn,
        address: reachable(address, reader),
        portid: id,
        eflags: 0,
        treq: TREQ,
      }
    }
  }
}

/** A listener on every address is told by the one that the host knows already. */
function reachable(address: TransportAddress, { local }: DiscoveryReader): TransportAddress {
  return isWildcard(address) ? { ...transportAddressOf(local), trsvcid: address.trsvcid } : address
}

function writeEntry(view: DataView, at: number, entry: Entry, target: TargetSnapshot): void {
  const { address } = entry
  DiscoveryLogEntry.trtype.set(view, at, TransportType.TCP)
  DiscoveryLogEntry.adrfam.set(view, at, address.adrfam === 'IPv6' ? AddressFamily.IPV6 : AddressFamily.IPV4)
  DiscoveryLogEntry.subtype.set(view, at, entry.subtype)
  DiscoveryLogEntry.treq.set(view, at, entry.treq)
  DiscoveryLogEntry.portid.set(view, at, entry.portid)
  DiscoveryLogEntry.cntlid.set(view, at, CNTLID_DYNAMIC)
  DiscoveryLogEntry.asqsz.set(view, at, target.transport?.maxAqDepth ?? 0)
  DiscoveryLogEntry.eflags.set(view, at, entry.eflags)
  DiscoveryLogEntry.trsvcid.set(view, at, address.trsvcid)
  DiscoveryLogEntry.subnqn.set(view, at, entry.subnqn)
  DiscoveryLogEntry.traddr.set(view, at, address.traddr)
}
