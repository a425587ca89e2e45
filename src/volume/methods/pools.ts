/** Methods of pools, by virsh's names. */
import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import { buildBefore, buildMode, buildParams, overwrite, poolName, type VolumeContext } from './params.ts'
import { poolColumns, poolRow, poolRowOf, poolText } from './pool-row.ts'

const NO_POOL = { ENOENT: 'there is no pool of that name' } as const
const TOOL = { EIO: 'a program that does the work failed; it says why' } as const
const SILENT = { ETIMEDOUT: 'its storage does not answer' } as const
const POOL = { positional: ['pool'] } as const
/** What a terminal is told when it is done, in virsh's words. */
const saying = (what: string) =>
  ({
    ...POOL,
    text: (_: unknown, { pool }: { readonly pool?: unknown }) => `Pool ${pool} ${what}\n`,
  }) as const
const byPool = z.object({ pool: poolName })

const xml = z
  .string()
  .min(1)
  .describe("The pool's libvirt document; on the command line the file that has it, - for stdin")

const poolDefine = method({
  name: 'pool_define',
  summary:
    'Keeps a pool of this document, or changes the document of an inactive one. It is started by pool_start.',
  params: z.object({ xml }),
  result: poolRow,
  errors: {
    EINVAL: 'the document is not one of a pool, with the line and the reason',
    EEXIST: 'the name, the UUID or the target is that of another pool',
    EBUSY: 'the pool is active',
    ENOTSUP: 'pools of that type are not served',
  },
  saves: true,
  cli: { positional: ['xml'], files: ['xml'], text: row => `Pool ${row.name} defined\n` },
  run: async (params, { pools }: VolumeContext) => poolRowOf(await pools.define(params.xml)),
})

const poolCreate = method({
  name: 'pool_create',
  summary: 'Starts a pool that is not kept: it is gone when it is stopped or the daemon is.',
  params: z.object({
    xml,
    ...buildParams,
  }),
  result: poolRow,
  errors: { ...poolDefine.errors, ...TOOL, ENOENT: 'its storage is not there' },
  concurrent: true,
  cli: { positional: ['xml'], files: ['xml'], text: row => `Pool ${row.name} created\n` },
  async run(params, { pools }: VolumeContext) {
    return poolRowOf(await pools.create(params.xml, buildBefore(params)))
  },
})

const poolBuild = method({
  name: 'pool_build',
  summary: 'Makes the storage of a pool: its directory, its file system, its volume group.',
  params: z.object({ pool: poolName, overwrite }),
  result: done,
  errors: {
    ...NO_POOL,
    ...TOOL,
    EBUSY: 'the pool is active',
    EEXIST: 'something is on its storage already',
    EINVAL: 'there is nothing to format for its type',
    ENOTSUP: 'there is nothing to build for its type',
  },
  concurrent: true,
  cli: saying('built'),
  async run(params, { pools }: VolumeContext) {
    await pools.build(params.pool, buildMode(params.overwrite))
    return true as const
  },
})

const poolStart = method({
  name: 'pool_start',
  summary: 'Starts a pool: mounts, logs in, activates, and looks what volumes it has.',
  params: z.object({
    pool: poolName,
    ...buildParams,
  }),
  result: done,
  errors: {
    ENOENT: 'there is no pool of that name, or its storage is not there',
    ...TOOL,
    EALREADY: 'it is active already',
    EINVAL: 'there is nothing to format for its type',
  },
  concurrent: true,
  cli: saying('started'),
  async run(params, { pools }: VolumeContext) {
    await pools.start(params.pool, buildBefore(params))
    return true as const
  },
})

const poolAutostart = method({
  name: 'pool_autostart',
  summary: 'Has a pool started with the daemon.',
  params: z.object({
    pool: poolName,
    disable: z.boolean().default(false).describe('Has it not started any more'),
  }),
  result: done,
  errors: { ...NO_POOL, EINVAL: 'the pool is transient' },
  saves: true,
  concurrent: true,
  cli: {
    ...POOL,
    text: (_, { pool, disable }) =>
      `Pool ${pool} ${disable === true ? 'unmarked' : 'marked'} as autostarted\n`,
  },
  async run({ pool, disable }, { pools }: VolumeContext) {
    await pools.setAutostart(pool, !disable)
    return true as const
  },
})

const poolRefresh = method({
  name: 'pool_refresh',
  summary: 'Looks again what volumes a pool has.',
  params: byPool,
  result: poolRow,
  errors: { ...NO_POOL, ...TOOL, ...SILENT, EINVAL: 'it is not active' },
  concurrent: true,
  cli: { ...POOL, text: row => `Pool ${row.name} refreshed: ${row.volumes} volumes\n` },
  run: async ({ pool }, { pools }: VolumeContext) => poolRowOf(await pools.refresh(pool)),
})

