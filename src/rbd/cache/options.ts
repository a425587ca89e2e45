/** librbd's options of its cache: their types, what they are when nobody says anything, and how Ceph reads them. */

type Kind = 'boolean' | 'size' | 'seconds' | 'policy'

const KINDS = {
  rbd_cache: 'boolean',
  rbd_cache_policy: 'policy',
  rbd_cache_writethrough_until_flush: 'boolean',
  rbd_cache_size: 'size',
  rbd_cache_max_dirty: 'size',
  rbd_cache_target_dirty: 'size',
  rbd_cache_max_dirty_age: 'seconds',
} as const satisfies Record<string, Kind>

export type CacheOption = keyof typeof KINDS

export const CACHE_OPTIONS = Object.keys(KINDS) as CacheOption[]

/** The values as text in one spelling: `true`, bytes, seconds. */
export type CacheValues = Readonly<Record<CacheOption, string>>

const POLICIES = ['writethrough', 'writeback', 'writearound']

/**
 * The one spelling of a value, or undefined where Ceph does not take it (and keeps the default). Measured with librados
 * 16: truth is `true`, `false` or a decimal number, so `no` and `off` are refused; multipliers of sizes are capitals.
 */
export function parseValue(option: CacheOption, text: string): string | undefined {
  switch (KINDS[option]) {
    case 'boolean':
      if (/^(true|false)$/i.test(text)) return text.toLowerCase()
      return /^[+-]?\d+$/.test(text) ? String(!/^[+-]?0+$/.test(text)) : undefined
    case 'size':
      return parseSize(text)
    case 'seconds':
      return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? String(Number(text)) : undefined
    case 'policy':
      return POLICIES.includes(text) ? text : undefined
  }
}

function parseSize(text: string): string | undefined {
  const match = /^\+?(\d+)(?:([KMGTPE])(?:i|B)?|B)?$/.exec(text)
  if (match === null) return undefined
  const bytes = BigInt(match[1]!) << BigInt(10 * ('KMGTPE'.indexOf(match[2] ?? '-') + 1))
  return bytes < 1n << 64n ? String(bytes) : undefined
}

const SINCE_OCTOPUS: CacheValues = {
  rbd_cache: 'true',
  rbd_cache_policy: 'writearound',
  rbd_cache_writethrough_until_flush: 'true',
  rbd_cache_size: '33554432',
  rbd_cache_max_dirty: '25165824',
  rbd_cache_target_dirty: '16777216',
  rbd_cache_max_dirty_age: '1',
}

/** Policies came with Ceph 15; before, what was not write-through was write-back. */
const SINCE_GIANT: CacheValues = { ...SINCE_OCTOPUS, rbd_cache_policy: 'writeback' }

const BEFORE_GIANT: CacheValues = {
  ...SINCE_GIANT,
  rbd_cache: 'false',
  rbd_cache_writethrough_until_flush: 'false',
}

/** What is built into the librbd of a Ceph release such as `0.80`, `0.87` or `16.2.15`. */
export function builtInDefaults(release: string): CacheValues {
  const [major = 0, minor = 0] = release.split('.').map(Number)
  if (major === 0 && minor < 87) return BEFORE_GIANT
  return major < 15 ? SINCE_GIANT : SINCE_OCTOPUS
}
