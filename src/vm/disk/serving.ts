/**
 * A disk that the daemon serves to a guest: a bdev, and a vhost controller or an NBD export over it, all named after the domain
 * and the disk. By these names they are found again and taken away; there is no other record of them.
 */
import { resolve } from 'node:path'
import type { BdevRegistry } from '../../bdev/registry.ts'
import type { DiskSource } from '../../libvirt/disk-xml.ts'
import type { NbdExports } from '../../nbd/exports.ts'
import type { VhostControllers } from '../../vhost/controllers.ts'
import type { AccessParts } from '../access/access.ts'
import { withdrawRule } from '../access/apparmor.ts'
import type { Undo } from '../undo.ts'
import type { ServerImages } from './server-images.ts'
import type { Call, Storage } from './storage.ts'

export interface ServingParts {
  readonly bdevs: BdevRegistry
  readonly vhost: Pick<VhostControllers, 'list' | 'get'>
  readonly nbd: Pick<NbdExports, 'list'>
  /** Where the sockets are made, those of NBD too. */
  readonly socketDirectory: string
  readonly call: Call
}

export interface ServeRequest {
  readonly domain: string
  readonly target: string
  readonly means: 'vhost' | 'nbd'
  readonly isReadOnly: boolean
  /** `UID:GID` of the guest's QEMU when it is not this process's own user. */
  readonly owner: string | undefined
}

/** Names of controllers are names of files. */
export const servedName = (domain: string, target: string): string =>
  `${domain}-${target}`.replaceAll(/[^\w.-]/g, '_')

export async function serve(
  storage: Storage,
  request: ServeRequest,
  undo: Undo,
  parts: ServingParts,
): Promise<DiskSource> {
  const { call } = parts
  const { domain, target, means, isReadOnly, owner } = request
  const name = servedName(domain, target)
  const bdev = storage.bdev ?? name
  if (storage.bdev === undefined) {
    await storage.open!(bdev, isReadOnly)
    undo.add(`bdev ${bdev}`, () => closeBdev(bdev, parts))
  }
  const access = owner === undefined ? {} : { socket_mode: '0600', socket_owner: owner }
  if (means === 'vhost') {
    await call('vhost_create_blk_controller', {
      ...{ ctrlr: name, dev_name: bdev, readonly: isReadOnly },
      ...access,
    })
    undo.add(`vhost controller ${name}`, () => call('vhost_delete_controller', { ctrlr: name }))
    return { kind: 'vhost', socketPath: resolve(parts.vhost.get(name).socketPath), isPacked: false }
  }
  const socketPath = nbdSocket(name, parts)
  await call('nbd_export_start', {
    ...{ bdev_name: bdev, name, unix: socketPath, read_only: isReadOnly },
    ...access,
  })
  undo.add(`NBD export ${name}`, () => call('nbd_export_stop', { name }))
  return { kind: 'nbd', name, server: { socketPath } }
}

/** A controller of a domain whose name ends in `.nbd` would have the same socket; its creation says so. */
const nbdSocket = (name: string, { socketDirectory }: ServingParts): string =>
  resolve(socketDirectory, `${name}.nbd`)

/** The socket by which QEMU reaches what the daemon serves; undefined for the rest. */
export function socketOf(source: DiskSource): string | undefined {
  if (source.kind === 'vhost') return source.socketPath
  return source.kind === 'nbd' && 'socketPath' in source.server ? source.server.socketPath : undefined
}

/** As whom the disk of a guest has its bdev, by whichever means. */
export const servedAs = (guest: string, target: string): string[] => {
  const name = servedName(guest, target)
  return [`vhost controller ${name}`, `NBD export "${name}"`]
}

/** What serves a disk, by the names that `serve` has given. */
interface Serving {
  readonly what: string
  readonly bdev: string | undefined
  readonly socketPath: string
  /** What the disk of a guest says that it is made of. */
  readonly source: string
  /** Somebody has it open at this moment. */
  readonly isConnected: boolean
  readonly stop: () => Promise<unknown>
}

function servingsOf(name: string, parts: ServingParts): Serving[] {
  const { call, vhost, nbd } = parts
  const controllers = vhost.list().filter(controller => controller.name === name)
  const exports = nbd
    .list()
    .filter(served => served.name === name && served.address.host === nbdSocket(name, parts))
  return [
    ...controllers.map(({ socketPath, sessionCount, backing }) => ({
      what: `vhost controller ${name}`,
      bdev: backing.kind === 'blk' ? backing.bdev?.name : undefined,
      socketPath: resolve(socketPath),
      source: resolve(socketPath),
      isConnected: sessionCount > 0,
      stop: () => call('vhost_delete_controller', { ctrlr: name }),
    })),
    ...exports.map(({ bdev, connectionCount }) => ({
      what: `NBD export ${name}`,
      bdev,
      socketPath: nbdSocket(name, parts),
      source: name,
      isConnected: connectionCount > 0,
      stop: () => call('nbd_export_stop', { name }),
    })),
  ]
}

export interface ReleaseParts extends ServingParts {
  readonly access: AccessParts
  readonly images: ServerImages
}

/**
 * Takes away what serves the disk of a domain, and answers what that was. `source`: what the disk was made of; one that is not
 * served by this daemon releases nothing, whatever else has such a name.
 */
export async function release(
  domain: string,
  target: string,
  source: string | undefined,
  parts: ReleaseParts,
): Promise<string[]> {
  const name = servedName(domain, target)
  return take(
    name,
    servingsOf(name, parts).filter(serving => serving.source === source),
    parts,
  )
}

/**
 * The same for what a daemon that was killed has left, or a guest that is gone: nobody has it open, and none of the sources that
 * the guest's disks have now is served by it.
 */
export async function releaseLeft(
  domain: string,
  target: string,
  sources: readonly (string | undefined)[],
  parts: ReleaseParts,
): Promise<string[]> {
  const name = servedName(domain, target)
  const servings = servingsOf(name, parts)
  if (servings.some(({ source, isConnected }) => isConnected || sources.includes(source))) return []
  return take(name, servings, parts)
}

async function take(name: string, servings: readonly Serving[], parts: ReleaseParts): Promise<string[]> {
  const { bdevs, access } = parts
  const released: string[] = []
  for (const { what, socketPath, stop } of servings) {
    await stop()
    await withdrawRule(socketPath, access)
    released.push(what)
  }
  // A bdev that was made for the disk alone has the same name.
  const isOwn = servings.some(({ bdev }) => bdev === name)
  if (isOwn && bdevs.ownersOf(name) === '') {
    await closeBdev(name, parts)
    released.push(`bdev ${name}`)
  }
  return released
}

async function closeBdev(name: string, { bdevs, call }: ServingParts): Promise<void> {
  await call(`bdev_${bdevs.get(name).driver}_delete`, { name })
}

/** The bdev that a disk of a domain is served from, by the source that libvirt tells: a socket's path or an export's name. */
export function servedFrom(source: string | undefined, { vhost, nbd }: ServingParts): string | undefined {
  const controller = vhost.list().find(({ socketPath }) => resolve(socketPath) === source)
  if (controller?.backing.kind === 'blk') return controller.backing.bdev?.name
  return nbd.list().find(({ name }) => name === source)?.bdev
}
