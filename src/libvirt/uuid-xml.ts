/** `<uuid>`, as every document of libvirt has it. */
import type { XmlReader } from './xml-reader.ts'

/** A UUID in lower case with its hyphens, which libvirt lets stand anywhere or nowhere; undefined when nothing is said. */
export function readUuid(reader: XmlReader | undefined): string | undefined {
  const text = reader?.text()
  if (text === undefined) return undefined
  const digits = text.toLowerCase().replaceAll(/[-\s]/g, '')
  if (!/^[0-9a-f]{32}$/.test(digits)) reader!.fail(`<uuid>${text}: it is 32 hexadecimal digits`)
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}
