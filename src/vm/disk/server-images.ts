/**
 * Images on servers that guests open by themselves. Files and devices QEMU locks against a second writer; with these nothing does,
 * so that who has one is kept here: from the look at who uses it to the disk's end for a guest of ours, and until its document
 * tells for a domain. Guests of other machines are known to the image's server alone: see `Storage.clients`.
 */
import type { DiskSource } from '../../libvirt/disk-xml.ts'
import { nameOf } from '../../libvirt/domain-xml.ts'
import type { VolumeFacts } from '../../volume/pool.ts'

export class ServerImages {
  /** The images by the disk that has them. */
  readonly #held = new Map<string, string>()

  /** `disk`, as `diskOf` names it, writes to that; what is no image on a server is nobody's business here. */
  hold(disk: string, source: DiskSource): void {
    if (source.kind === 'rbd' || source.kind === 'iscsi') this.#held.set(disk, keyOf(source))
  }

  letGo(disk: string): void {
    this.#held.delete(disk)
  }

  /** The disks that write to a volume; QEMU opens none on a server but Ceph's, by the name that the pool has for it. */
  writersOf({ type, path }: Pick<VolumeFacts, 'type' | 'path'>): string[] {
    return type === 'network' ? this.holdersOf({ kind: 'rbd', name: path, hosts: [] }) : []
  }

  /** The disks that write to it. */
  holdersOf(source: DiskSource): string[] {
    const key = keyOf(source)
    return [...this.#held].flatMap(([disk, image]) => (image === key ? [disk] : []))
  }
}

/** A guest of ours may be called as a domain is. */
export const diskOf = (owner: 'guest' | 'domain', name: string, target: string): string =>
  `${owner} ${name}, disk ${target}`

const keyOf = (source: DiskSource): string => `${source.kind} ${nameOf(source)}`
