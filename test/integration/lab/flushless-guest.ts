/**
 * A guest that cannot flush: a virtio-blk driver at a vhost-user socket that negotiates no VIRTIO_BLK_F_FLUSH, and writes
 * one block after the other. No QEMU leaves that feature out.
 *
 * Its memory: 0x1000 descriptors, 0x2000 available ring, 0x3000 used ring, 0x4000 headers, 0x8000 status bytes,
 * 0x10000 a page of data for each of its slots.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { close, eventfd, write } from '../../../src/sys/libc.ts'
import { bytesAt, mapAnonymous, unmap } from '../../../src/sys/memory.ts'
import { createSharedMemory, mapShared, type SharedMapping } from '../../../src/sys/shared-memory.ts'
import { connectUnix } from '../../../src/sys/socket.ts'
import { closeAll, receiveMessage, sendMessage } from '../../../src/sys/unix-message.ts'

const MEMORY_SIZE = 1 << 20
const QUEUE_SIZE = 64
const SLOTS = 16
const PAGE = 4096
/** VIRTIO_F_VERSION_1 and nothing else. */
const FEATURES = 1n << 32n
const FLUSH = 1n << 9n
const NEXT = 1
const WRITE = 2

/** What a page of the disk holds after this guest wrote it. */
export function pageOf(index: number): Buffer {
  const page = Buffer.alloc(PAGE, (index % 255) + 1)
  page.writeUInt32LE(index, 0)
  return page
}

export class FlushlessGuest {
  /** Pages whose writes were acknowledged. */
  readonly acknowledged: number[] = []
  readonly #socket: number
  readonly #memory: number
  readonly #mapping: SharedMapping
  readonly #kick = eventfd()
  /** Has the number that a kick writes. */
  readonly #one = mapAnonymous(PAGE)
  readonly #bytes: Buffer
  readonly #pages: number[] = Array.from({ length: SLOTS }, () => -1)
  #available = 0
  #used = 0
  #next = 0

  private constructor(socket: number) {
    this.#socket = socket
    this.#memory = createSharedMemory('flushless-guest', MEMORY_SIZE)
    this.#mapping = mapShared(this.#memory, 0, MEMORY_SIZE)
    const { buffer, byteOffset } = bytesAt(this.#mapping.address, MEMORY_SIZE)
    this.#bytes = Buffer.from(buffer, byteOffset, MEMORY_SIZE)
    bytesAt(this.#one, 1)[0] = 1
  }

  /** Connects and starts the queue. */
  static async connect(path: string): Promise<FlushlessGuest> {
    const guest = new FlushlessGuest(connectUnix(path))
    const offered = await guest.#ask(1)
    if ((offered.readBigUInt64LE() & FLUSH) === 0n) throw new Error('the disk says that it has no cache')
    guest.#send(3)
    guest.#send(2, u64s(FEATURES))
    guest.#send(5, Buffer.concat([u32s(1, 0), u64s(0n, BigInt(MEMORY_SIZE), 0n, 0n)]), [guest.#memory])
    guest.#send(8, u32s(0, QUEUE_SIZE))
    guest.#send(10, u32s(0, 0))
    guest.#send(9, Buffer.concat([u32s(0, 0), u64s(0x1000n, 0x3000n, 0x2000n, 0n)]))
    // No call eventfd: the used ring is looked at instead.
    guest.#send(13, u64s(0x100n))
    guest.#send(12, u64s(0n), [guest.#kick])
    return guest
  }

  /** Writes page after page until so many are acknowledged, and goes on no further; some stay in flight. */
  async write(count: number): Promise<void> {
    for (let slot = 0; slot < SLOTS; slot++) this.#submit(slot)
    while (this.acknowledged.length < count) {
      if (this.#harvest() === 0) await delay(1)
    }
  }

  close(): void {
    this.#mapping.unmap()
    unmap(this.#one, PAGE)
    closeAll([this.#socket])
    close(this.#memory)
    close(this.#kick)
  }

  /** A chain of header, page and status byte. */
  #submit(slot: number): void {
    const bytes = this.#bytes
    const page = this.#next++
    this.#pages[slot] = page
    const [header, status, data] = [0x4000 + slot * 16, 0x8000 + slot, 0x10000 + slot * PAGE]
    bytes.writeUInt32LE(1, header)
    bytes.writeBigUInt64LE(BigInt(page * (PAGE / 512)), header + 8)
    pageOf(page).copy(bytes, data)
    bytes[status] = 0xff
    const pieces = [
      [header, 16, NEXT],
      [data, PAGE, NEXT],
      [status, 1, WRITE],
    ] as const
    for (const [i, [address, length, flags]] of pieces.entries()) {
      const at = 0x1000 + (slot * 3 + i) * 16
      bytes.writeBigUInt64LE(BigInt(address), at)
      bytes.writeUInt32LE(length, at + 8)
      bytes.writeUInt16LE(flags, at + 12)
      bytes.writeUInt16LE(slot * 3 + i + 1, at + 14)
    }
    bytes.writeUInt16LE(slot * 3, 0x2004 + (this.#available % QUEUE_SIZE) * 2)
    this.#available++
    bytes.writeUInt16LE(this.#available & 0xffff, 0x2002)
    write(this.#kick, this.#one, 8)
  }

  /** Takes what has ended, and writes on in its place. */
  #harvest(): number {
    const bytes = this.#bytes
    let count = 0
    while (this.#used !== bytes.readUInt16LE(0x3002)) {
      const slot = bytes.readUInt32LE(0x3004 + (this.#used % QUEUE_SIZE) * 8) / 3
      this.#used = (this.#used + 1) & 0xffff
      if (bytes[0x8000 + slot] !== 0)
        throw new Error(`page ${this.#pages[slot]}: status ${bytes[0x8000 + slot]}`)
      this.acknowledged.push(this.#pages[slot]!)
      this.#submit(slot)
      count++
    }
    return count
  }

  #send(request: number, payload: Uint8Array = new Uint8Array(0), descriptors: readonly number[] = []): void {
    sendMessage(this.#socket, Buffer.concat([u32s(request, 1, payload.length), payload]), descriptors)
  }

  async #ask(request: number): Promise<Buffer> {
    this.#send(request)
    const reply = Buffer.alloc(20)
    for (let done = 0; done < reply.length; ) {
      const result = receiveMessage(this.#socket, reply.subarray(done), [], 0)
      if (result > 0) done += result
      else if (result === -11) await delay(1)
      else throw new Error(`the back end hung up: ${result}`)
    }
    return reply.subarray(12)
  }
}

function u32s(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4)
  for (const [i, value] of values.entries()) bytes.writeUInt32LE(value, i * 4)
  return bytes
}

function u64s(...values: bigint[]): Buffer {
  const bytes = Buffer.alloc(values.length * 8)
  for (const [i, value] of values.entries()) bytes.writeBigUInt64LE(value, i * 8)
  return bytes
}
