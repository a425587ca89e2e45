/** Parameters without what only their owner may know: for logs, and for answers that everybody who may ask gets. */

const SECRET = /psk|secret|password|dhchap|^base64$|(^|[_.])key$/
const HIDDEN = '(hidden)'

/** Whether a parameter of that name, or dotted path, has a value that must not be repeated. */
export const isSecret = (path: string): boolean => SECRET.test(path)

export function withoutSecrets(params: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(params).map(([name, value]) => [name, isSecret(name) ? HIDDEN : hidden(value)]),
  )
}

function hidden(value: unknown): unknown {
  if (typeof value === 'string') return withoutPassword(withoutKey(value))
  if (Array.isArray(value)) return value.map(hidden)
  return typeof value === 'object' && value !== null
    ? withoutSecrets(value as Record<string, unknown>)
    : value
}

/** A URL without the passwords in it: `USER%PASSWORD@` as libiscsi has it, `USER:PASSWORD@`, and options that are called so. */
export const withoutPassword = (text: string): string =>
  text
    .replace(/^([a-z][a-z0-9+.-]*:\/\/[^%:/?@]*[%:])[^/?]*@/i, `$1${HIDDEN}@`)
    .replaceAll(/([?&][a-z_]*password=)[^&]*/gi, `$1${HIDDEN}`)

/** The names that QEMU has for images may have a key of Ceph's in them. */
const withoutKey = (text: string): string =>
  /^(rbd|json):/.test(text) ? text.replaceAll(/:key=[^:"]*/g, `:key=${HIDDEN}`) : text
