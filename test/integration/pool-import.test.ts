/** Pools and secrets of a libvirt that runs are taken over, with `virsh` as the witness of what there was. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { type Libvirt, startLibvirt } from './lab/libvirt.ts'

const UUID = 'd5f2a1b0-1111-4222-8333-444455556666'
const PRIVATE = 'd5f2a1b0-1111-4222-8333-444455557777'

await describeWith(['libvirtd', 'virsh', 'qemu-system-x86_64', 'setpriv'], 'a libvirt that runs', () => {
  const directory = mkdtempSync(join(tmpdir(), 'qpair-import-'))
  let libvirt: Libvirt
  let daemon: Daemon

  const file = (name: string, text: string): string => {
    const path = join(directory, name)
    writeFileSync(path, text, { mode: 0o644 })
    return path
  }

  beforeAll(async () => {
    // libvirt is another user.
    for (const path of [directory, join(directory, 'images'), join(directory, 'isos')]) {
      mkdirSync(path, { recursive: true })
      chmodSync(path, 0o777)
    }
    writeFileSync(join(directory, 'images/disk.img'), 'x'.repeat(4096))
    libvirt = await startLibvirt()
    daemon = await startDaemon()
    for (const name of ['images', 'isos']) {
      const xml = `<pool type='dir'><name>${name}</name><target><path>${join(directory, name)}</path></target></pool>`
      await libvirt.virsh('pool-define', file(`${name}.xml`, xml))
    }
    await libvirt.virsh('pool-start', 'images')
    await libvirt.virsh('pool-autostart', 'images')
    const rbd = `<pool type='rbd'><name>ceph</name><source><name>vms</name><host name='192.0.2.1'/>
      <auth type='ceph' username='kvm'><secret uuid='${UUID}'/></auth></source></pool>`
    await libvirt.virsh('pool-define', file('rbd.xml', rbd))
    const secret = (uuid: string, isPrivate: string, name: string): string =>
      `<secret ephemeral='no' private='${isPrivate}'><uuid>${uuid}</uuid><usage type='ceph'><name>${name}</name></usage></secret>`
    await libvirt.virsh('secret-define', file('secret.xml', secret(UUID, 'no', 'kvm')))
    await libvirt.virsh('secret-set-value', UUID, Buffer.from('value of it').toString('base64'))
    await libvirt.virsh('secret-define', file('private.xml', secret(PRIVATE, 'yes', 'other')))
    await libvirt.virsh('secret-set-value', PRIVATE, Buffer.from('hidden').toString('base64'))
  })
  afterAll(async () => {
    await daemon?.stop()
    await libvirt?.stop()
    rmSync(directory, { recursive: true, force: true })
  })

  it('gives its pools and secrets, whatever it knows of them', async () => {
    const rows = await daemon.rpc<object[]>('pool_import_libvirt', { uri: libvirt.uri })
    expect(rows).toHaveLength(5)
    expect(rows).toContainEqual({ kind: 'secret', name: UUID, type: 'ceph', outcome: 'imported', note: '' })
    expect(rows).toContainEqual({
      ...{ kind: 'secret', name: PRIVATE, type: 'ceph', outcome: 'imported' },
      note: 'libvirt does not tell its value: qpair secret set-value',
    })
    for (const [name, type] of [
      ['images', 'dir'],
      ['isos', 'dir'],
      ['ceph', 'rbd'],
    ]) {
      expect(rows).toContainEqual({ kind: 'pool', name, type, outcome: 'imported', note: '' })
    }
    expect(await daemon.rpc('pool_list', { all: true })).toMatchObject([
      { name: 'ceph', state: 'inactive', autostart: false },
      { name: 'images', state: 'running', autostart: true },
      { name: 'isos', state: 'inactive' },
    ])
    expect(await daemon.rpc('volume_list', { pool: 'images' })).toMatchObject([
      { name: 'disk.img', capacity: 4096 },
    ])
    expect(await daemon.rpc('secret_get_value', { secret: UUID })).toBe(
      Buffer.from('value of it').toString('base64'),
    )
    await expect(daemon.rpc('secret_get_value', { secret: PRIVATE })).rejects.toThrow('is private')
    const uuid = (await libvirt.virsh('pool-uuid', 'images')).trim()
    expect(await daemon.rpc('pool_info', { pool: uuid })).toMatchObject({ name: 'images' })
  })

  it('is asked again without harm', async () => {
    const rows = await daemon.rpc<{ kind: string; outcome: string }[]>('pool_import_libvirt', {
      uri: libvirt.uri,
    })
    expect(rows.filter(({ kind }) => kind === 'pool').map(({ outcome }) => outcome)).toEqual([
      'present',
      'present',
      'present',
    ])
    await daemon.restart()
    expect(await daemon.rpc('secret_get_value', { secret: UUID })).toBe(
      Buffer.from('value of it').toString('base64'),
    )
  })
})
