/**
 * libiscsi as typed functions, loaded when it is first needed: most machines have no iSCSI and need none. Contexts (one is
 * a session) and tasks (one is a SCSI command) are addresses. A context belongs to one thread at a time, and no call here
 * waits for anything.
 *
 * libiscsi tells of the end of a command by calling a C function from within `service`. None of ours is called: a SCSI
 * command may go without one, since libiscsi leaves its outcome in the task; and where there has to be one it is a function
 * of libiscsi's own that does nothing. So no JavaScript ever runs inside the library, nothing re-enters, and what ended is
 * found by looking at the tasks afterwards.
 */
import koffi, { type LibraryHandle } from 'koffi'
import { RpcError } from '../core/errors.ts'
import { stringAt } from './blocking.ts'

/** Debian has kept 7 for all of them; the others are those of the releases from 1.18 on, whose calls are the same. */
const NAMES = [7, 8, 9, 10, 11].map(version => `libiscsi.so.${version}`)

/** `ISCSI_SESSION_NORMAL`: not only discovery. */
const SESSION_NORMAL = 2

/** `enum iscsi_header_digest`. */
export const HeaderDigest = { NONE: 0, NONE_OR_CRC32C: 1, CRC32C: 3 } as const

/** `enum scsi_xfer_dir`. */
export const TransferDirection = { NONE: 0, READ: 1, WRITE: 2 } as const

/**
 * The beginning of `struct scsi_task` (scsi-lowlevel.h): what libiscsi says of a command that has ended. `STATUS` is that
 * of SCSI, or one of `TaskStatus`; the residual is a size.
 */
export const TaskField = { STATUS: 0, RESIDUAL_STATUS: 32, RESIDUAL: 40, SIZE: 48 } as const
/** What a context writes there itself, besides statuses of SCSI, is at least this. */
export const TASK_STATUS_OWN = 0x0f000000
/** `enum scsi_residual`: less came than was asked for. */
export const RESIDUAL_UNDERFLOW = 1

/** The beginning of `struct scsi_sense`: two ints, and the whole of it takes less than `SIZE`. */
export const SenseField = { KEY: 4, ASC: 8, SIZE: 64 } as const

/** Results are 0, or -1 with the reason in `error`, where nothing else is said. */
export interface Libiscsi {
  /** The context, or 0. */
  createContext(initiator: string): number
  /** Closes the socket and forgets what is outstanding: its data is not touched any more. Its tasks are the caller's. */
  destroyContext(context: number): void
  setTarget(context: number, target: string): void
  /** What the target knows this session by among those of the initiator: 24 bits, and 16. */
  setSessionId(context: number, id: number, qualifier: number): void
  setCredentials(context: number, user: string, password: string): void
  setTargetCredentials(context: number, user: string, password: string): void
  setHeaderDigest(context: number, digest: number): void
  /** Starts to connect; `portal` is a numeric address and a port. It is connected when `events` asks for POLLIN. */
  connect(context: number, portal: string): number
  /** Starts to log in: done when `isLoggedIn`, refused when it is not and `queueLength` is 0. */
  login(context: number): number
  /** Starts to log out: done when `queueLength` is 0. */
  logout(context: number): number
  isLoggedIn(context: number): number
  /** PDUs that wait to be sent or answered. */
  queueLength(context: number): number
  /** Changes with each `connect`. */
  descriptor(context: number): number
  /** What of POLLIN and POLLOUT it waits for. */
  events(context: number): number
  /** Reads and writes what there is, as POLLIN and POLLOUT in `events` allow. -1 when the connection is lost. */
  service(context: number, events: number): number
  /** What went wrong last. */
  error(context: number): string
  /** Where the target has sent us instead; empty when it has not. */
  redirection(context: number): string
  /** A command, or 0. `length` is how many bytes of data it has in its direction. */
  createTask(cdbSize: number, cdb: number, direction: number, length: number): number
  /** It is with no context any more. */
  freeTask(task: number): void
  /** The list is read until the command ends. */
  setDataIn(task: number, iovecs: number, count: number): void
  setDataOut(task: number, iovecs: number, count: number): void
  startTask(context: number, lun: number, task: number): number
  /** Copies the sense data to `sense`, which has room for `SenseField.SIZE`. */
  readSense(task: number, sense: number): void
}

