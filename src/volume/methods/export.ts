/** Volumes as disks for others. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import type { ExportKind } from '../export.ts'
import { inPool, type VolumeContext, volumeName } from './params.ts'
import { NO_VOLUME } from './volumes.ts'

const volumeExport = method({
  name: 'volume_export',
  summary: 'Serves a volume over NVMe/TCP, vhost-user or NBD, and says what to type where it is used.',
  params: z.object({
    volume: volumeName,
    pool: inPool,
    nvme: z.boolean().default(false).describe('As an NVMe/TCP disk'),
    vhost: z.boolean().default(false).describe('As a vhost-user disk of a guest on this machine'),
    nbd: z.boolean().default(false).describe('As an NBD export'),
    listen: z
      .array(z.string())
      .default([])
      .describe('IP:PORT; 127.0.0.1 and port 4420 (nvme) or 10809 (nbd) when absent'),
    nqn: z
      .string()
      .optional()
      .describe('The subsystem (nvme); made of the names of pool and volume when absent'),
    unix: z.string().optional().describe('Path of the Unix socket instead of an address (nbd)'),
    bdev: z
      .string()
      .optional()
      .describe(
        'The name of the bdev and of what serves it; made of the names of pool and volume when absent',
      ),
    read_only: z.boolean().default(false).describe('Refuse writes'),
    shared: z
      .boolean()
      .default(false)
      .describe('Though somebody has it already: only for clients that know of each other'),
  }),
  result: z.object({
    bdev: z.string(),
    kind: z.enum(['nvme', 'vhost', 'nbd']),
    next: z.string().describe('What to type where it is used'),
  }),
  errors: {
    ...NO_VOLUME,
    EBUSY: 'somebody uses the volume, or is changing it',
    ENOTSUP: 'its format cannot be opened here',
    EADDRINUSE: 'another process listens there',
  },
  // It calls methods that take their turn.
  concurrent: true,
  cli: {
    positional: ['volume'],
    flags: { read_only: 'r' },
    text: ({ next }) => `${next}\n`,
    keepsLines: true,
  },
  async run({ volume, pool, ...rest }, { volumes }: VolumeContext) {
    const kind = kindOf(rest)
    return volumes.exports.export(volumes.find(volume, pool), { ...rest, kind, readOnly: rest.read_only })
  },
})

function kindOf(given: { readonly [kind in ExportKind]: boolean }): ExportKind {
  const kinds = (['nvme', 'vhost', 'nbd'] as const).filter(kind => given[kind])
  if (kinds.length === 1) return kinds[0]!
  throw new RpcError(
    'EINVAL',
    `say how it is served: one of --nvme, --vhost, --nbd, not ${kinds.length} of them`,
  )
}

const volumeUnexport = method({
  name: 'volume_unexport',
  summary: 'Takes back what volume_export has made, and nothing that was made by hand over the same volume.',
  params: z.object({
    volume: volumeName,
    pool: inPool,
    bdev: z.string().optional().describe('The name that was given to volume_export, if one was'),
    force: z
      .boolean()
      .default(false)
      .describe(
        'Though NVMe hosts or NBD clients have it open, who see it go and lose what they have not written',
      ),
  }),
  result: z.array(z.string()).describe('What served it'),
  errors: { ...NO_VOLUME, EBUSY: 'somebody has it open, or what has it was not made by volume_export' },
  concurrent: true,
  cli: { positional: ['volume'], columns: [{ title: 'closed', value: name => name }] },
  run: ({ volume, pool, ...options }, { volumes }: VolumeContext) =>
    volumes.exports.unexport(volumes.find(volume, pool), options),
})

export const exportMethods = [volumeExport, volumeUnexport]
