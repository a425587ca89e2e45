/**
 * `iscsi-direct`: a target that is spoken to from this process, without the kernel's initiator; its units are opened by
 * `bdev_iscsi_create`.
 */
import { RpcError } from '../../core/errors.ts'
import type { PoolDocument } from '../../libvirt/pool-xml.ts'
import type { MethodCall } from '../../rpc/config.ts'
import { type TargetLogin, type TargetUnit, targetUnits } from '../../sys/libiscsi-units.ts'
import { fullOf } from '../block-devices.ts'
import type {
  OpenOptions,
  PoolBackend,
  PoolBackendType,
  PoolContents,
  PoolServices,
  VolumeFacts,
} from '../pool.ts'
import { FixedVolumes } from './device-volumes.ts'
import { checkIscsiName, portalOf } from './iscsi.ts'

export const iscsiDirectPool: PoolBackendType = {
  type: 'iscsi-direct',
  summary: 'A target of an iSCSI server, without the kernel; its units are the volumes.',
  create: (document, services) => new IscsiDirectPool(document, services),
}

class IscsiDirectPool implements PoolBackend {
  readonly volumes = new FixedVolumes('they are made where the target is')
  readonly #document: PoolDocument
  readonly #secrets: PoolServices['secrets']
  readonly #portal: string
  readonly #target: string
  readonly #initiator: string
  /** As of the last look. */
  #credentials: TargetLogin['credentials']

  constructor(document: PoolDocument, { secrets }: PoolServices) {
    const { name, source } = document
    const [device] = source.devices ?? []
    if (device === undefined) {
      throw new RpcError(
        'EINVAL',
        `pool ${name} has no <device path='iqn…'/> in its <source>: name the target`,
      )
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
    return fullOf(units.map(unit => this.#factsOf(unit)))
  }

  /** A password is in the URL, as SPDK has it: the saved configuration is for its owner alone, and lists do not show it. */
  opening({ name, path }: VolumeFacts, { readOnly }: OpenOptions): MethodCall {
    if (readOnly) {
      throw new RpcError(
        'ENOTSUP',
        `volume ${name} is a unit that is opened for writing only: leave --read-only out`,
      )
    }
    const login = this.#credentials
    const url =
      login === undefined ? path : path.replace('iscsi://', `iscsi://${login.user}%${login.password}@`)
    return { method: 'bdev_iscsi_create', params: { initiator_iqn: this.#initiator, url } }
  }

  async #units(): Promise<TargetUnit[]> {
    const { name, source } = this.#document
    const { auth } = source
    this.#credentials =
      auth === undefined
        ? undefined
        : {
            user: auth.username,
            password: (await this.#secrets.valueFor(name, auth)).bytes.toString(),
          }
    const found = await targetUnits({
      ...{ portal: this.#portal, target: this.#target, initiator: this.#initiator },
      credentials: this.#credentials,
    })
    if (typeof found !== 'string') return found
    throw new RpcError(
      /auth/i.test(found) ? 'EACCES' : 'EIO',
      `pool ${name} cannot look at ${this.#target} at ${this.#portal}: ${found}. Does the server listen there, and let ` +
        `${this.#initiator} in?`,
    )
  }

  #factsOf({ lun, sizeBytes }: TargetUnit): VolumeFacts {
    const url = `iscsi://${this.#portal}/${this.#target}/${lun}`
    return {
      ...{ name: `unit:0:0:${lun}`, key: url, path: url, type: 'network', format: 'raw' },
      ...{ capacityBytes: sizeBytes, allocationBytes: sizeBytes },
    }
  }
}
