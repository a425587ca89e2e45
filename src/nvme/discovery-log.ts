/** The discovery log page, read whole: in pieces, and again when it changed meanwhile (Base 2.1, section 5.1.12.3.1). */
import { isIP } from 'node:net'
import { DiscoveryLogEntry, DiscoveryLogHeader, LogPageId } from '../spec/nvme-log.ts'
import { SubsystemType, TransportType } from '../spec/nvmf.ts'
import type { AdminQueue } from './admin-queue.ts'
import type { DiscoveryEntry } from './messages.ts'

/** More than any target has; a larger number is a controller's mistake. */
const ENTRIES_MAX = 4096
/** A log that changes each time it is read is not worth another try. */
const ATTEMPTS = 10

export async function readDiscoveryLog(admin: AdminQueue): Promise<DiscoveryEntry[]> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const header = await admin.getLogPage(LogPageId.DISCOVERY, 0, DiscoveryLogHeader.size, true)
    const count = DiscoveryLogHeader.numrec.get(header, 0)
    if (count > ENTRIES_MAX)
      throw new Error(`the discovery log has ${count} entries, more than ${ENTRIES_MAX}`)
    const entries: DiscoveryEntry[] = []
    for (let i = 0; i < count; i++) {
      const offset = DiscoveryLogHeader.size + i * DiscoveryLogEntry.size
      const entry = await admin.getLogPage(LogPageId.DISCOVERY, offset, DiscoveryLogEntry.size, true)
      entries.push(...parseEntry(entry))
    }
    // The last read arms the event again; what it shows must still be what was read.
    const after = await admin.getLogPage(LogPageId.DISCOVERY, 0, DiscoveryLogHeader.size)
    const { genctr } = DiscoveryLogHeader
    if (genctr.get(after, 0) === genctr.get(header, 0)) return entries
  }
  throw new Error(`the discovery log changed ${ATTEMPTS} times while it was read`)
}

function parseEntry(entry: DataView): DiscoveryEntry[] {
  const subtype = DiscoveryLogEntry.subtype.get(entry, 0)
  // The third kind is the discovery subsystem itself, which is known already.
  if (subtype !== SubsystemType.NVM && subtype !== SubsystemType.REFERRAL) return []
  const host = DiscoveryLogEntry.traddr.get(entry, 0).replace(/\0.*$/s, '')
  const port = Number(DiscoveryLogEntry.trsvcid.get(entry, 0).replace(/\0.*$/s, ''))
  const isTcp = DiscoveryLogEntry.trtype.get(entry, 0) === TransportType.TCP
  const isUsable = isTcp && isIP(host) !== 0 && Number.isInteger(port) && port > 0 && port < 65536
  return [
    {
      kind: subtype === SubsystemType.NVM ? 'subsystem' : 'referral',
      target: isUsable ? { host, port } : undefined,
      subnqn: DiscoveryLogEntry.subnqn.get(entry, 0),
    },
  ]
}
