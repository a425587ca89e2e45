/** Subsystems, and what hosts have open in them. */
import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { done, uint8, uint16, uint32 } from '../../rpc/params.ts'
import { ioQueuesOf } from '../directory.ts'
import type { Subsystem } from '../subsystem.ts'
import { Address, addressOf, type NvmfContext, nqn, peerAddressOf, tgtName, UNKNOWN_NQN } from './context.ts'

const NamespaceDescription = z.object({
  nsid: z.int(),
  bdev_name: z.string(),
  name: z.string(),
  nguid: z.string().optional(),
  eui64: z.string().optional(),
  uuid: z.string().optional(),
  anagrpid: z.int().optional(),
})

const SubsystemDescription = z.object({
  nqn: z.string(),
  subtype: z.enum(['NVMe', 'Discovery']),
  listen_addresses: z.array(Address),
  allow_any_host: z.boolean(),
  hosts: z.array(z.object({ nqn: z.string() })),
  serial_number: z.string().optional(),
  model_number: z.string().optional(),
  admin_label: z.string().optional(),
  max_namespaces: z.int().optional(),
  passthrough: z.boolean().optional(),
  min_cntlid: z.int().optional(),
  max_cntlid: z.int().optional(),
  dmrsl: z.int().optional(),
  wzsl: z.int().optional(),
  namespaces: z.array(NamespaceDescription).optional(),
})

function describeSubsystem(subsystem: Subsystem): z.input<typeof SubsystemDescription> {
  const common = {
    nqn: subsystem.nqn,
    subtype: subsystem.isDiscovery ? ('Discovery' as const) : ('NVMe' as const),
    listen_addresses: [...subsystem.listeners.values()].map(({ address }) => addressOf(address)),
    allow_any_host: subsystem.allowAnyHost,
    hosts: [...subsystem.hosts].map(host => ({ nqn: host })),
  }
  if (subsystem.isDiscovery) return common
  return {
    ...common,
    serial_number: subsystem.serialNumber,
    model_number: subsystem.modelNumber,
    ...(subsystem.adminLabel === '' ? {} : { admin_label: subsystem.adminLabel }),
    max_namespaces: subsystem.maxNamespaces,
    passthrough: false,
    min_cntlid: subsystem.minCntlid,
    max_cntlid: subsystem.maxCntlid,
    dmrsl: subsystem.dmrsl,
    wzsl: subsystem.wzsl,
    namespaces: [...subsystem.namespaces.values()]
      .sort((a, b) => a.nsid - b.nsid)
      .map(({ nsid, bdev, identifiers, anagrpid }) => ({
        nsid,
        bdev_name: bdev.name,
        name: bdev.name,
        ...identifiers,
        ...(subsystem.anaReporting ? { anagrpid } : {}),
      })),
  }
}

const getSubsystems = method({
  name: 'nvmf_get_subsystems',
  summary: 'Lists subsystems with their namespaces, listeners and hosts.',
  params: z.object({ nqn: z.string().optional().describe('Only that subsystem'), tgt_name: tgtName }),
  result: z.array(SubsystemDescription),
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  cli: {
    positional: ['nqn'],
    flags: { tgt_name: 't' },
    commands: ['subsystem list'],
    columns: [
      'nqn',
      { title: 'SERIAL', value: row => row.serial_number ?? '-' },
      {
        title: 'NAMESPACES',
        value: row => row.namespaces?.map(({ nsid, bdev_name }) => `${nsid}:${bdev_name}`).join(' ') ?? '-',
      },
      {
        title: 'LISTENERS',
        value: row => row.listen_addresses.map(({ traddr, trsvcid }) => `${traddr}:${trsvcid}`).join(' '),
      },
      {
        title: 'HOSTS',
        value: row => (row.allow_any_host ? 'any' : row.hosts.map(host => host.nqn).join(' ')),
      },
    ],
  },
  run({ nqn }, { nvmf }: NvmfContext) {
    const subsystems = nqn === undefined ? nvmf.list() : [nvmf.get(nqn)]
    return subsystems.map(describeSubsystem)
  },
})

