import { expect, it } from 'vitest'
import { guestOf, takingBack } from '../../src/volume/use.ts'

it.each([
  ['/usr/bin/qemu-system-x86_64 -name guest=CentOS8,debug-threads=on -S', 'CentOS8'],
  ['qemu-system-aarch64 -nodefaults -name web,process=web', 'web'],
  ['/usr/libexec/qemu-kvm -name db', 'db'],
  ['/usr/bin/qemu-system-x86_64 -m 1G', undefined],
  ['/usr/bin/qemu-system-x86_64 -name', undefined],
  ['/usr/bin/find / -name core', undefined],
  ['', undefined],
])('finds the guest in the command line %s', (words, guest) => {
  expect(guestOf(words.replaceAll(' ', '\0'))).toBe(guest)
})

it('says how a bdev over a volume is given back: by the export that made it, or by whatever else did', () => {
  expect(takingBack('vms/web', 'vms-web')).toBe('qpair volume unexport vms/web takes it back')
  expect(takingBack('store/unit:0:0:1', 'store-unit_0_0_1')).toMatch(/^qpair volume unexport /)
  expect(takingBack('vms/web', 'my-guest-vda')).toMatch(
    /^qpair vm detach my-guest vda takes it away, with --config/,
  )
  expect(takingBack('vms/web', 'mine')).toMatch(
    /^qpair volume unexport vms\/web --bdev mine takes it back where/,
  )
})
