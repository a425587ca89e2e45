/**
 * The logical units of an iSCSI target and how large they are, by libiscsi's calls that wait: on one of Node's threads, for
 * whoever looks at a target now and then. Disks have a session of their own kind.
 */
import type { LibraryHandle } from 'koffi'
import { blocking, stringAt } from './blocking.ts'
import { openLibiscsi } from './libiscsi.ts'
import { viewAt } from './memory.ts'

export interface TargetLogin {
  /** `HOST:PORT`. */
  readonly portal: string
  readonly target: string
  readonly initiator: string
  readonly credentials: { readonly user: string; readonly password: string } | undefined
}

export interface TargetUnit {
  readonly lun: number
  readonly sizeBytes: number
}

const SESSION_NORMAL = 2
/** Seconds for each step. */
const TIMEOUT_S = 15
const REPORT_ALL = 0
const REPORT_SIZE = 65536

let loaded: ReturnType<typeof calls> | undefined

/** The disks that the target shows this initiator, or libiscsi's reason why not. Throws `RpcError` ENOTSUP without libiscsi. */
export async function targetUnits(login: TargetLogin): Promise<TargetUnit[] | string> {
  loaded ??= calls(openLibiscsi())
  const library = loaded
  const context = library.create(login.initiator)
  if (context === 0) return 'libiscsi has no memory'
  try {
    library.setType(context, SESSION_NORMAL)
    library.setTimeout(context, TIMEOUT_S)
    library.noReconnect(context, 1)
    library.setTarget(context, login.target)
    const { credentials } = login
    if (credentials !== undefined) library.setCredentials(context, credentials.user, credentials.password)
    const isIn = (await library.connect(context, login.portal)) === 0 && (await library.login(context)) === 0
    if (!isIn) return stringAt(library.error(context)).trim()
    const luns = await library.answer(await library.reportLuns(context, REPORT_ALL, REPORT_SIZE), lunsAt)
    if (luns === undefined) return stringAt(library.error(context)).trim()
    const units: TargetUnit[] = []
    for (const lun of luns) {
      // The first command to a unit hears that it is new to this session.
      for (let attempt = 0; attempt < 2; attempt++) {
        const task = await library.readCapacity(context, lun)
        const sizeBytes = library.answer(task, capacityAt)
        if (sizeBytes === undefined) continue
        units.push({ lun, sizeBytes })
        break
      }
    }
    await library.logout(context)
    return units
  } finally {
    library.destroy(context)
  }
}

/** `struct scsi_reportluns_list`: their number (u32), and each (u16) in the form of SAM's first two bytes. */
function lunsAt(address: number): number[] {
  const count = viewAt(address, 4).getUint32(0, true)
  const view = viewAt(address, 4 + count * 2)
  return Array.from({ length: count }, (_, index) => view.getUint16(4 + index * 2, true) & 0x3fff)
}

/** `struct scsi_readcapacity16`: the last block (u64), and the bytes of one (u32). */
function capacityAt(address: number): number {
  const view = viewAt(address, 12)
  return (Number(view.getBigUint64(0, true)) + 1) * view.getUint32(8, true)
}

function calls(library: LibraryHandle) {
  const statusOf = library.func('int scsi_task_get_status(uintptr_t, uintptr_t)')
  const unmarshall = library.func('uintptr_t scsi_datain_unmarshall(uintptr_t)')
  const free = library.func('void scsi_free_scsi_task(uintptr_t)')
  return {
    create: library.func('uintptr_t iscsi_create_context(const char *)'),
    destroy: library.func('int iscsi_destroy_context(uintptr_t)'),
    setType: library.func('int iscsi_set_session_type(uintptr_t, int)'),
    setTimeout: library.func('int iscsi_set_timeout(uintptr_t, int)'),
    noReconnect: library.func('void iscsi_set_noautoreconnect(uintptr_t, int)'),
    setTarget: library.func('int iscsi_set_targetname(uintptr_t, const char *)'),
    setCredentials: library.func(
      'int iscsi_set_initiator_username_pwd(uintptr_t, const char *, const char *)',
    ),
    error: library.func('uintptr_t iscsi_get_error(uintptr_t)'),
    connect: blocking(library.func('int iscsi_connect_sync(uintptr_t, const char *)')),
    login: blocking(library.func('int iscsi_login_sync(uintptr_t)')),
    logout: blocking(library.func('int iscsi_logout_sync(uintptr_t)')),
    reportLuns: blocking(library.func('uintptr_t iscsi_reportluns_sync(uintptr_t, int, int)')),
    readCapacity: blocking(library.func('uintptr_t iscsi_readcapacity16_sync(uintptr_t, int)')),
    /** What a task that succeeded has brought; the task is freed. */
    answer<T>(task: number, read: (address: number) => T): T | undefined {
      if (task === 0) return undefined
      try {
        const data = statusOf(task, 0) === 0 ? unmarshall(task) : 0
        return data === 0 ? undefined : read(data)
      } finally {
        free(task)
      }
    },
  }
}
