import { describe, expect, it } from 'vitest'
import { busFor } from '../../../src/vm/disk/target.ts'

describe('the bus of a disk', () => {
  it.each([
    [undefined, undefined, 'virtio'],
    [undefined, 'scsi', 'scsi'],
    ['vdb', undefined, 'virtio'],
    ['sdb', undefined, 'scsi'],
    ['sdb', 'sata', 'sata'],
    ['nvme0', undefined, 'nvme'],
    ['data', 'nvme', 'nvme'],
  ] as const)('of target %s and bus %s is %s', (target, bus, expected) => {
    expect(busFor(target, bus)).toBe(expected)
  })

  it.each([
    ['hda', undefined, 'hda is no name of a disk: those are such as vdb (virtio), sdb (scsi, sata)'],
    ['hda', 'virtio', 'hda is no name of a disk on bus virtio: those are such as vdb'],
    ['sdb', 'virtio', 'sdb is no name of a disk on bus virtio: those are such as vdb'],
    ['vdb', 'scsi', 'vdb is no name of a disk on bus scsi: those are such as sdb'],
  ] as const)('is none of target %s and bus %s', (target, bus, message) => {
    expect(() => busFor(target, bus)).toThrow(message)
  })
})
