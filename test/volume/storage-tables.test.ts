/** What the tools under pools print, and what is read of it. */
import { describe, expect, it } from 'vitest'
import { parseSnapshots, parseVolumes } from '../../src/volume/backends/zfs.ts'
import {
  parseExports,
  parseGlusterVolumes,
  parseGroups,
  parseTargets,
} from '../../src/volume/find-sources.ts'
import { parseGroup, parseLogicalVolumes } from '../../src/volume/lvm.ts'
import { fittingGap, gapsOf, parseTable } from '../../src/volume/partition-table.ts'

const MIB = 2 ** 20
const GIB = 2 ** 30

/** As `lvs --reportformat json --units b --nosuffix` of LVM 2.03.16 prints it. */
const LVS = JSON.stringify({
  report: [
    {
      lv: [
        {
          ...{
            lv_name: 'thin',
            lv_path: '',
            lv_uuid: 'tp',
            lv_size: '134217728',
            origin: '',
            origin_size: '',
          },
          ...{ segtype: 'thin-pool', data_percent: '25.00', pool_lv: '', lv_active: 'active', lv_tags: '' },
          ...{ metadata_percent: '10.94', lv_time: '2026-11-21 12:47:00 +0000', lv_attr: 'twi-aotz--' },
        },
        {
          ...{ lv_name: 'vm', lv_path: '/dev/vg/vm', lv_uuid: 'v1', lv_size: '1073741824', origin: '' },
          ...{ origin_size: '', segtype: 'thin', data_percent: '3.12', pool_lv: 'thin', lv_active: 'active' },
          ...{ lv_tags: '', lv_time: '2026-11-21 12:47:00 +0000', lv_attr: 'Vwi-a-tz--' },
        },
        {
          ...{ lv_name: 'web.one', lv_path: '/dev/vg/web.one', lv_uuid: 's1', lv_size: '71303168' },
          ...{
            origin: 'web',
            origin_size: '67108864',
            segtype: 'linear',
            data_percent: '50.00',
            pool_lv: '',
          },
          ...{ lv_active: 'active', lv_tags: 'other,qpair_snapshot', lv_time: '2026-11-21 12:47:02 +0000' },
          ...{ lv_attr: 'swi-a-s---' },
        },
      ],
    },
  ],
  log: [],
})

describe('the report of lvs', () => {
  it('has sizes, what is used, and what belongs to what', () => {
    const [pool, thin, snapshot] = parseLogicalVolumes(LVS)
    expect(pool).toMatchObject({ kind: 'thin-pool', sizeBytes: 128 * MIB, usedBytes: 32 * MIB })
    expect(pool!.metadataPercent).toBe(10.94)
    expect(thin).toMatchObject({ kind: 'thin', pool: 'thin', sizeBytes: GIB, isSnapshot: false })
    expect(thin!.usedBytes).toBe(Math.round(GIB * 0.0312))
    expect(snapshot).toMatchObject({
      ...{ kind: 'linear', origin: 'web', sizeBytes: 64 * MIB, usedBytes: 34 * MIB, isSnapshot: true },
      created: new Date('2026-11-21T12:47:02Z'),
    })
  })

  it('says of a cached volume how full the cache is, not the volume', () => {
    const row = { lv_name: 'fast', lv_size: '67108864', segtype: 'cache', data_percent: '3.00' }
    const [volume] = parseLogicalVolumes(JSON.stringify({ report: [{ lv: [row] }] }))
    expect(volume).toMatchObject({ kind: 'linear', usedBytes: 64 * MIB })
  })

  it('may be of a group without volumes, and is JSON', () => {
    expect(parseLogicalVolumes('{"report":[{"lv":[]}]}')).toEqual([])
    expect(() => parseLogicalVolumes('  LV VG Attr')).toThrow('it has to be 2.02.158 or newer')
  })

  it('of vgs has sizes', () => {
    const text = '{"report":[{"vg":[{"vg_size":"532676608","vg_free":"465567744"}]}]}'
    expect(parseGroup(text)).toEqual({ sizeBytes: 532676608, freeBytes: 465567744 })
  })
})

/** As `sfdisk --json` of util-linux 2.38 prints it. */
const sfdisk = (partitions: readonly object[], more: object = {}): string =>
  JSON.stringify({
    partitiontable: {
      ...{ label: 'gpt', id: '79E7', device: '/dev/sdb', unit: 'sectors', firstlba: 2048, lastlba: 131038 },
      ...{ sectorsize: 512, partitions, ...more },
    },
  })
const part = (number: number, start: number, size: number, name = ''): object => ({
  ...{
    node: `/dev/sdb${number}`,
    start,
    size,
    type: '0FC63DAF-8483-4772-8E79-3D69D8477DE4',
    uuid: `u${number}`,
  },
  ...(name === '' ? {} : { name }),
})

