/** By which means a guest gets a disk. */
import { RpcError } from '../../core/errors.ts'

/**
 * `vhost`: the daemon serves it over vhost-user, without a copy. `nbd`: the daemon serves it to QEMU's own NBD client.
 * `direct`: QEMU opens the file, the device or the image by itself, and the daemon has no part in it.
 */
export const MEANS = ['vhost', 'nbd', 'direct'] as const
export type Means = (typeof MEANS)[number]

export const BUSES = ['virtio', 'nvme', 'scsi', 'sata'] as const
export type Bus = (typeof BUSES)[number]

export interface Situation {
  /** What the operator calls it. */
  readonly volume: string
  readonly bus: Bus
  /** Asked for by name. */
  readonly wished: Means | undefined
  /** A bdev has it open for writing, so that nobody else may. */
  readonly isOpenHere: boolean
  /** The daemon has a bdev over it, or can make one. */
  readonly canServe: boolean
  /** Whether it is a volume or a bdev, that is, the daemon's business, and not just a path. */
  readonly isManaged: boolean
  /** QEMU can open it by itself. */
  readonly canBeDirect: boolean
  /** It is a device that libvirt would have to put into the /dev of this QEMU, and would not know of. */
  readonly isHiddenDevice: boolean
  /** Of every document that changes: the daemon may map the guest's memory. */
  readonly hasSharedMemory: boolean
  /** The guest that runs is changed: its memory is as it is. */
  readonly isLive: boolean
}

/** Throws `RpcError` EINVAL when nothing will do, or what was wished for will not. */
export function chooseMeans(situation: Situation): Means {
  const problems = {
    vhost: vhostProblem(situation),
    nbd: nbdProblem(situation),
    direct: directProblem(situation),
  }
  const { wished, volume, bus } = situation
  if (wished !== undefined) {
    const problem = problems[wished]
    if (problem === '') return wished
    throw new RpcError('EINVAL', `${volume} cannot be attached by --means ${wished}: ${problem}`)
  }
  // To change the memory of a domain is for its administrator to ask for. And libvirt (9.0) has a disk that is plugged in not
  // reconnect: it would be lost when the daemon is started again.
  const isSafe = situation.hasSharedMemory && !situation.isLive
  const isVhostBest = situation.isManaged && isSafe && problems.vhost === ''
  if (isVhostBest) return 'vhost'
  if (problems.direct === '') return 'direct'
  if (problems.nbd === '') return 'nbd'
  throw new RpcError(
    'EINVAL',
    `${volume} cannot be a disk on the ${bus} bus: by itself QEMU cannot open it (${problems.direct}), and ` +
      `${problems.nbd}`,
  )
}

function vhostProblem({ bus, canServe, hasSharedMemory, isLive, volume }: Situation): string {
  if (!canServe) return `the daemon has no bdev for ${volume}`
  if (bus !== 'virtio') return `a vhost-user disk is on the virtio bus, not on ${bus}`
  if (hasSharedMemory || !isLive) return ''
  return (
    'the guest runs without shared memory, which vhost-user needs: --config --means vhost gives it that at its next ' +
    'start, --means nbd works now'
  )
}

const nbdProblem = ({ canServe, volume }: Situation): string =>
  canServe ? '' : `the daemon has no bdev for ${volume}`

function directProblem({ isOpenHere, canBeDirect, isHiddenDevice }: Situation): string {
  if (isOpenHere) return 'the daemon has it open, and two writers would destroy it'
  if (isHiddenDevice) {
    return "libvirt gives QEMU a /dev of its own with only the devices in it that it knows of, and it knows no NVMe disk's"
  }
  return canBeDirect
    ? ''
    : 'it is neither a file, nor a device, nor an image that QEMU reaches without a secret'
}
