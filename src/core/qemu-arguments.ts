/** Pieces of a QEMU command line that a shell may take as it is: `qemu-system-x86_64 $(qpair vhost qemu-args disk0)`. */
import { RpcError } from './errors.ts'

/** An identifier that QEMU accepts (letters, digits, `-`, `.`, `_`, a letter first), made from any name. */
export const qemuId = (prefix: string, name: string): string =>
  `${prefix}-${name.replaceAll(/[^\w.-]/g, '-')}`

/**
 * An option with its properties: `socket,id=a,path=/run/a`. Those that are undefined are left out; a comma inside a value
 * is doubled, as QEMU wants it. Throws `RpcError` EINVAL for a value that `$(…)` would tear apart, since quotes do not
 * help there.
 */
export function qemuOption(
  kind: string,
  properties: Readonly<Record<string, string | number | undefined>>,
): string {
  const given = Object.entries(properties).flatMap(([name, value]) => {
    if (value === undefined) return []
    const text = String(value)
    if (/[\s*?[\]]/.test(text)) {
      throw new RpcError(
        'EINVAL',
        `${name} would be ${JSON.stringify(text)}: a shell splits or expands white space, *, ? and [ in $(…). ` +
          'Choose a path or a name without them',
      )
    }
    return [`${name}=${text.replaceAll(',', ',,')}`]
  })
  return [kind, ...given].filter(part => part !== '').join(',')
}
