import { describe, expect, it } from 'vitest'
import { chooseMeans, type Situation } from '../../../src/vm/disk/means.ts'

/** A raw file in a pool, for a guest that runs and has shared memory. */
const situation = (change: Partial<Situation>): Situation => ({
  volume: 'v1',
  bus: 'virtio',
  wished: undefined,
  isOpenHere: false,
  canServe: true,
  isManaged: true,
  canBeDirect: true,
  isHiddenDevice: false,
  hasSharedMemory: true,
  isLive: true,
  ...change,
})

describe('the means by which a guest gets a disk', () => {
  it.each<[string, Partial<Situation>, string]>([
    ['a volume for the next start with shared memory', { isLive: false }, 'vhost'],
    ['a volume for a guest that runs, which would lose it with the daemon', {}, 'direct'],
    ['a volume for a domain without', { isLive: false, hasSharedMemory: false }, 'direct'],
    ['a bdev for the next start with shared memory', { isLive: false, isOpenHere: true }, 'vhost'],
    ['a bdev for a guest that runs', { isOpenHere: true, canBeDirect: false }, 'nbd'],
    ['a guest that runs, by wish', { wished: 'vhost' }, 'vhost'],
    ['a bdev for a guest without', { isOpenHere: true, hasSharedMemory: false }, 'nbd'],
    [
      'a volume that a bdev has open, for a guest without',
      { isOpenHere: true, hasSharedMemory: false },
      'nbd',
    ],
    ['a path that is in no pool', { isManaged: false, isLive: false }, 'direct'],
    ['a volume of a format that only QEMU knows', { canServe: false }, 'direct'],
    ['a volume on the NVMe bus', { bus: 'nvme' }, 'direct'],
    ['a bdev on the NVMe bus', { bus: 'nvme', isOpenHere: true }, 'nbd'],
    ['a device on the NVMe bus, which QEMU would not see', { bus: 'nvme', isHiddenDevice: true }, 'nbd'],
    ['an image with a secret on the SCSI bus', { bus: 'scsi', canBeDirect: false }, 'nbd'],
    ['what is wished for', { wished: 'nbd' }, 'nbd'],
    ['shared memory at the next start', { wished: 'vhost', hasSharedMemory: false, isLive: false }, 'vhost'],
  ])('for %s: %j is %s', (_what, change, means) => {
    expect(chooseMeans(situation(change))).toBe(means)
  })

  it.each<[Partial<Situation>, string]>([
    [
      { wished: 'vhost', bus: 'nvme' },
      'v1 cannot be attached by --means vhost: a vhost-user disk is on the virtio bus',
    ],
    [{ wished: 'vhost', hasSharedMemory: false }, 'the guest runs without shared memory'],
    [{ wished: 'vhost', canServe: false }, 'the daemon has no bdev for v1'],
    [{ wished: 'nbd', canServe: false }, 'the daemon has no bdev for v1'],
    [{ wished: 'direct', isOpenHere: true }, 'the daemon has it open, and two writers would destroy it'],
    [{ wished: 'direct', canBeDirect: false }, 'neither a file, nor a device'],
    [{ wished: 'direct', bus: 'nvme', isHiddenDevice: true }, 'libvirt gives QEMU a /dev of its own'],
    [{ bus: 'scsi', canBeDirect: false, canServe: false }, 'v1 cannot be a disk on the scsi bus'],
  ])('are refused with the reason: %j', (change, reason) => {
    expect(() => chooseMeans(situation(change))).toThrow(reason)
  })
})
