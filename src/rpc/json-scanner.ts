/**
 * Cuts a stream of JSON texts that follow one another without any framing. It only finds where a text ends (outside of
 * strings, every bracket closed) and leaves the rest to `JSON.parse`. Each byte is looked at once, however the stream
 * was torn, and no more than the limit is ever held.
 *
 *     ─▶ between texts ──{ or [──▶ inside ──"──▶ string ──\──▶ escaped
 *              ▲                    │  ▲           │  ▲           │
 *              └──── depth 0 ───────┘  └─────"─────┘  └───────────┘
 */
import { ProtocolError } from '../core/errors.ts'

export interface ScannerLimits {
  /** The longest text, in bytes. */
  readonly sizeMax: number
  /** The deepest nesting of objects and arrays. */
  readonly depthMax: number
}

/** SPDK's limits for requests: its receive buffer and the nesting its parser takes. */
export const REQUEST_LIMITS: ScannerLimits = { sizeMax: 256 * 1024, depthMax: 64 }

/** What a client accepts from a daemon: SPDK's largest send buffer. */
export const RESPONSE_LIMITS: ScannerLimits = { sizeMax: 32 * 1024 * 1024, depthMax: 256 }

const QUOTE = 0x22
const BACKSLASH = 0x5c
const OPENING_BRACKET = 0x5b
const OPENING_BRACE = 0x7b
const CLOSING_BRACKET = 0x5d
const CLOSING_BRACE = 0x7d

export class JsonScanner {
  readonly #limits: ScannerLimits
  readonly #utf8 = new TextDecoder('utf-8', { fatal: true })
  /** The begun text, as it came. */
  #pieces: Uint8Array[] = []
  #size = 0
  #depth = 0
  #inString = false
  #escaped = false
  /** Bytes before this chunk, for the offset in an error. */
  #streamOffset = 0

  constructor(limits: ScannerLimits) {
    this.#limits = limits
  }

  /** Whether a text has begun and not ended. */
  get inside(): boolean {
    return this.#depth > 0
  }

  /**
   * Calls `onText` for each text that ends in `chunk`, in order. Throws `ProtocolError` at the first byte that cannot
   * belong to the stream; there is no place to resume from after that.
   */
  feed(chunk: Uint8Array, onText: (text: string) => void): void {
    let start = 0
    for (let i = 0; i < chunk.length; i++) {
      const byte = chunk[i]!
      if (this.#depth === 0) {
        if (isSpace(byte)) {
          start = i + 1
          continue
        }
        if (byte !== OPENING_BRACE && byte !== OPENING_BRACKET) {
          throw this.#error(
            `a message begins with { or [, not with byte 0x${byte.toString(16).padStart(2, '0')}`,
            i,
          )
        }
        start = i
      }
      this.#step(byte, i)
      if (this.#size + i + 1 - start > this.#limits.sizeMax) {
        throw this.#error(`a message has more than ${this.#limits.sizeMax} bytes`, i)
      }
      if (this.#depth > 0) continue
      onText(this.#take(chunk.subarray(start, i + 1), i))
      start = i + 1
    }
    if (this.#depth > 0) {
      // A copy, since the caller may use its buffer again.
      this.#pieces.push(chunk.slice(start))
      this.#size += chunk.length - start
    }
    this.#streamOffset += chunk.length
  }

  #step(byte: number, i: number): void {
    if (this.#inString) {
      if (this.#escaped) this.#escaped = false
      else if (byte === BACKSLASH) this.#escaped = true
      else if (byte === QUOTE) this.#inString = false
    } else if (byte === QUOTE) {
      this.#inString = true
    } else if (byte === OPENING_BRACE || byte === OPENING_BRACKET) {
      this.#depth++
      if (this.#depth > this.#limits.depthMax) {
        throw this.#error(`a message nests deeper than ${this.#limits.depthMax} objects and arrays`, i)
      }
    } else if (byte === CLOSING_BRACE || byte === CLOSING_BRACKET) {
      this.#depth--
    }
  }

  #take(last: Uint8Array, i: number): string {
    const bytes = this.#pieces.length === 0 ? last : Buffer.concat([...this.#pieces, last])
    this.#pieces = []
    this.#size = 0
    try {
      return this.#utf8.decode(bytes)
    } catch (cause) {
      throw Object.assign(this.#error('a message is not UTF-8', i), { cause })
    }
  }

  #error(message: string, i: number): ProtocolError {
    return new ProtocolError(message, this.#streamOffset + i)
  }
}

const isSpace = (byte: number): boolean => byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09
