/** Pools that other programs do the work for: with which words those are started, and what never reaches them. */
import { chmodSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { parsePool } from '../../../src/libvirt/pool-xml.ts'
import { MultipathPool } from '../../../src/volume/backends/mpath.ts'
import { ScsiPool } from '../../../src/volume/backends/scsi.ts'
import { zfsPool } from '../../../src/volume/backends/zfs.ts'
import type { PoolBackendType } from '../../../src/volume/pool.ts'
import { hasAllDisks } from '../../../src/volume/scsi-units.ts'
import { Storage } from '../support.ts'

let storage: Storage
let path: string | undefined

beforeEach(() => {
  path = process.env['PATH']
  begin()
})
afterEach(() => {
  process.env['PATH'] = path
  storage.close()
})

function begin(types?: readonly PoolBackendType[]): void {
  storage = new Storage(types === undefined ? {} : { types })
  mkdirSync(storage.path('bin'))
  process.env['PATH'] = storage.path('bin')
}

/** A program that notes the words of every start, a line each, and then does this. */
function program(name: string, script = ':'): void {
  const file = storage.path('bin', name)
  writeFileSync(file, `#!/bin/sh\nprintf '%s\\n' "$*" >> '${storage.path(name)}.words'\n${script}\n`)
  chmodSync(file, 0o755)
}
const words = (name: string): string[] =>
  existsSync(`${storage.path(name)}.words`)
    ? readFileSync(`${storage.path(name)}.words`, 'utf8')
        .trimEnd()
        .split('\n')
    : []

const define = (xml: string): Promise<unknown> => storage.call('pool_define', { xml })
const create = (name: string, more: object = {}): Promise<unknown> =>
  storage.call('volume_create', { pool: 'p', name, capacity: '1G', ...more })

const row = (facts: Readonly<Record<string, string>>): object => ({
  ...{
    lv_path: `/dev/vg/${facts['lv_name']}`,
    lv_uuid: 'u',
    lv_size: '1073741824',
    origin: '',
    origin_size: '',
  },
  ...{
    segtype: 'linear',
    data_percent: '',
    pool_lv: '',
    lv_active: 'active',
    lv_tags: '',
    lv_time: '',
    lv_attr: '',
  },
  ...facts,
})
const report = (...lv: readonly object[]): string => `echo '${JSON.stringify({ report: [{ lv }] })}'`

describe('a logical pool', () => {
  const xml =
    "<pool type='logical'><name>p</name><source><device path='/dev/sdb'/><device path='/dev/sdc'/><name>vg</name></source></pool>"

  beforeEach(() => {
    for (const name of ['vgchange', 'lvcreate', 'lvremove', 'lvrename', 'lvresize', 'pvcreate', 'vgcreate'])
      program(name)
    program('vgs', `echo '{"report":[{"vg":[{"vg_size":"8000","vg_free":"3000"}]}]}'`)
    program('lvs', report(row({ lv_name: 'web' })))
    program('blkid', 'exit 2')
  })

  async function start(): Promise<void> {
    await define(xml)
    await storage.call('pool_start', { pool: 'p' })
  }

  it('is built of its devices', async () => {
    await define(xml)
    await storage.call('pool_build', { pool: 'p' })
    expect(words('pvcreate')).toEqual(['--yes -- /dev/sdb', '--yes -- /dev/sdc'])
    expect(words('vgcreate')).toEqual(['-- vg /dev/sdb /dev/sdc'])
  })

  it('is not built over what is there, unless that is said', async () => {
    program('blkid', 'echo TYPE=ext4')
    await define(xml)
    await expect(storage.call('pool_build', { pool: 'p' })).rejects.toThrow('/dev/sdb has ext4 on it already')
    expect(words('pvcreate')).toEqual([])
    await storage.call('pool_build', { pool: 'p', overwrite: true })
    expect(words('pvcreate')).toEqual(['--yes -ff -- /dev/sdb', '--yes -ff -- /dev/sdc'])
  })

  it('makes thick volumes without a thin pool, and thin ones with the emptiest', async () => {
    await start()
    await create('a')
    program(
      'lvs',
      report(
        row({ lv_name: 'full', segtype: 'thin-pool', data_percent: '90.00' }),
        row({ lv_name: 'empty', segtype: 'thin-pool', data_percent: '1.00' }),
      ),
    )
    await create('b')
    await create('c', { preallocation: 'full' })
    await create('d', { features: { thin_pool: 'full' } })
    await expect(create('e', { features: { thin_pool: 'none' } })).rejects.toThrow('there are: full, empty')
    const begin = '--yes --wipesignatures y --name'
    expect(words('lvcreate')).toEqual([
      `${begin} a --size 1073741824b -- vg`,
      `${begin} b --virtualsize 1073741824b --thinpool empty -- vg`,
      `${begin} c --size 1073741824b -- vg`,
      `${begin} d --virtualsize 1073741824b --thinpool full -- vg`,
    ])
  })

  it.each([
    '-n',
    '--yes',
    '../x',
    'a b',
    'a;reboot',
    '$(id)',
    'snapshot1',
    'x_tdata',
    '',
    'ä',
    'a'.repeat(128),
  ])('starts nothing for a volume called %j', async name => {
    await start()
    await expect(create(name)).rejects.toThrow('cannot be the name of')
    await expect(storage.call('volume_rename', { volume: 'web', name })).rejects.toThrow(
      'cannot be the name of',
    )
    expect([...words('lvcreate'), ...words('lvrename')]).toEqual([])
  })

  it.each(['-rf', 'a/b', '..'])('refuses a group called %j', async name => {
    await expect(define(xml.replace('<name>vg</name>', `<name>${name}</name>`))).rejects.toThrow(
      'cannot be the name of a volume group',
    )
  })

  it('does not take snapshots of ours for volumes', async () => {
    program(
      'lvs',
      report(row({ lv_name: 'web' }), row({ lv_name: 'web.one', origin: 'web', lv_tags: 'qpair_snapshot' })),
    )
    await start()
    expect(await storage.call('volume_list', { pool: 'p' })).toMatchObject([{ name: 'web' }])
    await expect(storage.call('volume_delete', { volume: 'web' })).rejects.toThrow('has 1 snapshot (one)')
    await storage.call('volume_delete', { volume: 'web', delete_snapshots: true })
    expect(words('lvremove')).toEqual(['--yes --force -- vg/web.one', '--yes --force -- vg/web'])
  })

  it('is neither stopped nor deleted half-way: nothing is begun while somebody has a volume of its group open', async () => {
    await start()
    program('lvs', report(row({ lv_name: 'web' }), row({ lv_name: 'root', lv_device_open: 'open' })))
    const before = words('vgchange').length
    await expect(storage.call('pool_destroy', { pool: 'p' })).rejects.toThrow('somebody has root of vg open')
    program(
      'lvs',
      report(row({ lv_name: 'web' }), row({ lv_name: 'thin', lv_device_open: 'open', segtype: 'thin-pool' })),
    )
    await storage.call('pool_destroy', { pool: 'p' })
    program('vgremove')
    program('lvs', report(row({ lv_name: 'web' }), row({ lv_name: 'root', lv_device_open: 'open' })))
    await expect(storage.call('pool_delete', { pool: 'p' })).rejects.toThrow('somebody has root of vg open')
    expect([words('vgchange').length - before, words('vgremove')]).toEqual([1, []])
  })

  it('says what to do when its group is not there, and when LVM is not', async () => {
    program('vgchange', `echo '  Volume group "vg" not found' >&2; exit 5`)
    await define(xml)
    await expect(storage.call('pool_start', { pool: 'p' })).rejects.toThrow(
      'Is vg there (vgs)? qpair pool build makes it',
    )
    process.env['PATH'] = storage.path('nothing')
    await expect(storage.call('pool_start', { pool: 'p' })).rejects.toThrow('install lvm2')
  })
})

describe('a zfs pool', () => {
  const xml = "<pool type='zfs'><name>p</name><source><name>tank/vms</name></source></pool>"

  beforeEach(() => {
    storage.close()
    // /dev/zvol is made by udev, and waited for.
    const create: PoolBackendType['create'] = (document, services) =>
      zfsPool.create({ ...document, target: { path: storage.path('zvol') } }, services)
    begin([{ ...zfsPool, create }])
    const target = storage.path('zvol')
    mkdirSync(target)
    program(
      'zfs',
      `for last; do :; done
      case "$1" in
        create|clone|rename) : > '${target}'/"\${last##*/}" ;;
        get) printf '1000\\n9000\\n' ;;
        list) case "$*" in *snapshot*) printf 'tank/vms/a@one\\t1795262820\\t16384\\toff\\n' ;; *) printf 'tank/vms/a\\t16384\\t8192\\t-\\n' ;; esac ;;
      esac`,
    )
  })

  it('has zvols as volumes, whose lives are those of datasets', async () => {
    await define(xml)
    await storage.call('pool_start', { pool: 'p' })
    expect(await storage.call('pool_info', { pool: 'p' })).toMatchObject({
      capacity: 10_000,
      available: 9000,
    })
    expect(await storage.call('volume_list', { pool: 'p' })).toMatchObject([
      { name: 'a', path: storage.path('zvol', 'a') },
    ])
    const before = words('zfs').length
    await create('b')
    await create('c', { preallocation: 'full', capacity: 10_000 })
    await storage.call('volume_snapshot_create', { volume: 'a', snapshot: 'two' })
    await storage.job('volume_snapshot_revert', { volume: 'a', snapshot: 'one' })
    await storage.call('volume_resize', { volume: 'a', capacity: '1M' })
    await storage.call('volume_rename', { volume: 'a', name: 'd' })
    await storage.job('volume_clone', { volume: 'a', name: 'e' })
    const changes = words('zfs').slice(before)
    expect(changes.filter(line => !/^(?:get|list) /.test(line))).toEqual([
      'create -s -V 1073741824 -- tank/vms/b',
      'create -V 16384 -- tank/vms/c',
      'snapshot -- tank/vms/a@two',
      'rollback -- tank/vms/a@one',
      'set volsize=1048576 tank/vms/a',
      'rename -- tank/vms/a tank/vms/d',
      'snapshot -- tank/vms/a@clone-e',
      'clone -- tank/vms/a@clone-e tank/vms/e',
      'destroy -d -- tank/vms/a@clone-e',
    ])
  })

  it('is not deleted with what is in its dataset and was never in the pool', async () => {
    program(
      'zfs',
      `case "$*" in list*-r*) printf 'tank/vms\\ntank/vms/a\\ntank/vms/home\\n' ;; list*) printf 'tank/vms/a\\t1\\t1\\t-\\n' ;; esac`,
    )
    await define(xml)
    await expect(storage.call('pool_delete', { pool: 'p' })).rejects.toThrow(
      'tank/vms has tank/vms/home as well',
    )
    expect(words('zfs').filter(line => line.startsWith('destroy'))).toEqual([])
    program(
      'zfs',
      `case "$*" in list*-r*) printf 'tank/vms\\ntank/vms/a\\n' ;; list*) printf 'tank/vms/a\\t1\\t1\\t-\\n' ;; esac`,
    )
    await storage.call('pool_delete', { pool: 'p' })
    expect(words('zfs').at(-1)).toBe('destroy -r -- tank/vms')
  })

  it.each(['-r', 'a@b', 'a%b', 'a,b', '../x', 'a b'])('starts nothing for a volume called %j', async name => {
    await define(xml)
    await storage.call('pool_start', { pool: 'p' })
    await expect(create(name)).rejects.toThrow('cannot be')
    expect(words('zfs').filter(line => line.startsWith('create'))).toEqual([])
  })

  it.each(['-f', 'tank/../x', 'tank@a'])('refuses a dataset called %j', async name => {
    await expect(define(xml.replace('tank/vms', name))).rejects.toThrow(
      'cannot be the name of a zpool or dataset',
    )
  })
})

describe('an iscsi pool', () => {
  const xml = (host: string, device: string): string =>
    `<pool type='iscsi'><name>p</name><source><host name='${host}'/><device path='${device}'/></source>
     <target><path>/dev/disk/by-path</path></target></pool>`

  it('asks, and logs in', async () => {
    program('iscsiadm', 'case "$*" in *--login*) echo "iscsiadm: Could not login" >&2; exit 8 ;; esac')
    await define(xml('192.0.2.7', 'iqn.2026-01.org.example:a'))
    await expect(storage.call('pool_start', { pool: 'p' })).rejects.toThrow(
      'pool p cannot log in (iqn.2026-01.org.example:a at 192.0.2.7:3260)',
    )
    expect(words('iscsiadm')).toEqual([
      '-m iface',
      '-m iface -I qpair -o new',
      '-m discovery -t sendtargets -p 192.0.2.7:3260 -I qpair -o new',
      '-m node -I qpair -o update -n node.startup -v manual',
      '-m node -T iqn.2026-01.org.example:a -p 192.0.2.7:3260 -I qpair --login',
    ])
  })

  it.each([
    ['-oProxy', 'iqn.2026-01.org.example:a', 'is no name or address of a host'],
    ['192.0.2.7', '--logout', 'cannot be the name of a target'],
    ['192.0.2.7', 'iqn.a/../../b', 'cannot be the name of a target'],
  ])('refuses host %j with target %j', async (host, target, reason) => {
    await expect(define(xml(host, target))).rejects.toThrow(reason)
  })

  it('names the packages when there is no iscsiadm', async () => {
    await define(xml('192.0.2.7', 'iqn.2026-01.org.example:a'))
    await expect(storage.call('pool_start', { pool: 'p' })).rejects.toThrow(
      'install open-iscsi (Debian, Ubuntu), iscsi-initiator-utils (Fedora) or open-iscsi (SUSE)',
    )
  })
})

describe('pools whose software is gone', () => {
  it.each([
    [
      "<pool type='sheepdog'><name>p</name><source><host name='h'/><name>s</name></source></pool>",
      'Ceph took its place',
    ],
    [
      "<pool type='vstorage'><name>p</name><source><name>c</name></source><target><path>/v</path></target></pool>",
      "pool of type='dir'",
    ],
  ])('are kept and listed, and say what took their place: %s', async (xml, instead) => {
    await define(xml)
    expect(await storage.call('pool_list', { all: true })).toMatchObject([{ name: 'p', state: 'inactive' }])
    await expect(storage.call('pool_start', { pool: 'p' })).rejects.toThrow(instead)
  })
})

describe('pools that the kernel tells of', () => {
  const sys = (...names: readonly string[]): string => storage.path('sys', ...names)
  function file(name: string, text: string): void {
    mkdirSync(dirname(sys(name)), { recursive: true })
    writeFileSync(sys(name), text)
  }

  it('has the disks of one host adapter, by its place on the bus, once they are there', async () => {
    file('devices/pci0000:00/0000:00:1f.2/ata1/host2/scsi_host/host2/unique_id', '1\n')
    mkdirSync(sys('class/scsi_host'), { recursive: true })
    symlinkSync(
      '../../devices/pci0000:00/0000:00:1f.2/ata1/host2/scsi_host/host2',
      sys('class/scsi_host/host2'),
    )
    for (const [unit, disk, sectors] of [
      ['2:0:0:0', 'sda', '2048\n'],
      ['2:0:0:10', 'sdc', '4096\n'],
      ['2:0:0:2', 'sdb', '4096\n'],
      ['3:0:0:0', 'sdd', '4096\n'],
    ] as const) {
      file(`bus/scsi/devices/${unit}/block/${disk}/dev`, '')
      file(`class/block/${disk}/size`, sectors)
    }
    file('bus/scsi/devices/2:0:1:0/type', '13\n')
    file('bus/scsi/devices/3:0:0:0/type', '0\n')
    file('bus/scsi/devices/3:0:0:1/type', '0\n')
    expect(await hasAllDisks(3, sys())).toBe(false)
    file('bus/scsi/devices/3:0:0:1/block/sde/dev', '')
    file('class/block/sde/size', '0\n')
    expect(await hasAllDisks(3, sys())).toBe(false)
    file('class/block/sde/size', '8\n')
    expect(await hasAllDisks(3, sys())).toBe(true)
    const xml = (id: number): string => `<pool type='scsi'><name>p</name><source><adapter type='scsi_host'>
      <parentaddr unique_id='${id}'><address domain='0x0000' bus='0x00' slot='0x1f' function='0x2'/></parentaddr>
      </adapter></source><target><path>/dev</path></target></pool>`
    const { volumes, capacityBytes } = await new ScsiPool(parsePool(xml(1)), sys()).refresh()
    expect(volumes.map(({ name, path: device }) => [name, device])).toEqual([
      ['unit:0:0:0', '/dev/sda'],
      ['unit:0:0:2', '/dev/sdb'],
      ['unit:0:0:10', '/dev/sdc'],
    ])
    expect(capacityBytes).toBe(10240 * 512)
    await expect(new ScsiPool(parsePool(xml(7)), sys()).start()).rejects.toThrow(
      'no adapter at 0000:00:1f.2 with the unique_id 7: there are host2',
    )
  })

  it('has the disks of a port of a Fibre Channel fabric, by its names, and says how one is made', async () => {
    for (const host of ['host4', 'host5']) file(`class/scsi_host/${host}/state`, 'running\n')
    // The kernel writes them with 0x, libvirt's documents have them without.
    file('class/fc_host/host5/node_name', '0x20000000c9831b4b\n')
    file('class/fc_host/host5/port_name', '0x10000000c9831b4b\n')
    file('bus/scsi/devices/5:0:0:0/block/sdf/dev', '')
    file('class/block/sdf/size', '2048\n')
    const xml = (wwpn: string): string => `<pool type='scsi'><name>p</name><source>
      <adapter type='fc_host' parent='scsi_host3' managed='yes' wwnn='20000000C9831B4B' wwpn='${wwpn}'/>
      </source><target><path>/dev</path></target></pool>`
    const { volumes } = await new ScsiPool(parsePool(xml('10000000c9831b4b')), sys()).refresh()
    expect(volumes).toMatchObject([{ name: 'unit:0:0:0', path: '/dev/sdf', capacityBytes: 2 ** 20 }])
    await expect(new ScsiPool(parsePool(xml('10000000c9831b4c')), sys()).start()).rejects.toThrow(
      'no adapter with the ports 20000000C9831B4B and 10000000c9831b4c: there are host4, host5. A port of its own is made by',
    )
  })

  it('has multipath devices, and no others of the device mapper', async () => {
    for (const [device, name, uuid] of [
      ['dm-0', 'vg-root', 'LVM-abc'],
      ['dm-3', 'mpatha', 'mpath-3600a0b80000'],
      ['dm-4', 'mpatha-part1', 'part1-mpath-3600a0b80000'],
    ] as const) {
      file(`class/block/${device}/dm/name`, `${name}\n`)
      file(`class/block/${device}/dm/uuid`, `${uuid}\n`)
      file(`class/block/${device}/size`, '8\n')
    }
    expect((await new MultipathPool(sys()).refresh()).volumes).toMatchObject([
      { name: 'dm-3', path: '/dev/mapper/mpatha', key: '3600a0b80000', capacityBytes: 4096 },
    ])
  })
})
