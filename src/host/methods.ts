/** Methods about the machine itself. */
import { z } from 'zod'
import { RpcError, thereAre } from '../core/errors.ts'
import { method } from '../rpc/method.ts'
import { Host } from './host.ts'
import {
  type GuestNetwork,
  interfaceXml,
  MACVTAP_MODES,
  type MacvtapMode,
  reachOf,
} from './networks/guest-network.ts'
import { findNetworks } from './networks/networks.ts'

const uri = z
  .string()
  .optional()
  .describe('Which libvirt is asked, as `virsh -c` takes it; by default the one that virsh takes by itself')

const network = z.object({
  name: z.string(),
  owner: z.enum(['libvirt', 'host']),
  kind: z.enum(['nat', 'routed', 'open', 'isolated', 'bridge', 'macvtap', 'openvswitch', 'sr-iov']),
  device: z.string().describe('The bridge or the interface it goes through'),
  active: z.boolean(),
  autostart: z.boolean().optional().describe("Only of libvirt's networks"),
  addresses: z.array(z.string()).describe('Of the host on this network, with the length of the prefix'),
  reach: z.string().describe('Who hears whom'),
  detail: z.string(),
})

const toRow = ({ attachment: _, ...rest }: GuestNetwork, reach: string): z.output<typeof network> => ({
  ...rest,
  addresses: [...rest.addresses],
  reach,
})

const netList = method({
  name: 'net_list',
  summary: 'Lists the networks that a guest on this machine can have: of libvirt and of the host.',
  params: z.object({ uri }),
  result: z.object({
    networks: z.array(network),
    silent: z.array(z.string()).describe('Who could not be asked, and why'),
  }),
  cli: {
    flags: { uri: 'c' },
    text: ({ networks, silent }) =>
      `${tableOf(networks)}${silent.map(reason => `\nNot asked: ${reason}\n`).join('')}`,
  },
  async run(params) {
    const { networks, silent } = await findNetworks(new Host(), params.uri)
    return { networks: networks.map(each => toRow(each, reachOf(each))), silent: [...silent] }
  },
})

type Row = z.output<typeof network>

/** Each network in a line, and below it who hears whom. */
function tableOf(networks: readonly Row[]): string {
  if (networks.length === 0) return 'There are none: neither libvirt nor the host has a bridge or a card.\n'
  const cells = networks.map(row => [
    row.name,
    row.kind,
    row.owner,
    row.active ? 'active' : 'inactive',
    row.device || '-',
    row.addresses.join(', ') || '-',
  ])
  const rows = [['NAME', 'KIND', 'OWNER', 'STATE', 'DEVICE', 'ADDRESS'], ...cells]
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map(row => row[column]!.length)))
  const lines = rows.map(row =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  )
  return lines
    .flatMap((line, at) => {
      const row = networks[at - 1]
      return row === undefined ? [line] : [line, `    ${[row.reach, row.detail].filter(Boolean).join('; ')}`]
    })
    .join('\n')
    .concat('\n')
}

const netDumpxml = method({
  name: 'net_dumpxml',
  summary: 'Prints the <interface> that plugs a guest into a network.',
  params: z.object({
    network: z.string().describe('As net_list names it'),
    kind: network.shape.kind.optional().describe('Which one, when a card is there as macvtap and as sr-iov'),
    mode: z
      .enum(MACVTAP_MODES)
      .optional()
      .describe('Of macvtap: how guests on one card hear each other; bridge when absent'),
    uri,
  }),
  result: z.string(),
  errors: {
    ENODEV: 'there is no such network',
    EINVAL: 'the name stands for several networks, or the mode is for another kind',
    ENOSPC: 'every function of the card is in use',
  },
  cli: { positional: ['network'], flags: { uri: 'c' } },
  concurrent: true,
  async run({ network: name, kind, mode, uri: at }) {
    const { networks } = await findNetworks(new Host(), at)
    const found = withMode(choose(networks, name, kind), mode)
    const xml = interfaceXml(found)
    if (xml === '') throw new RpcError('ENOSPC', `${name}: ${found.detail}: no function is free for a guest`)
    return xml
  },
})

function choose(networks: readonly GuestNetwork[], name: string, kind: string | undefined): GuestNetwork {
  const named = networks.filter(each => each.name === name)
  const found = kind === undefined ? named : named.filter(each => each.kind === kind)
  if (found.length === 0) {
    const names = networks.map(each => `${each.name} (${each.kind})`)
    throw new RpcError(
      'ENODEV',
      `there is no network ${[name, kind].filter(Boolean).join(' of kind ')}: ${thereAre(names)}`,
    )
  }
  if (found.length > 1) {
    const kinds = found.map(each => each.kind).join(' and ')
    throw new RpcError('EINVAL', `${name} is there as ${kinds}: choose with --kind`)
  }
  return found[0]!
}

function withMode(found: GuestNetwork, mode: MacvtapMode | undefined): GuestNetwork {
  const { attachment } = found
  if (mode === undefined) return found
  if (attachment.type !== 'direct') {
    throw new RpcError(
      'EINVAL',
      `${found.name} is ${found.kind}, and mode ${mode} is for macvtap: leave it out`,
    )
  }
  return { ...found, attachment: { ...attachment, mode } }
}

export const hostMethods = [netList, netDumpxml]
