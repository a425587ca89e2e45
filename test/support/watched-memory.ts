/**
 * Sees every load from and store to shared memory that the code under test makes through typed arrays and `DataView`s,
 * and can end it at any of them, as a SIGKILL would. Arrays that a program makes for itself are left alone.
 */
import { vi } from 'vitest'

const PlainView = DataView as new (buffer: ArrayBuffer, offset?: number, size?: number) => DataView
const ARRAYS = ['Uint8Array', 'Uint16Array', 'Uint32Array', 'Int32Array', 'Float64Array'] as const

/** Thrown in place of a store: nothing of this process happens any more. */
export class Killed extends Error {}

export interface Watch {
  /** Called before each store. */
  store?(): void
  /** Called for each load, with the buffer and the offset in it. */
  load?(buffer: ArrayBufferLike, offset: number): void
}

type AnyArray = Uint8Array & { [index: number]: number }

/** Runs `work` with every view of foreign memory that it makes being watched. */
export function watching<T>(watch: Watch, work: () => T): T {
  const originals = new WeakMap<object, AnyArray>()
  const watched = (array: AnyArray): AnyArray => {
    const proxy = new Proxy(array, {
      get(target, key) {
        if (typeof key === 'string' && /^\d+$/.test(key)) {
          watch.load?.(target.buffer, target.byteOffset + Number(key) * target.BYTES_PER_ELEMENT)
        }
        const value: unknown = Reflect.get(target, key, target)
        return typeof value === 'function' ? value.bind(target) : value
      },
      set(target, key, value: number) {
        watch.store?.()
        target[Number(key)] = value
        return true
      },
    })
    originals.set(proxy, array)
    return proxy
  }
  for (const name of ARRAYS) {
    const Original = globalThis[name]
    const construct = (target: typeof Original, parts: [ArrayBuffer | number]): object => {
      const array = Reflect.construct(target, parts) as AnyArray
      return parts[0] instanceof ArrayBuffer ? watched(array) : array
    }
    vi.stubGlobal(name, new Proxy(Original, { construct } as ProxyHandler<typeof Original>))
  }
  const { load, store } = Atomics
  vi.stubGlobal('Atomics', {
    load: (array: AnyArray, index: number) => {
      const original = originals.get(array)
      if (original !== undefined) {
        watch.load?.(original.buffer, original.byteOffset + index * original.BYTES_PER_ELEMENT)
      }
      return load(original ?? array, index)
    },
    store: (array: AnyArray, index: number, value: number) => {
      const original = originals.get(array)
      if (original !== undefined) watch.store?.()
      return store(original ?? array, index, value)
    },
  })
  vi.stubGlobal('DataView', watchedView(watch))
  try {
    return work()
  } finally {
    vi.unstubAllGlobals()
  }
}

function watchedView(watch: Watch): unknown {
  return class extends PlainView {
    override getUint16(at: number, isLittle?: boolean): number {
      watch.load?.(this.buffer, this.byteOffset + at)
      return super.getUint16(at, isLittle)
    }
    override getInt32(at: number, isLittle?: boolean): number {
      watch.load?.(this.buffer, this.byteOffset + at)
      return super.getInt32(at, isLittle)
    }
    override getUint32(at: number, isLittle?: boolean): number {
      watch.load?.(this.buffer, this.byteOffset + at)
      return super.getUint32(at, isLittle)
    }
    override setUint16(at: number, value: number, isLittle?: boolean): void {
      watch.store?.()
      super.setUint16(at, value, isLittle)
    }
    override setUint32(at: number, value: number, isLittle?: boolean): void {
      watch.store?.()
      super.setUint32(at, value, isLittle)
    }
  }
}
