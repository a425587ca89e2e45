/** What descriptors of both layouts have in common: addresses of the guest become segments of a request, checked. */
import { SplitDescriptor } from '../../spec/virtqueue.ts'
import type { GuestMemory } from './guest-memory.ts'
import type { GuestRequest } from './request.ts'
import { RingFault } from './ring.ts'

const TWO_32 = 0x1_0000_0000
const DESCRIPTOR = SplitDescriptor.size
/** Section 2.7.5.2: no chain has more bytes in total. */
const CHAIN_BYTES_MAX = 2 ** 32
/** Far more than any driver makes; a front end could give a guest hundreds of tiny regions for each descriptor to cross. */
const CHAIN_PIECES_MAX = 4096

/** Makes a pooled request empty. */
export function beginChain(request: GuestRequest): void {
  request.segments.count = 0
  request.readableCount = 0
  request.readableBytes = 0
  request.writableBytes = 0
}

/**
 * Adds the memory of one descriptor to a request. Throws `RingFault` when a driver must not have it there. The address
 * comes as its two halves of 32 bits, signed or not: as one number it would become garbage on the way here.
 */
export function addBuffer(
  request: GuestRequest,
  memory: GuestMemory,
  addressLow: number,
  addressHigh: number,
  bytes: number,
  isWritable: boolean,
): void {
  const { segments } = request
  const address = addressOf(addressLow, addressHigh)
  if (bytes === 0) throw new RingFault(`a descriptor of no bytes at guest address ${hex(address)}`)
  if (!memory.translate(address, bytes, segments)) throw outside('a descriptor', bytes, address)
  if (isWritable) {
    request.writableBytes += bytes
  } else {
    if (request.writableBytes > 0) {
      throw new RingFault('a chain has something to read after something to write')
    }
    request.readableBytes += bytes
    request.readableCount = segments.count
  }
  if (request.readableBytes + request.writableBytes > CHAIN_BYTES_MAX) {
    throw new RingFault('a chain has more than 4 GiB')
  }
  if (segments.count > CHAIN_PIECES_MAX) {
    throw new RingFault(`a chain lies in more than ${CHAIN_PIECES_MAX} pieces`)
  }
}

/**
 * Makes `memory.view` cover a table of descriptors, and returns its offset in it. Throws `RingFault` when there can be none
 * of that size, or not there.
 */
export function locateTable(
  memory: GuestMemory,
  addressLow: number,
  addressHigh: number,
  bytes: number,
  bytesMax: number,
): number {
  if (bytes === 0 || bytes % DESCRIPTOR !== 0 || bytes > bytesMax) {
    throw new RingFault(
      `a table of descriptors has ${bytes} bytes: a multiple of ${DESCRIPTOR}, at most ${bytesMax}`,
    )
  }
  const offset = memory.locateGuest(addressLow, addressHigh, bytes)
  if (offset < 0) throw outside('a table of descriptors', bytes, addressOf(addressLow, addressHigh))
  return offset
}

/** Where a part of a ring lies in this process. Throws `RingFault` when it is not in the guest's memory, or not aligned. */
export function hostOfPart(
  memory: GuestMemory,
  name: string,
  userAddress: number,
  sizeBytes: number,
  alignment: number,
): number {
  const host = memory.hostOfUser(userAddress, sizeBytes)
  if (host === 0) {
    throw new RingFault(
      `the ${name}, ${sizeBytes} bytes at user address ${hex(userAddress)}, is in no memory region`,
    )
  }
  if (host % alignment !== 0) {
    throw new RingFault(`the ${name} is at user address ${hex(userAddress)}, no multiple of ${alignment}`)
  }
  return host
}

const outside = (what: string, bytes: number, address: number): RingFault =>
  new RingFault(`${what} of ${bytes} bytes at guest address ${hex(address)} is not in the guest's memory`)

const addressOf = (low: number, high: number): number => (high >>> 0) * TWO_32 + (low >>> 0)

const hex = (address: number): string => `0x${address.toString(16)}`
