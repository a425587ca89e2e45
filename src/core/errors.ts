/**
 * The four ways in which something is wrong, by who is wrong: our code (`AssertionError`), the peer (`ProtocolError`),
 * the system (`SysError`), the operator (`RpcError`).
 */
import { constants } from 'node:os'

/** A peer broke its protocol. Its connection ends; nobody else notices. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError'
  /** Where in the message the fault lies, in bytes from its start. */
  readonly offsetBytes: number

  constructor(message: string, offsetBytes: number) {
    super(message)
    this.offsetBytes = offsetBytes
  }
}

/** A system or library call failed. */
export class SysError extends Error {
  override readonly name = 'SysError'
  /** The call, for example `openat`. */
  readonly call: string
  /** The positive errno. */
  readonly errno: number
  /** The errno's name, for example `ENOENT`. */
  readonly code: string

  constructor(call: string, errno: number, detail = '') {
    const code = errnoName(errno)
    super(`${call}${detail === '' ? '' : ` ${detail}`}: ${code}`)
    this.call = call
    this.errno = errno
    this.code = code
  }
}

/** The names an `RpcError` may carry: errno names, or the reserved JSON-RPC 2.0 conditions. */
export type RpcCode = keyof typeof RESERVED | keyof typeof constants.errno

const RESERVED = {
  PARSE_ERROR: -32700,
  INVALID_REQUEST: -32600,
  METHOD_NOT_FOUND: -32601,
  INVALID_PARAMS: -32602,
  INTERNAL: -32603,
  WRONG_STATE: -1,
} as const

/**
 * The operator asked for something that cannot be. The message names the object, both values and the remedy.
 * On the wire the code is a negative errno, or one of JSON-RPC's reserved numbers, as SPDK's clients expect.
 */
export class RpcError extends Error {
  override readonly name = 'RpcError'
  readonly code: RpcCode

  constructor(code: RpcCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }

  /** The number that travels in a JSON-RPC error object. */
  get number(): number {
    const reserved = RESERVED[this.code as keyof typeof RESERVED]
    return reserved ?? -constants.errno[this.code as keyof typeof constants.errno]
  }
}

const NAMES = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]))
// EWOULDBLOCK and EOPNOTSUPP share numbers with the names that everybody prints.
NAMES.set(constants.errno.EAGAIN, 'EAGAIN')
NAMES.set(constants.errno.EOPNOTSUPP, 'EOPNOTSUPP')
// Node has none for it; Ceph's word for a client that it has shut out.
NAMES.set(108, 'ESHUTDOWN')

/** The name of a positive errno, `E` and its number when Linux has no name for it. */
export function errnoName(errno: number): string {
  return NAMES.get(errno) ?? `E${errno}`
}

/** The positive errno of a name. */
export const errnoNumber = (name: keyof typeof constants.errno): number => constants.errno[name]

const NAMES_TOLD_MAX = 10

/** How a message goes on that has said what is not there: with what is, by name, as far as a line has room. */
export function thereAre(names: Iterable<string>): string {
  const all = [...names]
  if (all.length === 0) return 'there are none'
  const others = all.length > NAMES_TOLD_MAX ? ` and ${all.length - NAMES_TOLD_MAX} more` : ''
  return `there are ${all.slice(0, NAMES_TOLD_MAX).join(', ')}${others}`
}
