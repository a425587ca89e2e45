import { describe, expect, it } from 'vitest'
import { RpcError } from '../../src/core/errors.ts'
import { Prng } from '../../src/core/prng.ts'
import { DomainDocument } from '../../src/libvirt/domain-xml.ts'
import { parseNetwork } from '../../src/libvirt/network-xml.ts'
import { formatPool, parsePool } from '../../src/libvirt/pool-xml.ts'
import { parseSecret } from '../../src/libvirt/secret-xml.ts'
import { formatVolume, parseVolume } from '../../src/libvirt/volume-xml.ts'
import { parseXml, serialize, textOf } from '../../src/libvirt/xml.ts'
import { GUIDES, POOLS } from './pool-examples.ts'

const parse = (text: string): unknown => parseXml(text, 'the document', 'a')

describe('XML that libvirt has no use for', () => {
  it.each([
    ['', 'the document is empty'],
    [' \n ', 'the document is empty'],
    ['pool', 'the document, line 1: missing root element'],
    ['<!-- only -->', 'missing root element'],
    ['<b/>', 'the outermost element is <b>, where <a> is expected'],
    ["<a xmlns='urn:x'/>", "<a> is in the namespace 'urn:x': libvirt's documents have none"],
    ["<x:a xmlns:x='urn:x'/>", 'is in the namespace'],
    ['<a>\n<b></a>', 'line 2: Opening and ending tag mismatch'],
    ['<a>\n<b>', 'unclosed xml tag'],
    ['<a/><a/>', 'line 1'],
    ['<a/>more', 'Extra content at the end'],
    ["<a x='1' x='2'/>", 'Attribute x redefined'],
    ['<a x=1/>', 'missed quot'],
    ["<a x='<'/>", "Unescaped '<' not allowed"],
    ['<a>\n<q:b/></a>', 'line 2: a name has a prefix that no xmlns attribute declares'],
    ['<a>&b;</a>', 'entity not found:&b;'],
    ['<a>\n\u0001</a>', 'line 2: character 1 cannot be in an XML document'],
    ['<a>\n\ud800</a>', 'line 2: character 55296 cannot be'],
    ['<a>&#1;</a>', '&#1; names a character that cannot be'],
    ['<a>&#xd800;</a>', '&#xd800; names'],
    ['<a>&#x110000;</a>', '&#x110000; names'],
    [`<a>&#${'9'.repeat(400)};</a>`, 'names a character that cannot be'],
  ])('is refused: %j', (text, reason) => {
    expect(() => parse(text)).toThrow(reason)
  })

  it.each([
    '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    '<?xml version="1.0"?>\n<!-- x -->\n<?p q?>\n<!DOCTYPE a SYSTEM "file:///etc/passwd">\n<a/>',
    '\ufeff<!DOCTYPE a><a/>',
  ])('is refused with a document type: %s', text => {
    expect(() => parse(text)).toThrow(/line [14]: a document type \(<!DOCTYPE>\) is not accepted/)
  })

  it('is refused with a document type in the wrong place', () => {
    expect(() => parse('<a><!DOCTYPE a></a>')).toThrow(RpcError)
    expect(() => parse('<a/><!DOCTYPE a>')).toThrow(RpcError)
  })

  it('is refused when it is nested deeply, has many tags, or is huge', () => {
    const nested = (depth: number): string => '<a>'.repeat(depth) + '</a>'.repeat(depth)
    expect(parse(nested(64))).toBeDefined()
    expect(() => parse(nested(65))).toThrow('elements are nested more than 64 deep')
    expect(() => parse(nested(20_000))).toThrow('elements are nested more than 64 deep')
    expect(() => parse('<a>'.repeat(60_000))).toThrow('has 60000 tags, more than 50000')
    expect(() => parse(`<a>${' '.repeat(1 << 20)}</a>`)).toThrow('characters, more than 1048576')
  })

  it('is quoted in refusals only as far as a line has room', () => {
    const text = `<a><${'b'.repeat(100_000)}></a>`
    const message = (() => {
      try {
        return String(parse(text))
      } catch (error) {
        return (error as RpcError).message
      }
    })()
    expect(message.length).toBeLessThan(300)
  })

  it('may have any character that is one, and comes out as it went in', () => {
    const root = parseXml('<a>\u{1f600} &lt;&amp;&#x41; é</a>', 'the document', 'a')
    expect(textOf(root)).toBe('\u{1f600} <&A é')
    expect(serialize(root)).toBe('<a>\u{1f600} &lt;&amp;A é</a>')
  })
})

describe('documents that a seed has damaged', () => {
  const DOMAIN = `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>d</name>
<devices><disk type='file'><source file='/a'/><target dev='vda' bus='virtio'/></disk></devices>
<qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=/b,id=D22'/></qemu:commandline></domain>`
  const VOLUME = `<volume><name>v</name><capacity unit='GiB'>1</capacity><target><format type='qcow2'/></target></volume>`
  const NETWORK = `<network><name>n</name><forward mode='nat'/><ip address='10.0.0.1' prefix='24'/></network>`

  const readers: readonly (readonly [string, (text: string) => unknown])[] = [
    ...Object.values(POOLS).map(
      xml => [xml, (text: string) => parsePool(formatPool(parsePool(text)))] as const,
    ),
    [VOLUME, text => parseVolume(formatVolume(parseVolume(text, 'dir')), 'dir')],
    [GUIDES.secret, parseSecret],
    [NETWORK, parseNetwork],
    [DOMAIN, text => DomainDocument.parse(DomainDocument.parse(text).toString()).disks()],
  ]
  const PIECES = [
    '<',
    '>',
    '&',
    ';',
    '"',
    "'",
    '/',
    '<!--',
    '-->',
    '<![CDATA[',
    ']]>',
    '<?',
    '?>',
    '<!DOCTYPE a>',
    '&#0;',
    '&amp;',
    'xmlns=',
    'xmlns:x=""',
    '\u0000',
    '\ud800',
    '-1',
    '9'.repeat(30),
    'type',
    'é',
    '\n',
    '{',
    'NaN',
    '__proto__',
  ]

  it.each([1, 2, 3, 4, 5, 6, 7, 8])("are read or refused as the operator's mistake: seed %i", seed => {
    const random = new Prng(seed)
    for (let round = 0; round < 400; round++) {
      const [xml, read] = random.pick(readers)
      let text = xml
      for (let edits = 1 + random.below(4); edits > 0; edits--) {
        const at = random.below(text.length + 1)
        const skipped = random.oneIn(3) ? random.below(40) : 0
        text = text.slice(0, at) + random.pick(PIECES) + text.slice(at + skipped)
      }
      try {
        read(text)
      } catch (error) {
        expect(error, text).toBeInstanceOf(RpcError)
        expect((error as RpcError).code, text).toBe('EINVAL')
      }
    }
  })
})
