/** The targets of an iSCSI server, by libiscsi's calls that wait: on one of Node's threads. */
import type { LibraryHandle } from 'koffi'
import { blocking, stringAt } from './blocking.ts'
import { openLibiscsi } from './libiscsi.ts'
import { viewAt } from './memory.ts'

const SESSION_DISCOVERY = 1
/** Seconds for each step. */
const TIMEOUT_S = 15

let loaded: ReturnType<typeof calls> | undefined

/**
 * The names of the targets that a server (`HOST:PORT`) shows this initiator, or libiscsi's reason why not. Throws `RpcError`
 * ENOTSUP without libiscsi.
 */
export async function targetsAt(portal: string, initiator: string): Promise<string[] | string> {
  loaded ??= calls(openLibiscsi())
  const library = loaded
  const context = library.create(initiator)
  if (context === 0) return 'libiscsi has no memory'
  try {
    library.setType(context, SESSION_DISCOVERY)
    library.setTimeout(context, TIMEOUT_S)
    library.noReconnect(context, 1)
    const isIn = (await library.connect(context, portal)) === 0 && (await library.login(context)) === 0
    if (!isIn) return stringAt(library.error(context)).trim()
    const list = await library.discover(context)
    // No list is an empty one, or a failure with a reason.
    if (list === 0) return stringAt(library.error(context)).trim() || []
    const names = namesAt(list)
    library.free(context, list)
    await library.logout(context)
    return names
  } finally {
    library.destroy(context)
  }
}

/** `struct iscsi_discovery_address`: the next one, the target's name, its portals; a pointer each. */
function namesAt(list: number): string[] {
  const names: string[] = []
  for (let at = list; at !== 0; ) {
    const entry = viewAt(at, 16)
    names.push(stringAt(Number(entry.getBigUint64(8, true))))
    at = Number(entry.getBigUint64(0, true))
  }
  return names
}

function calls(library: LibraryHandle) {
  return {
    create: library.func('uintptr_t iscsi_create_context(const char *)'),
    destroy: library.func('int iscsi_destroy_context(uintptr_t)'),
    setType: library.func('int iscsi_set_session_type(uintptr_t, int)'),
    setTimeout: library.func('int iscsi_set_timeout(uintptr_t, int)'),
    noReconnect: library.func('void iscsi_set_noautoreconnect(uintptr_t, int)'),
    error: library.func('uintptr_t iscsi_get_error(uintptr_t)'),
    free: library.func('void iscsi_free_discovery_data(uintptr_t, uintptr_t)'),
    connect: blocking(library.func('int iscsi_connect_sync(uintptr_t, const char *)')),
    login: blocking(library.func('int iscsi_login_sync(uintptr_t)')),
    logout: blocking(library.func('int iscsi_logout_sync(uintptr_t)')),
    discover: blocking(library.func('uintptr_t iscsi_discovery_sync(uintptr_t)')),
  }
}
