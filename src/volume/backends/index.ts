/** Every pool type, one line each. */
import type { PoolBackendType } from '../pool.ts'
import { directoryPool } from './directory.ts'

export const poolBackends: readonly PoolBackendType[] = [directoryPool]
