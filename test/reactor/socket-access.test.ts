import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { applyAccess, type Lookup, resolveAccess } from '../../src/reactor/socket-access.ts'

const DATABASES: Record<string, Record<string, string>> = {
  passwd: { qemu: 'qemu:x:107:36:qemu user:/:/sbin/nologin' },
  group: { kvm: 'kvm:x:36:qemu' },
}
const lookup: Lookup = async (database, name) => DATABASES[database]![name]?.split(':') ?? null
const access = (mode: string | undefined, owner: string | undefined): Promise<unknown> =>
  resolveAccess({ mode, owner }, lookup)

describe('the access to a socket', () => {
  it.each([
    [undefined, undefined, {}],
    ['0660', undefined, { mode: 0o660 }],
    ['600', undefined, { mode: 0o600 }],
    [undefined, 'qemu:kvm', { uid: 107, gid: 36 }],
    [undefined, 'qemu', { uid: 107 }],
    [undefined, ':kvm', { gid: 36 }],
    ['0666', '5:0', { mode: 0o666, uid: 5, gid: 0 }],
  ])('mode %s and owner %s are %j', async (mode, owner, expected) => {
    expect(await access(mode, owner)).toEqual(expected)
  })

  it.each([
    ['0680', undefined, '"0680" is no octal mode of three digits: give one such as 660'],
    ['1777', undefined, '"1777" is no octal mode'],
    ['', undefined, '"" is no octal mode'],
    [undefined, '', '"" names nobody: give user, user:group or :group'],
    [undefined, ':', '":" names nobody'],
    [undefined, 'qemu:kvm:x', 'names more than a user and a group'],
    [undefined, 'nobody-here', 'there is no user "nobody-here" on this machine: "getent passwd" lists'],
    [undefined, 'qemu:nobody-here', 'there is no group "nobody-here" on this machine: "getent group" lists'],
    [undefined, '4294967295', 'there is no user "4294967295"'],
  ])('refuses mode %s and owner %s', async (mode, owner, message) => {
    await expect(access(mode, owner)).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining(message),
    })
  })

  it("looks names up in the system's own databases", async () => {
    expect(await resolveAccess({ mode: undefined, owner: 'root:root' })).toEqual({ uid: 0, gid: 0 })
  })
})

describe('access that is applied', () => {
  it('gives a socket its mode, and says of which file and why when it cannot', () => {
    const directory = mkdtempSync(join(tmpdir(), 'qpair-access-'))
    try {
      const path = join(directory, 'socket')
      writeFileSync(path, '')
      applyAccess(path, { mode: 0o620 })
      expect(statSync(path).mode & 0o777).toBe(0o620)
      applyAccess(path, {})
      expect(statSync(path).mode & 0o777).toBe(0o620)
      expect(() => applyAccess(join(directory, 'none'), { uid: 1, gid: 2 })).toThrow(
        /none cannot be given to 1:2: only root gives files to another user/,
      )
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
})
