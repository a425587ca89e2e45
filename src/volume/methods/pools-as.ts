/** Pools without a document at hand: virsh's `pool-define-as` and `pool-create-as`, word for word. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { poolTypes } from '../../libvirt/pool-types.ts'
import { formatPool, type PoolAuth, type PoolDocument } from '../../libvirt/pool-xml.ts'
import { method } from '../../rpc/method.ts'
import { uint32 } from '../../rpc/params.ts'
import { buildBefore, buildParams, type VolumeContext } from './params.ts'
import { poolRow, poolRowOf } from './pool-row.ts'

const text = z.string().min(1).optional()

const params = z.object({
  name: z.string().min(1).describe('Its name'),
  type: z.enum(poolTypes).describe('Its type'),
  source_host: text.describe('The server; - for none, as for the words that follow'),
  source_path: text.describe('The directory that the server exports'),
  source_dev: text.describe('The block device, or the name of an iSCSI target; several with commas'),
  source_name: text.describe('The volume group, Ceph pool, Gluster volume'),
  target: text.describe('The directory of the volumes'),
  source_format: text.describe('The format of the source, such as xfs, nfs, gpt'),
  source_port: z.int().min(1).max(65535).optional().describe("The server's port"),
  source_initiator: text.describe('The name by which an initiator logs in'),
  source_protocol_ver: uint32.optional().describe('The version of NFS'),
  auth_type: z.enum(['chap', 'ceph']).optional().describe('How the server knows us'),
  auth_username: text.describe('As whom'),
  secret_usage: text.describe('The secret, by its usage'),
  secret_uuid: text.describe('The secret, by its UUID'),
  adapter_name: text.describe('The host adapter, such as scsi_host5'),
  adapter_wwnn: text.describe('The node name of a virtual Fibre Channel adapter'),
  adapter_wwpn: text.describe('Its port name'),
  adapter_parent: text.describe('The adapter that it is part of'),
})
type AsParams = z.output<typeof params>

/** virsh's order. */
const positional = [
  'name',
  'type',
  'source_host',
  'source_path',
  'source_dev',
  'source_name',
  'target',
] as const

/** The document that these words describe; what its type needs is checked where documents are read. */
export function documentOf(given: AsParams): PoolDocument {
  const { name, type } = given
  const host = word(given.source_host)
  const target = word(given.target)
  const devices = word(given.source_dev)?.split(',')
  return {
    ...{ name, type },
    source: {
      name: word(given.source_name),
      hosts: host === undefined ? undefined : [{ name: host, port: given.source_port }],
      dir: word(given.source_path),
      devices: devices?.map(path => ({ path })),
      format: given.source_format,
      initiatorIqn: given.source_initiator,
      protocolVersion: given.source_protocol_ver,
      adapter: adapterOf(given),
      auth: authOf(given),
    },
    target: target === undefined ? undefined : { path: target },
  }
}

/** Who types words by position says - where there is none. */
const word = (given: string | undefined): string | undefined => (given === '-' ? undefined : given)

function adapterOf({ adapter_name, adapter_wwnn, adapter_wwpn, adapter_parent }: AsParams) {
  if (adapter_name !== undefined) return { type: 'scsi_host' as const, name: adapter_name }
  if (adapter_wwnn === undefined || adapter_wwpn === undefined) return undefined
  return { type: 'fc_host' as const, wwnn: adapter_wwnn, wwpn: adapter_wwpn, parent: adapter_parent }
}

function authOf(given: AsParams): PoolAuth | undefined {
  const { auth_type: type, auth_username: username, secret_usage: usage, secret_uuid: uuid } = given
  if (type === undefined) return undefined
  if (username === undefined || (usage === undefined && uuid === undefined)) {
    throw new RpcError(
      'EINVAL',
      `pool ${given.name} has auth_type ${type} and also needs auth_username, and secret_usage or secret_uuid`,
    )
  }
  return { type, username, secret: uuid === undefined ? { usage: usage! } : { uuid } }
}

/** Whoever typed words has written no document that could be wrong in a line. */
async function inWords<Result>({ name }: AsParams, work: Promise<Result>): Promise<Result> {
  return work.catch((error: unknown) => {
    const [, reason] = /^the pool document, line \d+: (.*)/s.exec((error as Error).message) ?? []
    if (!(error instanceof RpcError) || reason === undefined) throw error
    throw new RpcError(
      error.code,
      `pool ${name} needs other words, such as --target for its <target>: ${reason}`,
      {
        cause: error,
      },
    )
  })
}

const ERRORS = {
  EINVAL: 'its type needs what is not given; which, is said',
  EEXIST: 'the name or the target is that of another pool',
  EBUSY: 'the pool is active',
  ENOTSUP: 'pools of that type are not served',
} as const

const poolDefineAs = method({
  name: 'pool_define_as',
  summary: 'Keeps a pool that is described by words, not by a document.',
  params,
  result: poolRow,
  errors: ERRORS,
  saves: true,
  cli: { positional, text: row => `Pool ${row.name} defined\n` },
  run: async (given, { pools }: VolumeContext) =>
    poolRowOf(await inWords(given, pools.define(formatPool(documentOf(given))))),
})

const poolCreateAs = method({
  name: 'pool_create_as',
  summary: 'Starts a pool that is described by words and not kept.',
  params: params.extend({
    ...buildParams,
  }),
  result: poolRow,
  errors: {
    ...ERRORS,
    ENOENT: 'its storage is not there',
    EIO: 'a program that does the work failed; it says why',
  },
  concurrent: true,
  cli: { positional, text: row => `Pool ${row.name} created\n` },
  async run(given, { pools }: VolumeContext) {
    return poolRowOf(await inWords(given, pools.create(formatPool(documentOf(given)), buildBefore(given))))
  },
})

export const poolAsMethods = [poolDefineAs, poolCreateAs]
