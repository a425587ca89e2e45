import { expect, it } from 'vitest'
import { movedSockets } from '../../../src/vm/run/moved-sockets.ts'

const disk = (target: string, socketPath: string) => ({
  target,
  source: { kind: 'vhost', socketPath, isPacked: false } as const,
})

it('says with what directory the daemon is to be started when a guest waits for a disk elsewhere', () => {
  const controllers = [
    { name: 'web-vda', socketPath: '/root/web-vda' },
    { name: 'web-vdb', socketPath: '/run/qpair/vhost/web-vdb' },
  ]
  const disks = [
    disk('vda', '/run/qpair/vhost/web-vda'),
    disk('vdb', '/run/qpair/vhost/web-vdb'),
    disk('vdc', '/run/qpair/vhost/web-vdc'),
    { target: 'nvme0', source: { kind: 'file', path: '/srv/a', format: 'raw' } as const },
  ]
  expect(movedSockets(disks, controllers)).toEqual([
    'vda, which it looks for at /run/qpair/vhost/web-vda, is served at /root/web-vda: its I/O waits until the daemon is ' +
      'started with -S /run/qpair/vhost again',
  ])
})
