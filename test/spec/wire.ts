/** What every test of a wire structure needs: bytes written as hex, and all fields of a structure read at once. */
import type { BytesField, Field, TextField } from '../../src/core/struct.ts'

type AnyField = Field | BytesField | TextField

/** The bytes of a hex dump, as a view. Spaces and line ends are for the reader; `//` starts a comment. */
export function hex(dump: string): DataView {
  const digits = dump.replaceAll(/\/\/.*$/gm, '').replaceAll(/\s/g, '')
  const bytes = Uint8Array.from(Buffer.from(digits, 'hex'))
  if (bytes.length * 2 !== digits.length) throw new Error(`"${digits}" is not whole bytes of hex`)
  return new DataView(bytes.buffer)
}

/** `count` zero bytes, for the reserved stretches of a dump. */
export const zeroes = (count: number): string => '00'.repeat(count)

/** Text as hex, padded to `size` characters. */
export const ascii = (value: string, size: number, padding: ' ' | '\0'): string =>
  Buffer.from(value.padEnd(size, padding), 'latin1').toString('hex')

/** A view of `size` bytes that are zero but for `parts`, each a hex dump at an offset the specification states. */
export function page(size: number, parts: Record<number, string>): DataView {
  const view = new DataView(new ArrayBuffer(size))
  for (const [offset, dump] of Object.entries(parts)) {
    new Uint8Array(view.buffer).set(new Uint8Array(hex(dump).buffer), Number(offset))
  }
  return view
}

/** Every field of a structure, by name; runs of bytes as hex. */
export function read(
  structure: { readonly size: number },
  view: DataView,
  base = 0,
): Record<string, number | string> {
  const values: Record<string, number | string> = {}
  for (const [name, field] of Object.entries(structure as object as Record<string, AnyField | number>)) {
    if (typeof field === 'number') continue
    const value = field.get(view, base)
    values[name] = value instanceof Uint8Array ? Buffer.from(value).toString('hex') : value
  }
  return values
}

/** Writes fields into a structure of zeroes and gives its bytes as hex. */
export function written(
  structure: { readonly size: number },
  values: Record<string, number | string | Uint8Array>,
): string {
  const view = new DataView(new ArrayBuffer(structure.size))
  const fields = structure as object as Record<
    string,
    { set(view: DataView, base: number, v: unknown): void }
  >
  for (const [name, value] of Object.entries(values)) fields[name]!.set(view, 0, value)
  return Buffer.from(view.buffer).toString('hex')
}
