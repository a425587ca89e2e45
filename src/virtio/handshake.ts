/**
 * How a connection to a back end begins, in the order of QEMU's front end: features first, then memory and rings
 * (vhost-user specification, "Communication"; virtio specification 1.2, section 3.1).
 */
import { ProtocolError, RpcError } from '../core/errors.ts'
import { ProtocolFeature, Request, VhostFeature } from '../spec/vhost-user.ts'
import { VirtioFeature } from '../spec/virtio.ts'
import { BlkConfig, BlkFeature, SECTOR_SIZE } from '../spec/virtio-blk.ts'
import { ScsiConfig, ScsiFeatureBit } from '../spec/virtio-scsi.ts'
import { ringAddresses } from './driver-ring.ts'
import type { FrontEnd, InflightMemory } from './front-end.ts'
import { FIXED_QUEUES } from './memory-layout.ts'
import type { DeviceKind, RingDescription, RingFeatures } from './messages.ts'

const bit = (number: number): bigint => 1n << BigInt(number)

const RING_FEATURES = [
  VirtioFeature.INDIRECT_DESC,
  VirtioFeature.EVENT_IDX,
  VirtioFeature.VERSION_1,
  VirtioFeature.RING_PACKED,
]

/** What is of use here of what a device of that kind can do. */
const DEVICE_FEATURES: Readonly<Record<DeviceKind, bigint>> = {
  blk:
    BlkFeature.SIZE_MAX |
    BlkFeature.SEG_MAX |
    BlkFeature.RO |
    BlkFeature.BLK_SIZE |
    BlkFeature.FLUSH |
    BlkFeature.TOPOLOGY |
    BlkFeature.CONFIG_WCE |
    BlkFeature.MQ |
    BlkFeature.DISCARD |
    BlkFeature.WRITE_ZEROES,
  scsi: bit(ScsiFeatureBit.HOTPLUG) | bit(ScsiFeatureBit.CHANGE),
}

const PROTOCOL_FEATURES =
  ProtocolFeature.MQ |
  ProtocolFeature.REPLY_ACK |
  ProtocolFeature.BACKEND_REQ |
  ProtocolFeature.CONFIG |
  ProtocolFeature.INFLIGHT_SHMFD

const CONFIG_BYTES: Readonly<Record<DeviceKind, number>> = { blk: BlkConfig.size, scsi: ScsiConfig.size }

/** What only a block device can do: of the bits that are a device's own, a SCSI host has but the lowest four. */
const BLK_ONLY = Object.values(BlkFeature).reduce((all, feature) => all | feature, 0n) & ~0xfn

/** What both sides have agreed on. */
export interface Agreement {
  /** Of virtio. */
  readonly features: bigint
  readonly ring: RingFeatures
  /** Request queues that the back end has. */
  readonly requestQueues: number
  /** The device's configuration space; undefined for SCSI back ends that keep it to themselves. */
  readonly config: DataView | undefined
}

/**
 * Agrees on features. Throws `RpcError` ENOTSUP for a back end that lacks what is needed here, EINVAL for one that serves
 * a device of the other kind.
 */
export async function negotiate(frontEnd: FrontEnd, kind: DeviceKind, packed: boolean): Promise<Agreement> {
  const offered = await frontEnd.getU64(Request.GET_FEATURES)
  if ((offered & bit(VirtioFeature.VERSION_1)) === 0n || (offered & VhostFeature.PROTOCOL_FEATURES) === 0n) {
    throw new RpcError(
      'ENOTSUP',
      `the back end offers features 0x${offered.toString(16)}, without VIRTIO_F_VERSION_1 or protocol features: use one that has both`,
    )
  }
  const protocol = (await frontEnd.getU64(Request.GET_PROTOCOL_FEATURES)) & PROTOCOL_FEATURES
  await frontEnd.setU64(Request.SET_PROTOCOL_FEATURES, protocol)
  frontEnd.protocolFeatures = protocol
  await frontEnd.order(Request.SET_OWNER)
  const features = wanted(offered, kind, packed)
  await frontEnd.setU64(Request.SET_FEATURES, features | VhostFeature.PROTOCOL_FEATURES)
  const queues = frontEnd.has(ProtocolFeature.MQ)
    ? Number(await frontEnd.getU64(Request.GET_QUEUE_NUM))
    : FIXED_QUEUES[kind] + 1
  await refuseOtherKind(frontEnd, kind, offered)
  const config = await readConfig(frontEnd, kind)
  const isPacked = (features & bit(VirtioFeature.RING_PACKED)) !== 0n
  return {
    features,
    ring: {
      isPacked,
      hasEventIndex: (features & bit(VirtioFeature.EVENT_IDX)) !== 0n,
      hasIndirect: (features & bit(VirtioFeature.INDIRECT_DESC)) !== 0n,
    },
    requestQueues: Math.min(queues - FIXED_QUEUES[kind], queuesOf(kind, features, config)),
    config,
  }
}

