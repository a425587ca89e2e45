/** Namespaces, and which hosts see them. */
import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { done, uint32, uuid } from '../../rpc/params.ts'
import { host, type NvmfContext, nqn, tgtName, UNKNOWN_NQN } from './context.ts'

const hexadecimal = (digits: number): z.ZodString =>
  z.string().regex(new RegExp(`^[0-9a-fA-F]{${digits}}$`), `${digits} hexadecimal digits`)

const nsid = uint32.min(1).describe('The namespace')

const addNs = method({
  name: 'nvmf_subsystem_add_ns',
  summary: 'Shows a bdev to the hosts of a subsystem, as a namespace.',
  params: z.object({
    nqn,
    namespace: z
      .strictObject({
        nsid: uint32.max(0xffff_fffe).optional().describe('Its number; the lowest free one when absent or 0'),
        bdev_name: z.string().describe('The device'),
        nguid: hexadecimal(32)
          .optional()
          .describe('32 hexadecimal digits; derived from the uuid when absent'),
        eui64: hexadecimal(16)
          .optional()
          .describe('16 hexadecimal digits; derived from the uuid when absent'),
        uuid: uuid.optional().describe("The device's own when absent"),
        ptpl_file: z.string().optional().describe('Accepted: there are no reservations to keep'),
        anagrpid: uint32.optional().describe('Its ANA group; its nsid when absent or 0'),
        no_auto_visible: z.boolean().optional().describe('Show it only to hosts of nvmf_ns_add_host'),
        hide_metadata: z.boolean().optional().describe('Accepted: no device here has metadata'),
      })
      .describe('What is shown'),
    tgt_name: tgtName,
  }),
  result: z.int().describe('Its nsid'),
  errors: {
    INVALID_PARAMS: UNKNOWN_NQN,
    ENODEV: 'no bdev has that name',
    EPERM: 'another has claimed the bdev for itself',
    EINVAL: 'the bdev has a cache in this daemon, and other gateways may serve the subsystem',
  },
  relaxed: true,
  saves: true,
  cli: {
    positional: ['nqn', 'namespace.bdev_name'],
    flags: {
      tgt_name: 't',
      'namespace.ptpl_file': ['p', 'ptpl-file'],
      'namespace.nsid': ['n', 'nsid'],
      'namespace.nguid': ['g', 'nguid'],
      'namespace.eui64': ['e', 'eui64'],
      'namespace.uuid': ['u', 'uuid'],
      'namespace.anagrpid': ['a', 'anagrpid'],
      'namespace.no_auto_visible': ['i', 'no-auto-visible'],
      'namespace.hide_metadata': ['N', 'hide-metadata'],
    },
    commands: ['namespace add'],
  },
  run: ({ nqn, namespace }, { nvmf }: NvmfContext) => nvmf.addNamespace(nqn, namespace),
})

const removeNs = method({
  name: 'nvmf_subsystem_remove_ns',
  summary: 'Takes a namespace away from the hosts of a subsystem.',
  params: z.object({ nqn, nsid, tgt_name: tgtName }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  saves: true,
  cli: { positional: ['nqn', 'nsid'], flags: { tgt_name: 't' }, commands: ['namespace remove'] },
  async run({ nqn, nsid }, { nvmf }: NvmfContext) {
    await nvmf.removeNamespace(nqn, nsid)
    return true as const
  },
})

const setAnaGroup = method({
  name: 'nvmf_subsystem_set_ns_ana_group',
  summary: 'Moves a namespace to another ANA group.',
  params: z.object({ nqn, nsid, anagrpid: uint32.min(1).describe('The group'), tgt_name: tgtName }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  saves: true,
  cli: { positional: ['nqn', 'nsid', 'anagrpid'], flags: { tgt_name: 't' } },
  async run({ nqn, nsid, anagrpid }, { nvmf }: NvmfContext) {
    await nvmf.setNamespaceAnaGroup(nqn, nsid, anagrpid)
    return true as const
  },
})

const addHost = method({
  name: 'nvmf_ns_add_host',
  summary: 'Shows a namespace to one host more.',
  params: z.object({ nqn, nsid, host, tgt_name: tgtName }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  saves: true,
  cli: { positional: ['nqn', 'nsid', 'host'], flags: { tgt_name: 't' } },
  async run({ nqn, nsid, host }, { nvmf }: NvmfContext) {
    await nvmf.setNamespaceVisible(nqn, nsid, host, true)
    return true as const
  },
})

const removeHost = method({
  name: 'nvmf_ns_remove_host',
  summary: 'Hides a namespace from a host.',
  params: z.object({ nqn, nsid, host, tgt_name: tgtName }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  saves: true,
  cli: { positional: ['nqn', 'nsid', 'host'], flags: { tgt_name: 't' } },
  async run({ nqn, nsid, host }, { nvmf }: NvmfContext) {
    await nvmf.setNamespaceVisible(nqn, nsid, host, false)
    return true as const
  },
})

export const namespaceMethods = [addNs, removeNs, setAnaGroup, addHost, removeHost]
