/** Where pools come from: what there is to make them of, and those that libvirt has. */
import { z } from 'zod'
import { poolTypes } from '../../libvirt/pool-types.ts'
import { Virsh } from '../../libvirt/virsh.ts'
import { method } from '../../rpc/method.ts'
import { uint16 } from '../../rpc/params.ts'
import { findSources } from '../find-sources.ts'
import type { VolumeContext } from './params.ts'

const poolFindSources = method({
  name: 'pool_find_sources',
  summary: 'Looks for storage that pools of a type could be made of: volume groups, exports, targets.',
  params: z.object({
    type: z.enum(poolTypes).describe('logical, netfs, gluster, iscsi, iscsi-direct, scsi or zfs'),
    host: z.string().min(1).optional().describe('The server (netfs, gluster, iscsi, iscsi-direct)'),
    port: uint16.optional().describe('Its port (iscsi, iscsi-direct)'),
    initiator: z.string().min(1).optional().describe('The name to ask under (iscsi-direct)'),
  }),
  result: z.string().describe("libvirt's <sources>"),
  errors: {
    EINVAL: 'the type needs a host, or an initiator',
    ENOTSUP: 'sources of that type cannot be looked for',
    ENOENT: 'a program that does the work is missing',
    EIO: 'a program that does the work failed; it says why',
  },
  concurrent: true,
  cli: { positional: ['type', 'host'] },
  run: ({ type, host, port, initiator }) => findSources(type, { host, port, initiator }),
})

const importedRow = z.object({
  kind: z.enum(['pool', 'secret']),
  name: z.string(),
  type: z.string(),
  outcome: z.enum(['imported', 'present', 'failed']),
  note: z.string().describe('Why it failed, or what is still to be done; empty mostly'),
})

const poolImportLibvirt = method({
  name: 'pool_import_libvirt',
  summary: 'Takes over every pool and secret of a libvirt that runs; nothing is changed there.',
  params: z.object({
    uri: z.string().min(1).optional().describe("libvirt's connection, as virsh -c takes it"),
  }),
  result: z.array(importedRow),
  errors: {
    ENOENT: 'there is no virsh on this machine',
    ECONNREFUSED: 'libvirt does not answer',
    EIO: 'libvirt refuses, and says why',
  },
  // It calls methods that take their turn, and save.
  concurrent: true,
  cli: { columns: ['kind', 'name', 'type', 'outcome', 'note'], flags: { uri: 'c' } },
  run: ({ uri }, { volumes }: VolumeContext) => volumes.imports.import(new Virsh(uri)),
})

export const poolSourceMethods = [poolFindSources, poolImportLibvirt]