const poolDestroy = method({
  name: 'pool_destroy',
  summary: 'Stops a pool: unmounts, logs out. Data stays. A pool that is not defined is forgotten.',
  params: z.object({
    pool: poolName,
    force: z
      .boolean()
      .default(false)
      .describe('Also when its storage does not answer: it is unmounted all the same'),
  }),
  result: done,
  errors: {
    ...NO_POOL,
    ...TOOL,
    ...SILENT,
    EINVAL: 'it is not active',
    EBUSY: 'somebody uses what is in it',
  },
  concurrent: true,
  cli: saying('destroyed'),
  async run({ pool, force }, { pools }: VolumeContext) {
    await pools.destroy(pool, { isForced: force })
    return true as const
  },
})

const poolDelete = method({
  name: 'pool_delete',
  summary:
    'Removes the storage of an inactive pool, with what is in it where its type can: a volume group, a directory that is empty.',
  params: byPool,
  result: done,
  errors: {
    ...NO_POOL,
    ...TOOL,
    EBUSY: 'it is active',
    ENOTSUP: 'its type cannot',
    ENOTEMPTY: 'the directory is not empty',
  },
  concurrent: true,
  cli: saying('deleted'),
  async run({ pool }, { pools }: VolumeContext) {
    await pools.delete(pool)
    return true as const
  },
})

const poolUndefine = method({
  name: 'pool_undefine',
  summary: 'Forgets an inactive pool. Its storage stays.',
  params: byPool,
  result: done,
  errors: { ...NO_POOL, EBUSY: 'it is active' },
  saves: true,
  cli: saying('has been undefined'),
  run({ pool }, { pools }: VolumeContext) {
    pools.undefine(pool)
    return true as const
  },
})

const poolList = method({
  name: 'pool_list',
  summary: 'Lists the pools with their state and how full they are.',
  params: z.object({
    inactive: z.boolean().default(false).describe('Only those that are not running'),
    active: z.boolean().default(false).describe('Only those that are running'),
    autostart: z.boolean().default(false).describe('Only those that start with the daemon'),
    persistent: z.boolean().default(false).describe('Only those that are defined'),
    transient: z.boolean().default(false).describe('Only those that are not'),
    type: z.string().optional().describe('Only those of this type'),
  }),
  // virsh's spellings; both are the case anyway.
  ignored: ['all', 'details'],
  result: z.array(poolRow),
  cli: { columns: poolColumns, flags: { all: { on: 'all' }, details: { on: 'details' } } },
  run: (wanted, { pools }: VolumeContext) =>
    pools
      .list()
      .filter(pool => !(wanted.inactive && pool.isActive) && !(wanted.active && !pool.isActive))
      .filter(pool => !wanted.autostart || pool.isAutostart)
      .filter(pool => !(wanted.persistent && !pool.isPersistent) && !(wanted.transient && pool.isPersistent))
      .filter(pool => wanted.type === undefined || pool.document.type === wanted.type)
      .map(poolRowOf),
})

const poolInfo = method({
  name: 'pool_info',
  summary: 'Tells of one pool: state, sizes, how full it is.',
  params: byPool,
  result: poolRow,
  errors: NO_POOL,
  concurrent: true,
  cli: { ...POOL, text: poolText },
  run: ({ pool }, { pools }: VolumeContext) => poolRowOf(pools.get(pool)),
})

const poolDumpxml = method({
  name: 'pool_dumpxml',
  summary: 'Prints the libvirt document of a pool.',
  params: byPool,
  result: z.string(),
  errors: NO_POOL,
  concurrent: true,
  cli: POOL,
  run: ({ pool }, { pools }: VolumeContext) => pools.xmlOf(pool),
})

const poolSetWatermarks = method({
  name: 'pool_set_watermarks',
  summary: 'Sets how full a pool is when the log, a notification (pool_usage) and pool_list say so.',
  params: z.object({
    pool: poolName,
    levels: z.array(z.int().min(1).max(100)).max(8).describe('In percent; none for never'),
  }),
  result: done,
  errors: NO_POOL,
  saves: true,
  cli: { positional: ['pool', 'levels'] },
  run({ pool, levels }, { pools }: VolumeContext) {
    pools.setLevels(pool, levels)
    return true as const
  },
})

export const poolMethods = [
  poolDefine,
  poolCreate,
  poolBuild,
  poolStart,
  poolAutostart,
  poolRefresh,
  poolDestroy,
  poolDelete,
  poolUndefine,
  poolList,
  poolInfo,
  poolDumpxml,
  poolSetWatermarks,
]
