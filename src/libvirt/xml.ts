/**
 * XML as libvirt's documents use it: elements without a namespace, a few names in namespaces of their own. What comes in
 * may be hostile: a document type (and with it entities), nesting, sizes and characters that no document of libvirt has
 * are refused with the line.
 */
import { DOMParser, type Element, type Node, ParseError, XMLSerializer } from '@xmldom/xmldom'
import { RpcError } from '../core/errors.ts'
import { formatXml, illegalCharacter, type XmlNode } from '../core/xml.ts'

export type { Element as XmlElement } from '@xmldom/xmldom'

const SIZE_MAX = 1 << 20
const TAGS_MAX = 50_000
const DEPTH_MAX = 64

/**
 * Parses a document and answers its outermost element, which must have this name and no namespace. Throws `RpcError`
 * EINVAL that names the document (`what`), the line and the reason.
 */
export function parseXml(text: string, what: string, rootName: string): Element {
  checkText(text, what)
  const root = parse(text, what)
  if (root.localName !== rootName) {
    refuse(what, root, `the outermost element is <${root.tagName}>, where <${rootName}> is expected`)
  }
  if (root.namespaceURI) {
    refuse(
      what,
      root,
      `<${rootName}> is in the namespace '${root.namespaceURI}': libvirt's documents have none`,
    )
  }
  checkDepth(root, what)
  return root
}

/** Refuses what an element says. */
export function refuse(what: string, node: Node, reason: string): never {
  throw new RpcError('EINVAL', `${what}, line ${node.lineNumber ?? 1}: ${reason}`)
}

/** What can be seen without parsing, so that nothing hostile reaches the parser. */
function checkText(text: string, what: string): void {
  const fail = (offset: number, reason: string): never => {
    throw new RpcError('EINVAL', `${what}, line ${lineAt(text, offset)}: ${reason}`)
  }
  if (text.trim() === '') throw new RpcError('EINVAL', `${what} is empty`)
  if (text.length > SIZE_MAX) {
    throw new RpcError('EINVAL', `${what} has ${text.length} characters, more than ${SIZE_MAX}`)
  }
  const illegal = illegalCharacter(text)
  if (illegal !== undefined) {
    fail(illegal.offset, `character ${illegal.code} cannot be in an XML document`)
  }
  for (const { index, 0: reference, 1: hex, 2: decimal } of text.matchAll(CHARACTER_REFERENCE)) {
    const code = hex === undefined ? Number(decimal) : Number.parseInt(hex, 16)
    if (code > 0x10ffff || illegalCharacter(String.fromCodePoint(code)) !== undefined) {
      fail(index, `${reference} names a character that cannot be in an XML document`)
    }
  }
  // A document type stands between the prolog and the outermost element; the parser refuses it elsewhere.
  const start = prologEnd(text)
  if (text.startsWith('<!DOCTYPE', start)) {
    fail(start, 'a document type (<!DOCTYPE>) is not accepted: with it come entities')
  }
  const tags = text.split('<').length - 1
  if (tags > TAGS_MAX) throw new RpcError('EINVAL', `${what} has ${tags} tags, more than ${TAGS_MAX}`)
}

const CHARACTER_REFERENCE = /&#(?:x([0-9a-fA-F]+)|([0-9]+));/g

/** Behind the byte order mark, white space, processing instructions and comments before the outermost element. */
function prologEnd(text: string): number {
  for (let at = 0; ; ) {
    while (/[\s\ufeff]/.test(text.charAt(at))) at++
    const closing = text.startsWith('<?', at) ? '?>' : text.startsWith('<!--', at) ? '-->' : undefined
    const end = closing === undefined ? -1 : text.indexOf(closing, at + 2)
    if (end < 0) return at
    at = end + closing!.length
  }
}

const lineAt = (text: string, offset: number): number => text.slice(0, offset).split('\n').length

function parse(text: string, what: string): Element {
  let reason = ''
  const onError = (_level: string, message: string): void => {
    reason ||= message
    throw new Error(message)
  }
  try {
    const { documentElement } = new DOMParser({ onError }).parseFromString(text, 'text/xml')
    if (documentElement !== null) return documentElement
    reason = 'there is no element'
  } catch (error) {
    if (!(error instanceof ParseError)) throw error
    const line = error.locator?.lineNumber || 1
    throw new RpcError('EINVAL', `${what}, line ${line}: ${plainReason(reason || error.message)}`)
  }
  throw new RpcError('EINVAL', `${what}: ${reason}`)
}

/** The parser's reason, of at most a line's length: it may quote what it was given. */
function plainReason(reason: string): string {
  if (reason.includes('prefix is non-null and namespace is null')) {
    return 'a name has a prefix that no xmlns attribute declares'
  }
  const line = reason.replaceAll(/\s+/g, ' ').trim()
  return line.length > 160 ? `${line.slice(0, 157)}...` : line
}

/** Not recursive: a document that is nested too deeply would exhaust the stack. */
function checkDepth(root: Element, what: string): void {
  let level: Element[] = [root]
  for (let depth = 1; level.length > 0; depth++) {
    if (depth > DEPTH_MAX) refuse(what, level[0]!, `elements are nested more than ${DEPTH_MAX} deep`)
    level = level.flatMap(element => elementsIn(element))
  }
}

/** The child elements, or those of a name; without a namespace unless one is named. */
export function elementsIn(parent: Element): Element[]
export function elementsIn(parent: Element, name: string, namespace?: string): Element[]
export function elementsIn(parent: Element, name?: string, namespace?: string): Element[] {
  const found: Element[] = []
  for (let node = parent.firstChild; node !== null; node = node.nextSibling) {
    if (node.nodeType !== node.ELEMENT_NODE) continue
    const element = node as Element
    if (name === undefined || isNamed(element, name, namespace)) found.push(element)
  }
  return found
}

function isNamed(element: Element, name: string, namespace?: string): boolean {
  return element.localName === name && (element.namespaceURI || undefined) === namespace
}

/** The first child element of a name. */
export const elementIn = (parent: Element, name: string, namespace?: string): Element | undefined =>
  elementsIn(parent, name, namespace)[0]

/** What stands at the end of a path of names, by their first elements. */
export function elementAt(parent: Element, ...path: readonly string[]): Element | undefined {
  let found: Element | undefined = parent
  for (const name of path) found = found && elementIn(found, name)
  return found
}

/** The value of an attribute; undefined when it is absent or empty, which is the same to libvirt. */
export const attributeOf = (element: Element | undefined, name: string): string | undefined =>
  element?.getAttribute(name) || undefined

/** The text of an element without white space around it; undefined when there is none. */
export const textOf = (element: Element | undefined): string | undefined =>
  element?.textContent?.trim() || undefined

/** An element as text, in a form that stands alone: namespaces that it uses are declared in it. */
export const serialize = (element: Element): string => new XMLSerializer().serializeToString(element)

/** The whole document that an element belongs to. */
export function serializeDocument(root: Element): string {
  return `${new XMLSerializer().serializeToString(root.ownerDocument!).trimEnd()}\n`
}

/** Adds an element at the end of another one of a document that was parsed. */
export function appendTo(parent: Element, made: XmlNode, namespaces = ''): Element {
  const text = formatXml(made)
  const wrapped = parse(`<fragment ${namespaces}>${text.trim()}</fragment>`, 'a new element')
  const added = parent.ownerDocument!.importNode(elementsIn(wrapped)[0]!, true) as Element
  parent.appendChild(added)
  return added
}
