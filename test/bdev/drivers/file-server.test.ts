import { expect, it } from 'vitest'
import { serverMountOf } from '../../../src/bdev/drivers/file-server.ts'
import { parseMounts } from '../../../src/core/mounts.ts'

const MOUNTS = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:40 / /mnt/nfs rw,nosuid shared:5 - nfs4 store:/vms rw,vers=4.2
41 40 254:1 / /mnt/nfs/local rw - xfs /dev/vdb rw
42 22 0:43 / /mnt/gluster rw - fuse.glusterfs store:/vms rw
43 22 254:2 / /mnt/hidden rw - ext4 /dev/vdc rw
44 22 0:44 / /mnt/hidden rw - nfs4 store:/isos rw
45 22 0:45 / /mnt/my\\040vms rw - nfs4 store:/mine rw
`

it.each([
  ['/mnt/nfs/disk.img', '/mnt/nfs'],
  ['/mnt/nfs', '/mnt/nfs'],
  ['/mnt/gluster/a/b', '/mnt/gluster'],
  ['/mnt/hidden/x', '/mnt/hidden'],
  ['/mnt/my vms/disk.img', '/mnt/my vms'],
  ['/mnt/nfs/local/disk.img', undefined],
  ['/mnt/nfs2/disk.img', undefined],
  ['/srv/disk.img', undefined],
])('%s is on the server mounted at %s', (path, mountPoint) => {
  expect(serverMountOf(parseMounts(MOUNTS), path)).toBe(mountPoint)
})
