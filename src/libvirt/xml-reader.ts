/**
 * Reads a parsed document and remembers what it was asked for: what nobody asked for is kept, and written back.
 * A document thereby keeps what a newer libvirt put into it.
 */
import type { XmlChild, XmlNode } from '../core/xml.ts'
import { attributeOf, elementsIn, parseXml, refuse, serialize, textOf, type XmlElement } from './xml.ts'

/** Something in a document that its reader does not know. */
export interface ForeignPart {
  /** Where: the names of the elements around it below the outermost, each with its place among its namesakes. */
  readonly path: readonly (readonly [name: string, index: number])[]
  /** An attribute of the last of those, or an element in it, as XML. */
  readonly attribute?: readonly [name: string, value: string]
  readonly xml?: string
}

/** One element of a document that is being read. */
export class XmlReader {
  readonly #what: string
  readonly #element: XmlElement
  readonly #attributes = new Set<string>()
  readonly #children = new Map<XmlElement, XmlReader>()
  #isText = false

  private constructor(what: string, element: XmlElement) {
    this.#what = what
    this.#element = element
  }

  /** The outermost element of a document; `what` names the document in refusals. */
  static parse(text: string, what: string, rootName: string): XmlReader {
    return new XmlReader(what, parseXml(text, what, rootName))
  }

  /** Its name with its prefix, as it is written. */
  get name(): string {
    return this.#element.tagName
  }

  fail(reason: string): never {
    refuse(this.#what, this.#element, reason)
  }

  /** Undefined when it is absent or empty. */
  attribute(name: string): string | undefined {
    this.#attributes.add(name)
    return attributeOf(this.#element, name)
  }

  /** An attribute that the element cannot do without. */
  required(name: string): string {
    return this.attribute(name) ?? this.fail(`<${this.name}> has no attribute '${name}'`)
  }

  /** An attribute that is one of these words. */
  choice<Word extends string>(name: string, words: readonly Word[]): Word | undefined {
    const value = this.attribute(name)
    if (value === undefined || words.includes(value as Word)) return value as Word | undefined
    return this.fail(`<${this.name} ${name}='${value}'>: it is one of ${words.join(', ')}`)
  }

  /** An attribute that is a whole number in a range. */
  number(name: string, min: number, max: number): number | undefined {
    const value = this.attribute(name)
    return value === undefined
      ? undefined
      : this.#number(value, `<${this.name} ${name}='${value}'>`, min, max)
  }

  /** Its text, without white space around it; undefined when there is none. */
  text(): string | undefined {
    this.#isText = true
    return textOf(this.#element)
  }

  /** Its text as a whole number in a range. */
  textNumber(min: number, max: number): number | undefined {
    const value = this.text()
    return value === undefined ? undefined : this.#number(value, `<${this.name}>${value}`, min, max)
  }

  /** The first child of a name. Further ones are not known, and kept. */
  child(name: string, namespace?: string): XmlReader | undefined {
    const element = elementsIn(this.#element, name, namespace)[0]
    return element && this.#readerOf(element)
  }

  children(name: string, namespace?: string): XmlReader[] {
    return elementsIn(this.#element, name, namespace).map(element => this.#readerOf(element))
  }

  /** Every child, whatever its name. */
  allChildren(): XmlReader[] {
    return elementsIn(this.#element).map(element => this.#readerOf(element))
  }

  /** The text of the first child of a name. */
  childText(name: string): string | undefined {
    return this.child(name)?.text()
  }

  /** Refuses a child that has this name in another namespace: it would silently count for nothing. */
  refuseElsewhere(name: string, namespace: string): void {
    for (const element of elementsIn(this.#element)) {
      if (element.localName !== name || element.namespaceURI === namespace) continue
      refuse(
        this.#what,
        element,
        `<${element.tagName}> counts only in the namespace '${namespace}', not in '${element.namespaceURI ?? ''}': ` +
          `declare it on <${this.name}>`,
      )
    }
  }

  /** What nobody has asked for, in this element and below. */
  foreign(): ForeignPart[] {
    const found: ForeignPart[] = []
    this.#gather([], found)
    return found
  }

  #gather(path: ForeignPart['path'], found: ForeignPart[]): void {
    for (const { name, value } of Array.from(this.#element.attributes)) {
      const isKnown = this.#attributes.has(name) || name === 'xmlns' || name.startsWith('xmlns:')
      if (!isKnown) found.push({ path, attribute: [name, value] })
    }
    const places = new Map<string, number>()
    for (const element of elementsIn(this.#element)) {
      const reader = this.#children.get(element)
      if (reader === undefined) {
        if (!this.#isText) found.push({ path, xml: serialize(element) })
        continue
      }
      const place = places.get(reader.name) ?? 0
      places.set(reader.name, place + 1)
      reader.#gather([...path, [reader.name, place]], found)
    }
  }

  #readerOf(element: XmlElement): XmlReader {
    const known = this.#children.get(element) ?? new XmlReader(this.#what, element)
    this.#children.set(element, known)
    return known
  }

  #number(value: string, where: string, min: number, max: number): number {
    const number = /^-?[0-9]{1,16}$/.test(value) ? Number(value) : Number.NaN
    if (number >= min && number <= max) return number
    return this.fail(`${where}: it is a whole number from ${min} to ${max}`)
  }
}

/** Puts what its reader did not know back into a document that is written. What its place has gone with is dropped. */
export function withForeign(root: XmlNode, foreign: readonly ForeignPart[] = []): XmlNode {
  return foreign.reduce((made, part) => placed(made, part, part.path) ?? made, root)
}

function placed(made: XmlNode, part: ForeignPart, path: ForeignPart['path']): XmlNode | undefined {
  const [step, ...rest] = path
  if (step === undefined) {
    const [name, value] = part.attribute ?? []
    if (name !== undefined) return { ...made, attributes: { ...made.attributes, [name]: value } }
    return { ...made, children: [...made.children, { raw: part.xml! }] }
  }
  const [name, index] = step
  const namesakes = made.children.filter(child => isNode(child) && child.name === name) as XmlNode[]
  const target = namesakes[index]
  const changed = target && placed(target, part, rest)
  return changed && { ...made, children: made.children.map(child => (child === target ? changed : child)) }
}

const isNode = (child: XmlChild): child is XmlNode => child !== undefined && 'name' in child