/** The device's configuration space as it is now. */
export async function readConfig(frontEnd: FrontEnd, kind: DeviceKind): Promise<DataView | undefined> {
  if (frontEnd.has(ProtocolFeature.CONFIG)) return frontEnd.getConfig(CONFIG_BYTES[kind])
  if (kind === 'scsi') return undefined
  throw new RpcError(
    'ENOTSUP',
    'the back end does not tell the size of its disk (VHOST_USER_PROTOCOL_F_CONFIG): use one that does, ' +
      'or, if it serves SCSI, attach it with dev_type scsi',
  )
}

/**
 * vhost-user does not say what kind of device it is. What each has for itself does: the features of a block device, which
 * hardly any is without, and otherwise the configuration. Where that of a block device has the size of a block, that of
 * a SCSI host has the size of sense data, 96 bytes by default: no block is so short.
 */
async function refuseOtherKind(frontEnd: FrontEnd, kind: DeviceKind, offered: bigint): Promise<void> {
  const isBlk = (offered & BLK_ONLY) !== 0n
  if (kind === 'scsi' && isBlk) {
    throw new RpcError(
      'EINVAL',
      `the back end offers features 0x${offered.toString(16)}, those of a block device: attach it with dev_type blk`,
    )
  }
  if (kind === 'scsi' || isBlk || !frontEnd.has(ProtocolFeature.CONFIG)) return
  const config = await frontEnd.getConfig(ScsiConfig.size).catch((error: Error) => {
    if (error instanceof ProtocolError) return undefined
    throw error
  })
  const senseBytes = config && ScsiConfig.senseSize.get(config, 0)
  if (senseBytes !== undefined && (senseBytes === 0 || senseBytes >= SECTOR_SIZE)) return
  throw new RpcError(
    'EINVAL',
    `the back end offers features 0x${offered.toString(16)} and a configuration that no block device has: ` +
      'it seems to serve SCSI, so attach it with dev_type scsi',
  )
}

function wanted(offered: bigint, kind: DeviceKind, packed: boolean): bigint {
  let features = offered & DEVICE_FEATURES[kind]
  for (const feature of RING_FEATURES) features |= offered & bit(feature)
  if (!packed) features &= ~bit(VirtioFeature.RING_PACKED)
  if (packed && (features & bit(VirtioFeature.RING_PACKED)) === 0n) {
    throw new RpcError('ENOTSUP', 'packed_ring: the back end has only split rings: leave packed_ring out')
  }
  return features
}

function queuesOf(kind: DeviceKind, features: bigint, config: DataView | undefined): number {
  if (config === undefined) return Number.POSITIVE_INFINITY
  if (kind === 'scsi') return ScsiConfig.numQueues.get(config, 0)
  return (features & BlkFeature.MQ) === 0n ? 1 : BlkConfig.numQueues.get(config, 0)
}

/** What the back end is to work on. */
export interface Setup {
  readonly memory: { readonly fd: number; readonly address: number; readonly sizeBytes: number }
  readonly rings: readonly RingDescription[]
  readonly isPacked: boolean
  /** In the order of the rings: where each goes on. */
  readonly bases: readonly number[]
  readonly inflight: InflightMemory | undefined
}

/** Hands over memory and rings. The back end may begin when this resolves. */
export async function start(frontEnd: FrontEnd, setup: Setup): Promise<void> {
  const { memory, rings, isPacked, bases, inflight } = setup
  if (inflight !== undefined) await frontEnd.setInflight(inflight)
  await frontEnd.setMemory(memory.fd, memory.address, memory.sizeBytes)
  for (const [i, { index, address, size, call, kick }] of rings.entries()) {
    await frontEnd.setVringState(Request.SET_VRING_NUM, index, size)
    await frontEnd.setVringState(Request.SET_VRING_BASE, index, bases[i]!)
    await frontEnd.setVringAddress(index, ringAddresses(address, size, isPacked))
    await frontEnd.setVringFd(Request.SET_VRING_CALL, index, call)
    await frontEnd.setVringFd(Request.SET_VRING_KICK, index, kick)
  }
  for (const { index } of rings) await frontEnd.setVringState(Request.SET_VRING_ENABLE, index, 1)
  // Without REPLY_ACK this is what shows that the back end has come so far and has not refused anything.
  await frontEnd.getU64(Request.GET_FEATURES)
}

/** Has the back end end what it has in flight. */
export async function stop(frontEnd: FrontEnd, rings: readonly RingDescription[]): Promise<void> {
  for (const { index } of rings) await frontEnd.getVringBase(index)
}
