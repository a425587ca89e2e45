import { describe, expect, it } from 'vitest'
import { mountAt, mountOf, parseMounts } from '../../src/core/mounts.ts'

// Lines as proc_pid_mountinfo(5) describes them: optional fields or none, a space as \040.
const MOUNTINFO = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
65 22 7:0 / /srv/my\\040vms rw,nosuid - xfs /dev/loop0 rw
66 22 0:55 / /mnt/nfs rw shared:9 master:2 - nfs4 server:/export rw,vers=4.2
70 65 8:3 / /srv/my\\040vms rw - ext4 /dev/sdb rw
`

describe('parseMounts', () => {
  it('reads mount point, type and source, with escapes and any number of optional fields', () => {
    expect(parseMounts(MOUNTINFO)).toEqual([
      { mountPoint: '/', root: '/', device: '8:1', type: 'ext4', source: '/dev/sda1' },
      { mountPoint: '/srv/my vms', root: '/', device: '7:0', type: 'xfs', source: '/dev/loop0' },
      { mountPoint: '/mnt/nfs', root: '/', device: '0:55', type: 'nfs4', source: 'server:/export' },
      { mountPoint: '/srv/my vms', root: '/', device: '8:3', type: 'ext4', source: '/dev/sdb' },
    ])
  })
})

describe('mountAt', () => {
  it('is what was mounted last at that very path', () => {
    const mounts = parseMounts(MOUNTINFO)
    expect(mountAt(mounts, '/srv/my vms')?.source).toBe('/dev/sdb')
    expect(mountAt(mounts, '/srv')).toBeUndefined()
  })
})

describe('mountOf', () => {
  it.each([
    ['/srv/my vms/a/b', '8:3'],
    ['/srv/my vms', '8:3'],
    ['/srv/my vms2/a', '8:1'],
    ['/mnt/nfs/x', '0:55'],
    ['/', '8:1'],
  ])('of %s is the deepest above it', (path, device) => {
    expect(mountOf(parseMounts(MOUNTINFO), path)?.device).toBe(device)
  })
})
