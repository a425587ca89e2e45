/**
 * What a guest may ask for in one DISCARD or WRITE_ZEROES: it reads this in the configuration space, and more is refused,
 * so that one guest cannot keep a reactor from the others.
 */

/** Sectors in a range: 64 MiB. */
export const RANGE_SECTORS_MAX = 131072
/** Ranges in a request. */
export const RANGES_MAX = 16
