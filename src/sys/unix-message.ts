/**
 * Messages with file descriptors (SCM_RIGHTS) over Unix sockets: unix(7), cmsg(3). Calls never wait: EAGAIN is an answer.
 *
 * A received descriptor is a new one of this process: whoever gets it closes it, exactly once.
 */
import { assert } from '../core/assert.ts'
import { struct, u32, u53 } from '../core/struct.ts'
import { IOVEC_SIZE, Msghdr } from '../spec/io-uring.ts'
import { close, recvmsg, sendmsg } from './libc.ts'
import { bytesAt, mapAnonymous, viewAt } from './memory.ts'

const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const MSG_CTRUNC = 0x8
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
const MSG_CMSG_CLOEXEC = 0x4000_0000
const EMSGSIZE = 90

/** struct cmsghdr; its data follow, padded to a multiple of 8. */
const Cmsghdr = struct(16, { sizeBytes: u53(0), level: u32(8), type: u32(12) })

/** SCM_MAX_FD: what the kernel lets through with one message. */
const DESCRIPTORS_MAX = 253

/** What one call moves at most. */
export const MESSAGE_BYTES_MAX = 65536

/** One thread uses this for one call at a time: header, iovec, control data, and the bytes themselves. */
const IOVEC_AT = 64
const CONTROL_AT = 128
const DATA_AT = 4096
const SCRATCH_SIZE = DATA_AT + MESSAGE_BYTES_MAX

let scratch: { readonly address: number; readonly view: DataView } | undefined

function scratchMemory(): { readonly address: number; readonly view: DataView } {
  if (scratch === undefined) {
    const address = mapAnonymous(SCRATCH_SIZE)
    scratch = { address, view: viewAt(address, DATA_AT) }
  }
  return scratch
}

function align8(size: number): number {
  return Math.ceil(size / 8) * 8
}

/** Fills in the header for `size` bytes of data and `controlSize` bytes of control data. Returns its address. */
function writeHeader(size: number, controlSize: number): number {
  const { address, view } = scratchMemory()
  bytesAt(address, IOVEC_AT + IOVEC_SIZE).fill(0)
  Msghdr.iov.set(view, 0, address + IOVEC_AT)
  Msghdr.iovCount.set(view, 0, 1)
  if (controlSize > 0) {
    Msghdr.control.set(view, 0, address + CONTROL_AT)
    Msghdr.controlSize.set(view, 0, controlSize)
  }
  u53(IOVEC_AT).set(view, 0, address + DATA_AT)
  u53(IOVEC_AT + 8).set(view, 0, size)
  return address
}

/**
 * Sends `bytes`, with `descriptors` attached to the first of them. Returns how many bytes were taken (the descriptors
 * always are), or -errno. The descriptors stay the caller's own.
 */
export function sendMessage(fd: number, bytes: Uint8Array, descriptors: readonly number[] = []): number {
  assert(
    bytes.length > 0 && bytes.length <= MESSAGE_BYTES_MAX,
    `a message of ${bytes.length} bytes can be sent`,
  )
  assert(descriptors.length <= DESCRIPTORS_MAX, `${descriptors.length} descriptors fit into a message`)
  const controlSize = descriptors.length === 0 ? 0 : Cmsghdr.size + align8(descriptors.length * 4)
  const header = writeHeader(bytes.length, controlSize)
  const { address, view } = scratchMemory()
  bytesAt(address + DATA_AT, bytes.length).set(bytes)
  if (controlSize > 0) {
    Cmsghdr.sizeBytes.set(view, CONTROL_AT, Cmsghdr.size + descriptors.length * 4)
    Cmsghdr.level.set(view, CONTROL_AT, SOL_SOCKET)
    Cmsghdr.type.set(view, CONTROL_AT, SCM_RIGHTS)
    for (const [i, descriptor] of descriptors.entries()) {
      view.setInt32(CONTROL_AT + Cmsghdr.size + i * 4, descriptor, true)
    }
  }
  return sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL)
}

/**
 * Receives into `target`, at most as much as fits, and appends the descriptors that came along to `descriptors`, which
 * are the caller's from then on. Returns how many bytes arrived, 0 at the end, or -errno; -EMSGSIZE when more than
 * `descriptorsMax` came along, or more than this process may open: all of them are closed then.
 */
export function receiveMessage(
  fd: number,
  target: Uint8Array,
  descriptors: number[],
  descriptorsMax: number,
): number {
  assert(descriptorsMax <= DESCRIPTORS_MAX, `${descriptorsMax} descriptors fit into a message`)
  const size = Math.min(target.length, MESSAGE_BYTES_MAX)
  // Without the padding, which would be room for one descriptor more.
  const header = writeHeader(size, Cmsghdr.size + descriptorsMax * 4)
  const { address, view } = scratchMemory()
  const result = recvmsg(fd, header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
  if (result < 0) return result
  const arrived = readDescriptors(view)
  if ((Msghdr.flags.get(view, 0) & MSG_CTRUNC) !== 0) {
    closeAll(arrived)
    return -EMSGSIZE
  }
  descriptors.push(...arrived)
  target.set(bytesAt(address + DATA_AT, result))
  return result
}

/** The descriptors in the control data of the message that was just received. */
function readDescriptors(view: DataView): number[] {
  const found: number[] = []
  const end = CONTROL_AT + Msghdr.controlSize.get(view, 0)
  let at = CONTROL_AT
  while (at + Cmsghdr.size <= end) {
    const sizeBytes = Cmsghdr.sizeBytes.get(view, at)
    if (sizeBytes < Cmsghdr.size) break
    if (Cmsghdr.level.get(view, at) === SOL_SOCKET && Cmsghdr.type.get(view, at) === SCM_RIGHTS) {
      for (let i = at + Cmsghdr.size; i + 4 <= at + sizeBytes; i += 4) found.push(view.getInt32(i, true))
    }
    at += align8(sizeBytes)
  }
  return found
}

/** Closes each descriptor of the list, and empties it, so that none is closed twice. */
export function closeAll(descriptors: number[]): void {
  for (const descriptor of descriptors.splice(0)) close(descriptor)
}
