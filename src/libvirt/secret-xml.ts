/** A secret's document (libvirt's formatsecret). It names a secret; the value travels apart from it. */

import { formatXml, node, textNode } from '../core/xml.ts'
import { readUuid } from './uuid-xml.ts'
import { type ForeignPart, withForeign, XmlReader } from './xml-reader.ts'

export interface SecretDocument {
  /** Lower case, with hyphens; a document without one gets a new one when it is defined. */
  readonly uuid?: string | undefined
  readonly description?: string | undefined
  /** Kept in memory only. */
  readonly isEphemeral: boolean
  /** Its value is told to nobody. */
  readonly isPrivate: boolean
  readonly usage?: SecretUsage | undefined
  /** What this reader does not know, kept. */
  readonly foreign?: readonly ForeignPart[] | undefined
}

export interface SecretUsage {
  readonly type: keyof typeof USAGE_ELEMENTS
  /** The volume's path, the iSCSI usage, or the name, by which pools and disks find the secret. */
  readonly id: string
}

/** The element that holds the id, by usage type. */
const USAGE_ELEMENTS = { volume: 'volume', ceph: 'name', iscsi: 'target', tls: 'name', vtpm: 'name' } as const
const usageTypes = Object.keys(USAGE_ELEMENTS) as (keyof typeof USAGE_ELEMENTS)[]

/** Reads a secret's document. Throws `RpcError` EINVAL with the line and the reason. */
export function parseSecret(text: string): SecretDocument {
  const root = XmlReader.parse(text, 'the secret document', 'secret')
  const document: SecretDocument = {
    uuid: readUuid(root.child('uuid')),
    description: root.childText('description'),
    isEphemeral: root.choice('ephemeral', ['yes', 'no']) === 'yes',
    isPrivate: root.choice('private', ['yes', 'no']) === 'yes',
    usage: readUsage(root.child('usage')),
  }
  return { ...document, foreign: root.foreign() }
}

function readUsage(reader: XmlReader | undefined): SecretUsage | undefined {
  if (reader === undefined) return undefined
  if (reader.attribute('type') === 'none') return undefined
  const type = reader.choice('type', usageTypes) ?? reader.fail('<usage> has no type')
  const element = USAGE_ELEMENTS[type]
  const id = reader.childText(element) ?? reader.fail(`<usage type='${type}'> has no <${element}>`)
  return { type, id }
}

/** Writes a secret's document as libvirt would. */
export function formatSecret(secret: SecretDocument): string {
  const { usage } = secret
  const root = node(
    'secret',
    { ephemeral: secret.isEphemeral ? 'yes' : 'no', private: secret.isPrivate ? 'yes' : 'no' },
    textNode('uuid', secret.uuid),
    textNode('description', secret.description),
    usage && node('usage', { type: usage.type }, textNode(USAGE_ELEMENTS[usage.type], usage.id)),
  )
  return formatXml(withForeign(root, secret.foreign))
}
