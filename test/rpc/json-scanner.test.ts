import { describe, expect, it } from 'vitest'
import { ProtocolError } from '../../src/core/errors.ts'
import { Prng } from '../../src/core/prng.ts'
import { JsonScanner } from '../../src/rpc/json-scanner.ts'

const LIMITS = { sizeMax: 100, depthMax: 4 }
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

function scan(text: string | Uint8Array, piece = Number.POSITIVE_INFINITY): string[] {
  const scanner = new JsonScanner(LIMITS)
  const texts: string[] = []
  const data = typeof text === 'string' ? bytes(text) : text
  for (let i = 0; i < data.length; i += piece) {
    scanner.feed(data.subarray(i, i + piece), found => texts.push(found))
  }
  return texts
}

describe('JsonScanner', () => {
  it.each([1, 2, 3, 7, 1000])('finds every text of a stream torn into pieces of %i bytes', piece => {
    const texts = ['{"a":1}', '[]', '{"b":"}]\\"{[\\\\"}', '[{"ü":"€😀"},[[1]]]', '{}']
    expect(scan(` ${texts[0]}${texts[1]}\n\t${texts[2]}\r\n${texts[3]} ${texts[4]} `, piece)).toEqual(texts)
  })

  it('copies what it keeps, for the caller uses its buffer again', () => {
    const scanner = new JsonScanner(LIMITS)
    const texts: string[] = []
    const buffer = bytes('{"a"')
    scanner.feed(buffer, text => texts.push(text))
    buffer.fill(0)
    scanner.feed(bytes(':1}'), text => texts.push(text))
    expect(texts).toEqual(['{"a":1}'])
  })

  it('takes a text of exactly the longest size and refuses one byte more', () => {
    const text = `["${'x'.repeat(LIMITS.sizeMax - 4)}"]`
    expect(scan(text, 9)).toEqual([text])
    expect(() => scan(`["x${text.slice(2)}`, 9)).toThrow('more than 100 bytes')
  })

  it('refuses a text that never ends as soon as it is too long', () => {
    const scanner = new JsonScanner(LIMITS)
    const feed = (): void => scanner.feed(bytes('xxxxxxxxxx'), () => undefined)
    scanner.feed(bytes('["xxxxxxxx'), () => undefined)
    for (let i = 0; i < 9; i++) feed()
    expect(feed).toThrow(ProtocolError)
  })

  it('takes the deepest nesting and refuses one level more', () => {
    expect(scan('[[[[]]]]')).toEqual(['[[[[]]]]'])
    expect(() => scan('[[[[[')).toThrow('deeper than 4')
  })

  it.each(['1', '"a"', 'null', ']', '}', ',', '\u0000', '\ufeff{}'])('refuses %j between texts', text => {
    expect(() => scan(text)).toThrow('begins with { or [')
  })

  it('delivers the texts before a bad byte, and says where that is in the stream', () => {
    const scanner = new JsonScanner(LIMITS)
    const texts: string[] = []
    scanner.feed(bytes('{} '), text => texts.push(text))
    expect(() => scanner.feed(bytes('[]x'), text => texts.push(text))).toThrow(
      expect.objectContaining({ offsetBytes: 5 }),
    )
    expect(texts).toEqual(['{}', '[]'])
  })

  it('refuses bytes that are not UTF-8', () => {
    expect(() => scan(Uint8Array.of(0x5b, 0x22, 0xc3, 0x28, 0x22, 0x5d))).toThrow('not UTF-8')
  })

  it('never throws anything but ProtocolError, nor yields an unbalanced text, for 2000 seeds of noise', () => {
    for (let seed = 1; seed <= 2000; seed++) {
      const random = new Prng(seed)
      const scanner = new JsonScanner(LIMITS)
      const noise = Uint8Array.from(
        { length: 200 },
        () => NOISE.charCodeAt(random.below(NOISE.length)) & 0xff,
      )
      const found: string[] = []
      try {
        for (let i = 0; i < noise.length; ) {
          const size = 1 + random.below(20)
          scanner.feed(noise.subarray(i, i + size), text => found.push(text))
          i += size
        }
      } catch (error) {
        expect(error, `seed ${seed}`).toBeInstanceOf(ProtocolError)
      }
      for (const text of found) expect(text, `seed ${seed}`).toMatch(/^[[{].*[\]}]$/s)
    }
  })
})

/** Mostly structure, so that noise gets deep into the states; one character beyond ASCII, one control character. */
const NOISE = '{{{[[[]]]}}}""\\\\,:  \n01aeftnru\u00ff\u0000'
