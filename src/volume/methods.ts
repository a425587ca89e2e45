/** Every method of pools and volumes. */
import { exportMethods } from './methods/export.ts'
import { poolSourceMethods } from './methods/pool-sources.ts'
import { poolMethods } from './methods/pools.ts'
import { poolAsMethods } from './methods/pools-as.ts'
import { secretMethods } from './methods/secrets.ts'
import { snapshotMethods } from './methods/snapshots.ts'
import { transferMethods } from './methods/transfers.ts'
import { volumeMethods } from './methods/volumes.ts'

export const storageMethods = [
  ...poolMethods,
  ...poolSourceMethods,
  ...secretMethods,
  ...poolAsMethods,
  ...volumeMethods,
  ...snapshotMethods,
  ...exportMethods,
  ...transferMethods,
]
