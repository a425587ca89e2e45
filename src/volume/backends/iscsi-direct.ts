/**
 * `iscsi-direct`: a target that is spoken to from this process, without the kernel's initiator; its units are opened by
 * `bdev_iscsi_create`.
 */
import { RpcError } from '../../core/errors.ts'
import type { PoolDocument } from '../../libvirt/pool-xml.ts'
import type { MethodCall } from '../../rpc/config.ts'
import { type TargetUnit, targetUnits } from '../../sys/libiscsi-units.ts'
import { fullOf } from '../block-devices.ts'
import {
  credentialsOf,
  type IscsiCredentials,
  type IscsiTarget,
  refuseOtherAuth,
  targetOf,
} from '../iscsi-target.ts'
import type {
  OpenOptions,
  PoolBackend,
  PoolBackendType,
  PoolContents,
  PoolServices,
  VolumeFacts,
} from '../pool.ts'
import { FixedVolumes } from './device-volumes.ts'

export const iscsiDirectPool: PoolBackendType = {
  type: 'iscsi-direct',
  summary: 'A target of an iSCSI server, without the kernel; its units are the volumes.',
  create: (document, services) => new IscsiDirectPool(document, services),
}

class IscsiDirectPool implements PoolBackend {
  readonly volumes = new FixedVolumes('they are made where the target is')
  readonly #document: PoolDocument
  readonly #secrets: PoolServices['secrets']
  readonly #target: IscsiTarget
  /** As of the last look. */
  #credentials: IscsiCredentials | undefined

  constructor(document: PoolDocument, { secrets }: PoolServices) {
    this.#document = document
    this.#secrets = secrets
    this.#target = targetOf(document)
    refuseOtherAuth(document)
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
    return { method: 'bdev_iscsi_create', params: { initiator_iqn: this.#target.initiator, url } }
  }

  async #units(): Promise<TargetUnit[]> {
    const { portal, name, initiator } = this.#target
    this.#credentials = await credentialsOf(this.#document, this.#secrets)
    const found = await targetUnits({
      // Documents of this type have an initiator: their reader has seen to it.
      ...{ portal, target: name, initiator: initiator! },
      credentials: this.#credentials,
    })
    if (typeof found !== 'string') return found
    throw new RpcError(
      /auth/i.test(found) ? 'EACCES' : 'EIO',
      `pool ${this.#document.name} cannot look at ${name} at ${portal}: ${found}. Does the server listen there, and let ` +
        `${initiator} in?`,
    )
  }

  #factsOf({ lun, sizeBytes }: TargetUnit): VolumeFacts {
    const url = `iscsi://${this.#target.portal}/${this.#target.name}/${lun}`
    return {
      ...{ name: `unit:0:0:${lun}`, key: url, path: url, type: 'network', format: 'raw' },
      ...{ capacityBytes: sizeBytes, allocationBytes: sizeBytes },
    }
  }
}
