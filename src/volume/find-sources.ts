/** Where pools could be made of: what virsh calls `find-storage-pool-sources`. */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { RpcError, thereAre } from '../core/errors.ts'
import { formatXml, node } from '../core/xml.ts'
import { type PoolSource, sourceNode } from '../libvirt/pool-source-xml.ts'
import type { PoolType } from '../libvirt/pool-types.ts'
import { elementAt, elementsIn, parseXml, textOf } from '../libvirt/xml.ts'
import { targetsAt } from '../sys/libiscsi-targets.ts'
import { SYS } from './scsi-units.ts'
import { runTool } from './tools.ts'

export interface SourceQuery {
  readonly host: string | undefined
  readonly port: number | undefined
  /** The name to ask under; `iscsi-direct` has none of its own. */
  readonly initiator: string | undefined
}

type Finder = (query: SourceQuery) => Promise<readonly PoolSource[]>

const FINDERS: { readonly [type in PoolType]?: Finder } = {
  logical: async () =>
    parseGroups(
      await runTool('volume groups cannot be listed', 'pvs', [
        ...['--reportformat', 'json', '-o', 'pv_name,vg_name'],
      ]),
    ),
  /** What NFS and Gluster have; where there is neither, the reason is that of NFS. */
  netfs: async query => {
    const host = hostOf('netfs', query)
    const [exports, volumes] = await Promise.allSettled([nfsExports(host), glusterVolumes(host)])
    const names = volumes.status === 'fulfilled' ? volumes.value : []
    if (exports.status === 'rejected' && names.length === 0) throw exports.reason
    const directories = exports.status === 'fulfilled' ? exports.value : []
    return [...directories, ...names.map(dir => ({ hosts: [{ name: host }], dir, format: 'glusterfs' }))]
  },
  gluster: async query => {
    const host = hostOf('gluster', query)
    return (await glusterVolumes(host)).map(name => ({ hosts: [{ name: host }], dir: '/', name }))
  },
  iscsi: async query => {
    const host = hostOf('iscsi', query)
    const portal = portalOf(host, query)
    const said = await runTool(`the targets of ${portal} cannot be listed`, 'iscsiadm', [
      ...['-m', 'discovery', '-t', 'sendtargets', '-p', portal, '-o', 'nonpersistent'],
    ])
    return parseTargets(said, host, query.port)
  },
  'iscsi-direct': async query => {
    const { initiator: initiatorIqn, port } = query
    const host = hostOf('iscsi-direct', query)
    if (initiatorIqn === undefined) {
      throw new RpcError('EINVAL', 'sources of type iscsi-direct are asked for by an initiator: name one')
    }
    const portal = portalOf(host, query)
    const found = await targetsAt(portal, initiatorIqn)
    if (typeof found === 'string') {
      throw new RpcError('EIO', `the targets of ${portal} cannot be listed: ${found}`)
    }
    return found.map(path => ({ hosts: [{ name: host, port }], devices: [{ path }], initiatorIqn }))
  },
  scsi: async () => {
    const hosts = await readdir(join(SYS, 'class/scsi_host')).catch(() => [])
    return hosts.sort().map(name => ({ adapter: { type: 'scsi_host', name } }))
  },
  zfs: async () => {
    const said = await runTool('zpools cannot be listed', 'zpool', ['list', '-H', '-o', 'name'])
    return linesOf(said).map(name => ({ name }))
  },
}

/** The document that virsh prints. Throws `RpcError` ENOTSUP naming the types that can be looked for. */
export async function findSources(type: PoolType, query: SourceQuery): Promise<string> {
  const find = FINDERS[type]
  if (find === undefined) {
    throw new RpcError(
      'ENOTSUP',
      `sources of type ${type} cannot be looked for: ${thereAre(Object.keys(FINDERS))}`,
    )
  }
  return formatXml(node('sources', {}, ...(await find(query)).map(sourceNode)))
}

const portalOf = (host: string, { port = 3260 }: SourceQuery): string =>
  `${host.includes(':') ? `[${host}]` : host}:${port}`

async function nfsExports(host: string): Promise<PoolSource[]> {
  const said = await runTool(
    `the exports of ${host} cannot be listed`,
    'showmount',
    [...['--no-headers', '--exports', '--', host]],
    {
      remedy: said =>
        /RPC|clnt_create/.test(said)
          ? 'A server of NFS 4 alone has nobody who answers that (rpcbind, mountd): its directories can be mounted all the same'
          : undefined,
    },
  )
  return parseExports(said, host)
}

async function glusterVolumes(host: string): Promise<string[]> {
  const said = await runTool(`the Gluster volumes of ${host} cannot be listed`, 'gluster', [
    ...['--mode=script', '--xml', '--log-file=/dev/null', `--remote-host=${host}`, 'volume', 'info', 'all'],
  ])
  return parseGlusterVolumes(said, host)
}

/** A name or an address; nothing that is an option. */
function hostOf(type: string, { host }: SourceQuery): string {
  if (host !== undefined && /^[A-Za-z0-9_:][A-Za-z0-9_.:%-]*$/.test(host)) return host
  throw new RpcError(
    'EINVAL',
    `sources of type ${type} are at a host, and ${host ?? 'none'} is given: name one`,
  )
}

const linesOf = (text: string): string[] => text.split('\n').filter(line => line !== '')

/** Physical volumes by the group that has them; those without are left out. */
export function parseGroups(text: string): PoolSource[] {
  const { report } = JSON.parse(text) as { report: { pv: { pv_name: string; vg_name: string }[] }[] }
  const groups = new Map<string, { path: string }[]>()
  for (const { pv_name: path, vg_name: name } of report.flatMap(({ pv }) => pv)) {
    if (name !== '') groups.set(name, [...(groups.get(name) ?? []), { path }])
  }
  return [...groups].map(([name, devices]) => ({ name, devices, format: 'lvm2' }))
}

/** `showmount --exports`: a directory, and who may have it. */
export const parseExports = (text: string, host: string): PoolSource[] =>
  linesOf(text).map(line => ({ hosts: [{ name: host }], dir: line.split(/\s+/)[0]!, format: 'nfs' }))

/** `gluster --xml volume info all`, whose exit code is 0 also when the answer is an error. */
export function parseGlusterVolumes(text: string, host: string): string[] {
  const root = parseXml(text, `gluster's answer from ${host}`, 'cliOutput')
  const error = textOf(elementAt(root, 'opErrstr')) ?? ''
  if (textOf(elementAt(root, 'opRet')) !== '0')
    throw new RpcError('EIO', `the Gluster volumes of ${host} cannot be listed: ${error}`)
  const volumes = elementAt(root, 'volInfo', 'volumes')
  const names = volumes === undefined ? [] : elementsIn(volumes, 'volume')
  return names.map(volume => textOf(elementAt(volume, 'name')) ?? '').filter(name => name !== '')
}

/** `iscsiadm`: `192.0.2.7:3260,1 iqn.2026-01.org.example:store`, once for each of its portals. */
export function parseTargets(text: string, host: string, port: number | undefined): PoolSource[] {
  const targets = new Set(linesOf(text).map(line => line.split(/\s+/)[1] ?? ''))
  return [...targets]
    .filter(target => target !== '')
    .map(path => ({ hosts: [{ name: host, port }], devices: [{ path }] }))
}
