import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Storage } from '../support.ts'

let storage: Storage
let path: string | undefined

beforeEach(() => {
  storage = new Storage()
  mkdirSync(storage.path('bin'))
  path = process.env['PATH']
  process.env['PATH'] = `${storage.path('bin')}:${path}`
  program('mount', 'exit 0')
})
afterEach(() => {
  process.env['PATH'] = path
  storage.close()
})

/** A program that notes its words, one a line, and then does this. */
function program(name: string, script: string): void {
  const file = storage.path('bin', name)
  writeFileSync(file, `#!/bin/sh\nprintf '%s\\n' "$@" > '${storage.path(name)}.words'\n${script}\n`)
  chmodSync(file, 0o755)
}
const words = (name: string): string[] =>
  readFileSync(`${storage.path(name)}.words`, 'utf8')
    .trim()
    .split('\n')

async function start(xml: string): Promise<void> {
  await storage.call('pool_define', { xml })
  await storage.call('pool_start', { pool: 'p', build: true })
}
const target = (): string => `<target><path>${storage.path('t')}</path></target>`
const netfs = (source: string, rest = ''): string =>
  `<pool type='netfs'${rest === '' ? '' : " xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'"}>
   <name>p</name><source>${source}</source>${target()}${rest}</pool>`

describe('a pool on a server', () => {
  it.each([
    [
      "<host name='192.0.2.7'/><dir path='/x'/><format type='auto'/>",
      ['nfs', 'nodev,nosuid,noexec', '192.0.2.7:/x'],
    ],
    [
      "<host name='192.0.2.7' port='2050'/><dir path='/x'/><format type='nfs'/><protocol ver='4'/>",
      ['nfs', 'nodev,nosuid,noexec,nfsvers=4,port=2050', '192.0.2.7:/x'],
    ],
    [
      "<host name='2001:db8::7'/><dir path='/x'/><format type='nfs'/>",
      ['nfs', 'nodev,nosuid,noexec', '[2001:db8::7]:/x'],
    ],
    [
      "<host name='h'/><dir path='/share'/><format type='cifs'/>",
      ['cifs', 'nodev,nosuid,noexec,guest', '//h/share'],
    ],
    [
      "<host name='h'/><dir path='/vol'/><format type='glusterfs'/>",
      ['glusterfs', 'nodev,nosuid,noexec,direct-io-mode=1', 'h:/vol'],
    ],
  ])('of %s is mounted so', async (source, [type, options, from]) => {
    await start(netfs(source))
    expect(words('mount')).toEqual(['-t', type, '-o', options, from, storage.path('t')])
  })

  it('has the mount options of its document', async () => {
    const options = "<fs:mount_opts><fs:option name='soft'/><fs:option name='ro'/></fs:mount_opts>"
    await start(netfs("<host name='h'/><dir path='/x'/>", options))
    expect(words('mount')[3]).toBe('nodev,nosuid,noexec,soft,ro')
  })

  it('is not formatted', async () => {
    await storage.call('pool_define', { xml: netfs("<host name='h'/><dir path='/x'/>") })
    await expect(storage.call('pool_build', { pool: 'p', overwrite: true })).rejects.toThrow(
      'pool p is on a server and is not formatted from here',
    )
  })

  it.each([
    [
      'bad option; for several filesystems you might need a /sbin/mount.nfs helper program.',
      'EIO',
      'install nfs-common (Debian, Ubuntu), nfs-utils (Fedora) or nfs-client (SUSE)',
    ],
    ["unknown filesystem type 'nfs'.", 'EIO', 'modprobe nfs'],
    ['mount.nfs: No such device', 'EIO', 'modprobe nfs'],
    ['access denied by server while mounting h:/x', 'EPERM', 'access denied'],
    ['Connection timed out', 'ETIMEDOUT', 'timed out'],
  ])('says what to do when mount says %j', async (said, code, message) => {
    program('mount', `echo 'mount: /t: ${said.replaceAll("'", "'\\''")}' >&2; exit 32`)
    await expect(start(netfs("<host name='h'/><dir path='/x'/>"))).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
    expect(await storage.call('pool_list')).toMatchObject([{ state: 'inactive' }])
  })
})

describe('a pool on a block device', () => {
  const xml = (format: string): string =>
    `<pool type='fs'><name>p</name><source><device path='/dev/nix'/><format type='${format}'/></source>${target()}</pool>`

  it.each([
    ['xfs', ['-q', '-f', '/dev/nix']],
    ['ext4', ['-q', '-F', '/dev/nix']],
    ['vfat', ['/dev/nix']],
  ])('is formatted %s without a question', async (format, expected) => {
    program(`mkfs.${format}`, 'exit 0')
    await storage.call('pool_define', { xml: xml(format) })
    await storage.call('pool_build', { pool: 'p', overwrite: true })
    expect(words(`mkfs.${format}`)).toEqual(expected)
  })

  it.each([
    ['DEVNAME=/dev/nix\nTYPE=LVM2_member', 'LVM2_member'],
    ['DEVNAME=/dev/nix\nPTTYPE=gpt', 'a gpt partition table'],
  ])('is not formatted over what blkid finds: %j', async (said, found) => {
    program('mkfs.xfs', 'exit 0')
    program('blkid', `printf '%s\\n' '${said}'`)
    await storage.call('pool_define', { xml: xml('xfs') })
    await expect(storage.call('pool_build', { pool: 'p', overwrite: false })).rejects.toMatchObject({
      code: 'EEXIST',
      message: expect.stringContaining(`/dev/nix has ${found} on it already`),
    })
    expect(() => words('mkfs.xfs')).toThrow()
  })

  it('is not formatted when blkid cannot tell', async () => {
    program('mkfs.xfs', 'exit 0')
    program('blkid', 'echo "error: /dev/nix: No such file or directory" >&2; exit 2')
    await storage.call('pool_define', { xml: xml('xfs') })
    await expect(storage.call('pool_build', { pool: 'p', overwrite: false })).rejects.toMatchObject({
      code: 'ENOENT',
    })
    expect(() => words('mkfs.xfs')).toThrow()
  })

  it.each(['auto', 'gfs2'])('of the format %s is not made here', async format => {
    await storage.call('pool_define', { xml: xml(format) })
    await expect(storage.call('pool_build', { pool: 'p', overwrite: true })).rejects.toThrow(
      `has the format ${format}, which is not made here`,
    )
  })
})