describe('a partition table', () => {
  it('names volumes by labels, and by the kernel where those say nothing, or too much', () => {
    const text = sfdisk([
      part(1, 2048, 20480, 'root'),
      part(2, 22528, 2048),
      part(3, 24576, 2048, 'x'),
      part(4, 26624, 2048, 'x'),
      part(5, 28672, 2048, '../etc'),
    ])
    expect(parseTable(text, 64 * MIB).partitions.map(({ volume }) => volume)).toEqual([
      ...['root', 'sdb2', 'sdb3', 'sdb4', 'sdb5'],
    ])
  })

  it('has gaps that begin at a MiB, before, between and behind', () => {
    const table = parseTable(sfdisk([part(2, 22528, 2049), part(1, 4096, 8192)]), 64 * MIB)
    expect(gapsOf(table)).toEqual([
      { start: 2048, sectors: 2048 },
      { start: 12288, sectors: 10240 },
      { start: 26624, sectors: 104415 },
    ])
    expect(fittingGap(table, 4096)).toEqual({ start: 12288, sectors: 10240 })
    expect(fittingGap(table, 200_000)).toBeUndefined()
  })

  it('of dos ends with the disk, and has no volume for what holds others', () => {
    const partitions = [
      { node: '/dev/sdb1', start: 2048, size: 2048, type: '83' },
      { node: '/dev/sdb2', start: 4096, size: 8192, type: 'f' },
      { node: '/dev/sdb5', start: 6144, size: 2048, type: '83' },
    ]
    const table = parseTable(
      sfdisk(partitions, { label: 'dos', firstlba: undefined, lastlba: undefined }),
      8 * MIB,
    )
    expect(table.partitions.map(({ path }) => path)).toEqual(['/dev/sdb1', '/dev/sdb5'])
    expect(gapsOf(table).at(-1)).toEqual({ start: 8192, sectors: 8192 })
  })

  it('that is none is refused', () => {
    expect(() => parseTable('sfdisk: cannot open', 0)).toThrow('what is not JSON')
  })
})

describe('lists of zfs', () => {
  it('have volumes, and clones with what they stand on', () => {
    const text = 'tank/vms/a\t10737418240\t57344\t-\ntank/vms/b\t1073741824\t8192\ttank/vms/a@clone-b\n'
    expect(parseVolumes(text, 'tank/vms', '/dev/zvol/tank/vms')).toEqual([
      {
        ...{ name: 'a', key: 'tank/vms/a', path: '/dev/zvol/tank/vms/a', type: 'block', format: 'raw' },
        ...{ capacityBytes: 10 * GIB, allocationBytes: 57344 },
      },
      {
        ...{ name: 'b', key: 'tank/vms/b', path: '/dev/zvol/tank/vms/b', type: 'block', format: 'raw' },
        ...{ capacityBytes: GIB, allocationBytes: 8192 },
        backing: { path: '/dev/zvol/tank/vms/a', format: 'raw' },
      },
    ])
  })

  it('have snapshots', () => {
    expect(
      parseSnapshots('tank/a@one\t1795262820\t1073741824\toff\ntank/a@clone-b\t1795262821\t1073741824\ton\n'),
    ).toEqual([{ name: 'one', created: new Date(1795262820_000), sizeBytes: GIB }])
  })
})

/** As `gluster --xml volume info all` of Gluster 10.3 prints it, shortened. */
const glusterAnswer = (result: string, volumes: string): string =>
  `<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<cliOutput>
  ${result}
  <volInfo>
    <volumes>${volumes}</volumes>
  </volInfo>
</cliOutput>`

describe('sources of pools', () => {
  it('are Gluster volumes by their names, not by those of their bricks', () => {
    const brick = '<bricks><brick uuid="87f0">192.0.2.10:/b<name>192.0.2.10:/b</name></brick></bricks>'
    const volumes = ['isos', 'vms'].map(name => `<volume><name>${name}</name>${brick}</volume>`).join('')
    const ok = '<opRet>0</opRet><opErrno>0</opErrno><opErrstr/>'
    expect(parseGlusterVolumes(glusterAnswer(ok, `${volumes}<count>2</count>`), 'h')).toEqual(['isos', 'vms'])
    expect(parseGlusterVolumes(glusterAnswer(ok, '<count>0</count>'), 'h')).toEqual([])
    const bad = '<opRet>-1</opRet><opErrno>30806</opErrno><opErrstr>Volume does not exist</opErrstr>'
    expect(() => parseGlusterVolumes(glusterAnswer(bad, '<count>0</count>'), 'h')).toThrow(
      'the Gluster volumes of h cannot be listed: Volume does not exist',
    )
  })

  it('are groups with their devices, without disks that have none', () => {
    const pv = [
      { pv_name: '/dev/sda', vg_name: 'vg' },
      { pv_name: '/dev/sdb', vg_name: 'vg' },
      { pv_name: '/dev/sdc', vg_name: '' },
    ]
    expect(parseGroups(JSON.stringify({ report: [{ pv }] }))).toEqual([
      { name: 'vg', devices: [{ path: '/dev/sda' }, { path: '/dev/sdb' }], format: 'lvm2' },
    ])
  })

  it('are exported directories', () => {
    expect(parseExports('/mnt/a   192.0.2.0/24\n/mnt/b   (everyone)\n', 'nas')).toEqual([
      { hosts: [{ name: 'nas' }], dir: '/mnt/a', format: 'nfs' },
      { hosts: [{ name: 'nas' }], dir: '/mnt/b', format: 'nfs' },
    ])
  })

  it('are targets, once each whatever their portals', () => {
    const text =
      '192.0.2.7:3260,1 iqn.2026-01.org.example:a\n[2001:db8::7]:3260,1 iqn.2026-01.org.example:a\n'
    expect(parseTargets(text, 'nas', undefined)).toEqual([
      { hosts: [{ name: 'nas', port: undefined }], devices: [{ path: 'iqn.2026-01.org.example:a' }] },
    ])
  })
})
