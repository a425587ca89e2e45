/** Sizes with a unit: `<capacity unit='GiB'>10</capacity>`. */
import { textNode, type XmlNode } from '../core/xml.ts'
import type { XmlReader } from './xml-reader.ts'

/** Undefined when nothing is said. A size beyond 2^53 - 1 bytes is refused. */
export function readBytes(reader: XmlReader | undefined): number | undefined {
  const value = reader?.textNumber(0, Number.MAX_SAFE_INTEGER)
  if (reader === undefined || value === undefined) return undefined
  const unit = reader.attribute('unit') ?? 'bytes'
  const factor = unitBytes(unit)
  if (factor === undefined)
    return reader.fail(`unit='${unit}': it is bytes, KiB, MiB, GiB, KB, MB, GB and the like`)
  const bytes = value * factor
  if (bytes > Number.MAX_SAFE_INTEGER) reader.fail(`${value} ${unit} is more than 2^53 - 1 bytes`)
  return bytes
}

/** K and KiB are 1024 bytes, KB is 1000; in upper or lower case, as libvirt takes them. */
function unitBytes(unit: string): number | undefined {
  const lower = unit.toLowerCase()
  if (lower === 'b' || lower === 'bytes' || lower === 'byte') return 1
  const [, letter, suffix] = /^([kmgtpe])(ib|b)?$/.exec(lower) ?? []
  if (letter === undefined) return undefined
  return (suffix === 'b' ? 1000 : 1024) ** ('kmgtpe'.indexOf(letter) + 1)
}

/** In bytes; undefined when there is no size. */
export const bytesNode = (name: string, bytes: number | undefined): XmlNode | undefined =>
  textNode(name, bytes, { unit: 'bytes' })