const createSubsystem = method({
  name: 'nvmf_create_subsystem',
  summary: 'Makes a subsystem, which hosts connect to by its NQN.',
  params: z.object({
    nqn: z.string().describe('Its name, such as nqn.2016-06.io.example:disk1'),
    tgt_name: tgtName,
    serial_number: z
      .string()
      .optional()
      .describe('Up to 20 characters; derived from the NQN when absent, so that gateways agree'),
    model_number: z.string().optional().describe('Up to 40 characters'),
    admin_label: z.string().optional().describe('4 to 256 characters, for people'),
    max_namespaces: uint32.optional().describe('The largest nsid and ANA group (default 32)'),
    allow_any_host: z.boolean().optional().describe('Any host may connect, not only those in the list'),
    ana_reporting: z.boolean().optional().describe('Tell hosts the ANA state of each listener'),
    min_cntlid: uint16.optional().describe('First controller identifier (default 1)'),
    max_cntlid: uint16.optional().describe('Last controller identifier (default 65519)'),
    dmrsl: uint32.optional().describe('Blocks in one range of Dataset Management, 0 for any number'),
    wzsl: uint8.optional().describe('Largest Write Zeroes: 2^wzsl units of 4 KiB, 0 for any size'),
    passthrough: z
      .literal(false, {
        error: 'passthrough is not possible: no device here takes NVMe commands as they are',
      })
      .optional()
      .describe('Must be false: no device here takes NVMe commands as they are'),
    enable_nssr: z.boolean().optional().describe('Hosts may reset the whole subsystem'),
  }),
  result: done,
  errors: {
    INVALID_PARAMS: 'the NQN is malformed, or an option cannot be',
    INTERNAL: 'there is a subsystem of that NQN already, or there are too many',
  },
  saves: true,
  cli: {
    positional: ['nqn'],
    flags: {
      tgt_name: 't',
      serial_number: 's',
      model_number: 'd',
      allow_any_host: 'a',
      max_namespaces: 'm',
      ana_reporting: 'r',
      min_cntlid: 'i',
      max_cntlid: 'I',
      passthrough: 'p',
      enable_nssr: 'n',
    },
    commands: ['subsystem create'],
  },
  async run(params, { nvmf }: NvmfContext) {
    await nvmf.createSubsystem(params)
    return true as const
  },
})

const deleteSubsystem = method({
  name: 'nvmf_delete_subsystem',
  summary: 'Disconnects the hosts of a subsystem and deletes it.',
  params: z.object({ nqn, tgt_name: tgtName }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  saves: true,
  cli: { positional: ['nqn'], flags: { tgt_name: 't' }, commands: ['subsystem delete'] },
  async run({ nqn }, { nvmf }: NvmfContext) {
    await nvmf.deleteSubsystem(nqn)
    return true as const
  },
})

const getControllers = method({
  name: 'nvmf_subsystem_get_controllers',
  summary: 'Lists the controllers that hosts have in a subsystem.',
  params: z.object({ nqn, tgt_name: tgtName }),
  result: z.array(
    z.object({
      cntlid: z.int(),
      cntrltype: z.enum(['io', 'discovery']),
      hostnqn: z.string(),
      hostid: z.string(),
      num_io_qpairs: z.int(),
    }),
  ),
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  cli: { positional: ['nqn'], flags: { tgt_name: 't' } },
  run({ nqn }, { nvmf }: NvmfContext) {
    const subsystem = nvmf.get(nqn)
    return nvmf.directory.controllers(subsystem).map(controller => ({
      cntlid: controller.cntlid,
      cntrltype: subsystem.isDiscovery ? ('discovery' as const) : ('io' as const),
      hostnqn: controller.hostnqn,
      hostid: uuidOf(controller.hostid),
      num_io_qpairs: ioQueuesOf(controller).length,
    }))
  },
})

const uuidOf = (hex: string): string => hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')

const getQpairs = method({
  name: 'nvmf_subsystem_get_qpairs',
  summary: 'Lists the queues that hosts have in a subsystem.',
  params: z.object({ nqn, tgt_name: tgtName }),
  result: z.array(
    z.object({
      cntlid: z.int(),
      qid: z.int(),
      state: z.string(),
      thread: z.string(),
      hostnqn: z.string(),
      listen_address: Address,
      peer_address: Address,
    }),
  ),
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  cli: { positional: ['nqn'], flags: { tgt_name: 't' } },
  run({ nqn }, { nvmf }: NvmfContext) {
    return nvmf.directory.controllers(nvmf.get(nqn)).flatMap(controller =>
      [...controller.queues.values()].map(({ question, reactor }) => ({
        cntlid: controller.cntlid,
        qid: question.qid,
        state: 'enabled',
        thread: `reactor_${reactor}`,
        hostnqn: controller.hostnqn,
        listen_address: peerAddressOf(question.local),
        peer_address: peerAddressOf(question.remote),
      })),
    )
  },
})

export const subsystemMethods = [getSubsystems, createSubsystem, deleteSubsystem, getControllers, getQpairs]
