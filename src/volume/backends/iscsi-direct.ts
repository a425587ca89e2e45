/**
 * `iscsi-direct`: a target that is spoken to from this process, without the kernel's initiator. Its units are listed by
 * libiscsi's programs, and opened as `bdev_iscsi_create` opens them.
 */
import { RpcError } from '../../core/errors.ts'
import type { PoolDocument } from '../../libvirt/pool-xml.ts'
import type { MethodCall } from '../../rpc/config.ts'
import { fullOf } from '../block-devices.ts'
import type {
  OpenOptions,
  PoolBackend,
  PoolBackendType,
  PoolContents,
  PoolServices,
  VolumeFacts,
  VolumeOperations,
} from '../pool.ts'
import { runTool } from '../tools.ts'
import { checkIscsiName, portalOf } from './iscsi.ts'

export const iscsiDirectPool: PoolBackendType = {
  type: 'iscsi-direct',
  summary: 'A target of an iSCSI server, without the kernel; its units are the volumes.',
  create: (document, services) => new IscsiDirectPool(document, services),
}

/** Capacities are asked of so many units at once. */
const AT_ONCE = 8

class IscsiDirectPool implements PoolBackend {
  readonly volumes: VolumeOperations
  readonly #document: PoolDocument
  readonly #secrets: PoolServices['secrets']
  readonly #portal: string
  readonly #target: string
  readonly #initiator: string

  constructor(document: PoolDocument, { secrets }: PoolServices) {
    const { name, source } = document
    const [device] = source.devices ?? []
    if (device === undefined) {
      throw new RpcError(
        'EINVAL',
        `pool ${name} has no <device path='iqn…'/> in its <source>: name the target`,
      )
    }
    const reason = 'they are made where the target is'
    this.volumes = {
      reasons: {
        ...{
          create: reason,
          delete: reason,
          resize: reason,
          rename: reason,
          clone: reason,
          snapshots: reason,
        },
        wipe: 'export it, and wipe what it is exported as',
      },
    }
    this.#document = document
    this.#secrets = secrets
    this.#portal = portalOf(document)
    this.#target = checkIscsiName(name, 'a target', device.path)
    this.#initiator = checkIscsiName(name, 'an initiator', source.initiatorIqn!)
    const { auth } = source
    if (auth === undefined || auth.type === 'chap') return
    throw new RpcError('EINVAL', `pool ${name} has <auth type='${auth.type}'>: iSCSI knows type='chap' only`)
  }

  async start(): Promise<void> {
    await this.#units()
  }

  async stop(): Promise<void> {}

  async refresh(): Promise<PoolContents> {
    const units = await this.#units()
    const volumes: VolumeFacts[] = []
    for (let at = 0; at < units.length; at += AT_ONCE) {
      volumes.push(...(await Promise.all(units.slice(at, at + AT_ONCE).map(lun => this.#factsOf(lun)))))
    }
    return fullOf(volumes)
  }

  opening({ path }: VolumeFacts, { readOnly }: OpenOptions): MethodCall {
    if (this.#document.source.auth !== undefined) {
      throw new RpcError(
        'ENOTSUP',
        `pool ${this.#document.name} has a password, which would stand in the saved configuration: use a pool of type='iscsi'`,
      )
    }
    if (readOnly) {
      throw new RpcError('ENOTSUP', `${path} is opened for writing only: leave --read-only out`)
    }
    return { method: 'bdev_iscsi_create', params: { initiator_iqn: this.#initiator, url: path } }
  }

  async #units(): Promise<number[]> {
    return parseUnits(await this.#run('iscsi-ls', ['--show-luns', `iscsi://${this.#portal}/`]), this.#target)
  }

  async #factsOf(lun: number): Promise<VolumeFacts> {
    const url = `iscsi://${this.#portal}/${this.#target}/${lun}`
    const capacityBytes = parseCapacity(await this.#run('iscsi-readcapacity16', [url]))
    return {
      ...{ name: `unit:0:0:${lun}`, key: url, path: url, type: 'network', format: 'raw' },
      ...{ capacityBytes, allocationBytes: capacityBytes },
    }
  }

  /** A password is in the environment, which only this user and root can read. */
  async #run(program: string, args: readonly string[]): Promise<string> {
    const { name, source } = this.#document
    const { auth } = source
    const env =
      auth === undefined
        ? {}
        : {
            LIBISCSI_CHAP_USERNAME: auth.username,
            LIBISCSI_CHAP_PASSWORD: (await this.#secrets.valueFor(name, auth)).bytes.toString(),
          }
    const what = `pool ${name} cannot look at ${this.#target} at ${this.#portal}`
    return runTool(what, program, [`--initiator-name=${this.#initiator}`, ...args], {
      env,
      remedy: said =>
        /refused|timed out|No route/i.test(said) ? 'Does the server listen at that address?' : undefined,
    })
  }
}

/** `Target:IQN Portal:…`, and below it `Lun:1    Type:DIRECT_ACCESS (Size:19M)` for each unit. */
export function parseUnits(text: string, target: string): number[] {
  const units: number[] = []
  let isOurs = false
  let isThere = false
  for (const line of text.split('\n')) {
    const [, named] = /^Target:(\S+)/.exec(line) ?? []
    if (named !== undefined) isOurs = named === target
    isThere ||= isOurs
    const [, lun, type] = /^Lun:(\d+)\s+Type:(\S+)/.exec(line) ?? []
    if (isOurs && lun !== undefined && type === 'DIRECT_ACCESS') units.push(Number(lun))
  }
  if (isThere) return [...new Set(units)]
  throw new RpcError(
    'ENOENT',
    `the server has no target ${target} for this initiator: compare both names with what is set there`,
  )
}

export function parseCapacity(text: string): number | undefined {
  const [, bytes] = /^Total size:(\d+)$/m.exec(text) ?? []
  return bytes === undefined ? undefined : Number(bytes)
}
