/** The largest buffer of a pool, in bytes. Apart from the pools, since the command line asks for it and has no memory to map. */
export const BUFFER_SIZE_MAX = 1 << 20
