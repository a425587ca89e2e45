import { expect, it } from 'vitest'
import { guestOf } from '../../src/volume/use.ts'

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
