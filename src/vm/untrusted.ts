/** What QEMU says is not to be trusted: a guest may have taken it over. */

/** Whether something that a program has written is an object of JSON. */
export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** Text as it is; what is none is not made one, since an object may say how, and that may throw. */
export const textOf = (value: unknown, otherwise = 'unknown'): string =>
  typeof value === 'string' ? value : otherwise
