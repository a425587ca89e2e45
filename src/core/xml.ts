/** XML to be written: elements as plain objects, laid out as libvirt lays out its documents. */
import { RpcError } from './errors.ts'

/** An element to be written. */
export interface XmlNode {
  readonly name: string
  readonly attributes: Readonly<Record<string, string | number | undefined>>
  /** Elements, or the text that the element has alone. Raw XML is what was read and is written back as it was. */
  readonly children: readonly XmlChild[]
}

export type XmlChild = XmlNode | { readonly text: string } | { readonly raw: string } | undefined

/** An element with attributes and children; those that are undefined are left out. */
export const node = (
  name: string,
  attributes: XmlNode['attributes'] = {},
  ...children: readonly XmlChild[]
): XmlNode => ({ name, attributes, children })

/** An element with a text; undefined without one, so that it can stand in a list of children. */
export const textNode = (
  name: string,
  text: string | number | undefined,
  attributes: XmlNode['attributes'] = {},
): XmlNode | undefined =>
  text === undefined ? undefined : { name, attributes, children: [{ text: `${text}` }] }

/** An element that is left out when it has neither attributes nor children. */
export function nodeUnlessEmpty(made: XmlNode): XmlNode | undefined {
  const isEmpty = !made.children.some(Boolean) && Object.values(made.attributes).every(v => v === undefined)
  return isEmpty ? undefined : made
}

/** A document's text as libvirt lays it out. Throws `RpcError` EINVAL for characters that XML cannot hold. */
export function formatXml(made: XmlNode, indent = ''): string {
  const attributes = Object.entries(made.attributes)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => ` ${name}='${escapeXml(`${value}`)}'`)
    .join('')
  const open = `${indent}<${made.name}${attributes}`
  const children = made.children.filter(child => child !== undefined)
  if (children.length === 0) return `${open}/>\n`
  const [first] = children
  if (children.length === 1 && 'text' in first!) return `${open}>${escapeXml(first.text)}</${made.name}>\n`
  const inner = `${indent}  `
  const lines = children.map(child => {
    if ('raw' in child) return `${inner}${child.raw}\n`
    return 'text' in child ? `${inner}${escapeXml(child.text)}\n` : formatXml(child, inner)
  })
  return `${open}>\n${lines.join('')}${indent}</${made.name}>\n`
}

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  "'": '&apos;',
  '"': '&quot;',
  // As they stand they would be read as spaces.
  '\n': '&#10;',
  '\t': '&#9;',
  '\r': '&#13;',
}

function escapeXml(text: string): string {
  if (illegalCharacter(text) !== undefined) {
    throw new RpcError('EINVAL', `${JSON.stringify(text)} has a character that an XML document cannot hold`)
  }
  return text.replaceAll(/[&<>'"\n\t\r]/g, found => ENTITIES[found]!)
}

/** All but what the production Char of XML 1.0 allows. */
const ILLEGAL = /[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/u

/** The first character of a text that XML 1.0 cannot hold, and where it is. */
export function illegalCharacter(
  text: string,
): { readonly offset: number; readonly code: number } | undefined {
  const found = ILLEGAL.exec(text)
  return found === null ? undefined : { offset: found.index, code: found[0].codePointAt(0)! }
}
