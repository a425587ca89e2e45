/** The shared memory of a controller and the eventfds of its rings: made once, and handed to every back end in turn. */
import { SysError } from '../core/errors.ts'
import { close, eventfd } from '../sys/libc.ts'
import { createSharedMemory, mapShared, type SharedMapping } from '../sys/shared-memory.ts'
import { DATA_BYTES, FIXED_QUEUES, layOut } from './memory-layout.ts'
import type { DeviceKind, OpenQueue, RingDescription } from './messages.ts'

export class ControllerMemory {
  readonly rings: readonly RingDescription[]
  /** What each reactor uses of it. */
  readonly queues: readonly Pick<OpenQueue, 'ring' | 'slots' | 'data' | 'dataBytes' | 'events'>[]
  readonly #fd: number
  readonly #mapping: SharedMapping

  constructor(name: string, kind: DeviceKind, requestQueues: number, queueSize: number) {
    const layout = layOut(kind, requestQueues, queueSize)
    this.#fd = createSharedMemory(`qpair-virtio-${name}`, layout.sizeBytes)
    this.#mapping = mapShared(this.#fd, 0, layout.sizeBytes)
    const { address } = this.#mapping
    this.rings = layout.rings.map((offset, index) => ({
      index,
      size: queueSize,
      address: address + offset,
      kick: newEventfd(),
      call: newEventfd(),
    }))
    const first = FIXED_QUEUES[kind]
    this.queues = this.rings.slice(first).map((ring, i) => ({
      ring,
      slots: address + layout.slots[i]!,
      data: address + layout.data[i]!,
      dataBytes: DATA_BYTES,
      events: kind === 'scsi' && i === 0 ? { ring: this.rings[1]!, buffers: address + layout.events } : null,
    }))
  }

  get mapping(): { readonly fd: number; readonly address: number; readonly sizeBytes: number } {
    return { fd: this.#fd, address: this.#mapping.address, sizeBytes: this.#mapping.sizeBytes }
  }

  /** Nothing may use it any more. */
  close(): void {
    for (const { kick, call } of this.rings) {
      close(kick)
      close(call)
    }
    this.#mapping.unmap()
    close(this.#fd)
  }
}

function newEventfd(): number {
  const fd = eventfd()
  if (fd < 0) throw new SysError('eventfd', -fd)
  return fd
}
