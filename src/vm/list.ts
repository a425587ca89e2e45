/** All guests on this machine, ours and libvirt's, in one list. */
import { RpcError } from '../core/errors.ts'
import { processOfUuid } from './inspect/threads.ts'
import type { LibvirtGuests } from './libvirt/guests.ts'
import type { OwnGuests } from './run/own-guests.ts'

export interface ListedGuest {
  readonly name: string
  readonly owner: 'qpair' | 'libvirt'
  /** libvirt's words. */
  readonly state: string
  readonly cpus: number
  /** In bytes. */
  readonly memory: number
  readonly pid?: number
  readonly accel?: string
  readonly disks: string[]
  readonly console?: string
  readonly console_taken?: boolean
  readonly vnc?: string
}

/** Without a libvirt that was asked for by name, its silence only means that it has no guests. */
export async function listGuests(
  uri: string | undefined,
  own: OwnGuests,
  libvirt: Pick<LibvirtGuests, 'list'>,
): Promise<ListedGuest[]> {
  const ours = own.list().map(async (guest): Promise<ListedGuest> => {
    const { name, cpus, memoryBytes, accel, process, disks, vnc } = guest.record
    const [state, isConsoleTaken] = await Promise.all([guest.state(), guest.isConsoleTaken()])
    return {
      ...{
        name,
        owner: 'qpair',
        state,
        cpus,
        memory: memoryBytes,
        pid: process.pid,
        accel,
      },
      ...{ disks: disks.map(({ target, volume }) => `${target} (${volume})`), console: guest.paths.console },
      ...(isConsoleTaken && { console_taken: true }),
      ...(vnc !== undefined && { vnc }),
    }
  })
  return [...(await Promise.all(ours)), ...(await ofLibvirt(uri, libvirt))]
}

/** Nothing of one that does not run, or whose process cannot be seen from here. */
function pidOf(facts: ReadonlyMap<string, string>): { pid?: number } {
  const uuid = facts.get('State') === 'shut off' ? undefined : facts.get('UUID')
  const pid = uuid === undefined ? undefined : processOfUuid(uuid)
  return pid === undefined ? {} : { pid }
}

async function ofLibvirt(
  uri: string | undefined,
  libvirt: Pick<LibvirtGuests, 'list'>,
): Promise<ListedGuest[]> {
  try {
    const domains = await libvirt.list(uri)
    return domains.map(({ name, facts, disks }) => ({
      ...pidOf(facts),
      ...{ name, owner: 'libvirt', state: facts.get('State') ?? 'no state' },
      cpus: Number(facts.get('CPU(s)') ?? 0),
      memory: 1024 * Number.parseInt(facts.get('Max memory') ?? '0', 10),
      disks: disks.map(({ target, source }) => (source === undefined ? target : `${target} (${source})`)),
    }))
  } catch (error) {
    const isAbsent = error instanceof RpcError && (error.code === 'ENOENT' || error.code === 'ECONNREFUSED')
    if (isAbsent && uri === undefined) return []
    throw error
  }
}
