/**
 * Where the method of a command is declared. To call one method its own list is enough: loading the whole table, and whatever
 * all of its methods stand on, takes longer than most calls, and scripts call qpair hundreds of times.
 */
import type { Declarations } from '../rpc/method.ts'

type Load = () => Promise<Declarations>

/** A method table whose lists are loaded when they are looked into. */
export interface MethodLists {
  readonly all: Load
  /** Lists that a command line or a method that begins so may be in, in this order. What none of them has, `all` may have. */
  readonly near: (beginning: string) => readonly Load[]
}

/** The words that commands begin with, and the list that such commands may be in, looked into in this order. */
const LISTS: readonly (readonly [beginnings: string, load: Load])[] = [
  ['methods discover rpc', async () => (await import('../rpc/introspection.ts')).introspectionMethods],
  [
    'version spdk framework thread stop',
    async () => (await import('../app/methods/framework.ts')).frameworkMethods,
  ],
  ['config', async () => (await import('../app/methods/config.ts')).configMethods],
  ['log', async () => (await import('../app/methods/log.ts')).logMethods],
  ['notify', async () => (await import('../app/methods/notify.ts')).notifyMethods],
  ['job', async () => (await import('../rpc/job-methods.ts')).jobMethods],
  ['nvmf subsystem namespace listener host', async () => (await import('../nvmf/methods.ts')).nvmfMethods],
  ['nvme bdev-nvme', async () => (await import('../nvme/methods.ts')).nvmeMethods],
  ['rbd bdev-rbd', async () => (await import('../rbd/methods.ts')).rbdMethods],
  ['gateway', async () => (await import('../gateway/methods.ts')).gatewayMethods],
  ['vhost virtio-blk', async () => (await import('../vhost/methods.ts')).vhostMethods],
  ['virtio bdev-virtio', async () => (await import('../virtio/methods.ts')).virtioMethods],
  ['bdev-iscsi', async () => (await import('../bdev/drivers/iscsi/methods.ts')).iscsiMethods],
  ['bdev', async () => (await import('../bdev/methods/devices.ts')).deviceMethods],
  ['bdev', async () => (await import('../bdev/methods.ts')).bdevMethods],
  ['nbd', async () => (await import('../nbd/methods.ts')).nbdMethods],
  ['secret', async () => (await import('../volume/methods/secrets.ts')).secretMethods],
  [
    'pool-define-as pool-create-as',
    async () => (await import('../volume/methods/pools-as.ts')).poolAsMethods,
  ],
  ['pool', async () => (await import('../volume/methods/pools.ts')).poolMethods],
  ['pool', async () => (await import('../volume/methods/pool-sources.ts')).poolSourceMethods],
  ['volume-snapshot', async () => (await import('../volume/methods/snapshots.ts')).snapshotMethods],
  ['volume', async () => (await import('../volume/methods/volumes.ts')).volumeMethods],
  ['volume', async () => (await import('../volume/methods/export.ts')).exportMethods],
  ['volume', async () => (await import('../volume/methods/transfers.ts')).transferMethods],
  ['net', async () => (await import('../host/methods.ts')).hostMethods],
  ['vm', async () => (await import('../vm/methods.ts')).vmMethods],
  ['workload', async () => (await import('../workload/methods.ts')).workloadMethods],
]

/** The table of the daemon. */
export const methodLists: MethodLists = {
  all: async () => (await import('../app/methods.ts')).methods,
  near: beginning => {
    const typed = `${beginning.replaceAll(/[_.]/g, '-')}-`
    const fits = (words: string): boolean => typed.startsWith(`${words}-`)
    return LISTS.flatMap(([beginnings, load]) => (beginnings.split(' ').some(fits) ? [load] : []))
  },
}

/** What `find` finds first, in the lists near to it and then in the whole table. */
export async function findIn<Found>(
  { all, near }: MethodLists,
  beginning: string,
  find: (methods: Declarations) => Found | undefined,
): Promise<Found | undefined> {
  for (const load of [...near(beginning), all]) {
    const found = find(await load())
    if (found !== undefined) return found
  }
  return undefined
}