let loaded: Libiscsi | undefined

/** Throws `RpcError` ENOTSUP that names the packages, when the machine has no libiscsi. */
export function libiscsi(): Libiscsi {
  loaded ??= load(openLibiscsi())
  return loaded
}

/** Throws as `libiscsi`. */
export function openLibiscsi(): LibraryHandle {
  for (const name of NAMES) {
    try {
      return koffi.load(name)
    } catch {
      // Of another version, or none.
    }
  }
  throw new RpcError(
    'ENOTSUP',
    'this machine has no libiscsi, which iSCSI disks need: install libiscsi7 (Debian, Ubuntu), libiscsi (Fedora, RHEL) or ' +
      'libiscsi9 (SUSE)',
  )
}

function load(library: LibraryHandle): Libiscsi {
  const call = (declaration: string): ReturnType<LibraryHandle['func']> => library.func(declaration)
  // `int (struct iscsi_context *)`, which reads a counter and leaves everything as it is.
  const nothing = Number(koffi.address(library.symbol('iscsi_get_nops_in_flight', 'void *')))
  const sessionType = call('int iscsi_set_session_type(uintptr_t, int)')
  const noReconnect = call('void iscsi_set_noautoreconnect(uintptr_t, int)')
  const create = call('uintptr_t iscsi_create_context(const char *)')
  const connect = call('int iscsi_connect_async(uintptr_t, const char *, uintptr_t, uintptr_t)')
  const login = call('int iscsi_login_async(uintptr_t, uintptr_t, uintptr_t)')
  const logout = call('int iscsi_logout_async(uintptr_t, uintptr_t, uintptr_t)')
  const start = call(
    'int iscsi_scsi_command_async(uintptr_t, int, uintptr_t, uintptr_t, uintptr_t, uintptr_t)',
  )
  const error = call('uintptr_t iscsi_get_error(uintptr_t)')
  const targetAddress = call('uintptr_t iscsi_get_target_address(uintptr_t)')
  return {
    createContext: initiator => {
      const context = create(initiator)
      if (context === 0) return 0
      sessionType(context, SESSION_NORMAL)
      // It would block, wait as it sees fit, and keep its own list of what to send again.
      noReconnect(context, 1)
      return context
    },
    destroyContext: call('int iscsi_destroy_context(uintptr_t)'),
    setTarget: call('int iscsi_set_targetname(uintptr_t, const char *)'),
    setSessionId: call('int iscsi_set_isid_random(uintptr_t, uint32_t, uint32_t)'),
    setCredentials: call('int iscsi_set_initiator_username_pwd(uintptr_t, const char *, const char *)'),
    setTargetCredentials: call('int iscsi_set_target_username_pwd(uintptr_t, const char *, const char *)'),
    setHeaderDigest: call('int iscsi_set_header_digest(uintptr_t, int)'),
    connect: (context, portal) => connect(context, portal, nothing, 0),
    login: context => login(context, nothing, 0),
    logout: context => logout(context, nothing, 0),
    isLoggedIn: call('int iscsi_is_logged_in(uintptr_t)'),
    queueLength: call('int iscsi_queue_length(uintptr_t)'),
    descriptor: call('int iscsi_get_fd(uintptr_t)'),
    events: call('int iscsi_which_events(uintptr_t)'),
    service: call('int iscsi_service(uintptr_t, int)'),
    error: context => stringAt(error(context)),
    redirection: context => stringAt(targetAddress(context)),
    createTask: call('uintptr_t scsi_create_task(int, uintptr_t, int, int)'),
    freeTask: call('void scsi_free_scsi_task(uintptr_t)'),
    setDataIn: call('void scsi_task_set_iov_in(uintptr_t, uintptr_t, int)'),
    setDataOut: call('void scsi_task_set_iov_out(uintptr_t, uintptr_t, int)'),
    startTask: (context, lun, task) => start(context, lun, task, 0, 0, 0),
    readSense: call('int scsi_task_get_status(uintptr_t, uintptr_t)'),
  }
}
