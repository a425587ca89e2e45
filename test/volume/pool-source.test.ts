import { describe, expect, it } from 'vitest'
import { parsePool } from '../../src/libvirt/pool-xml.ts'
import { holdingsOf } from '../../src/volume/pool-source.ts'

const holdings = (type: string, source: string, target = '/dev'): Promise<readonly string[]> =>
  holdingsOf(
    parsePool(
      `<pool type='${type}'><name>p</name><source>${source}</source><target><path>${target}</path></target></pool>`,
    ),
  )

/** Whether two documents are of one storage. */
async function isShared(one: readonly string[], other: readonly string[]): Promise<boolean> {
  return one.some(each => other.includes(each))
}

const HOST = "<host name='192.0.2.1'/>"
const iqn = (name: string): string => `<initiator><iqn name='iqn.2026-01.org.example:${name}'/></initiator>`
const ADAPTER = "<adapter type='scsi_host' name='host2'/>"
const TARGET = "<device path='iqn.2026-01.org.example:t'/>"

describe('two pools are of one storage', () => {
  it.each([
    ['fs', "<device path='/dev/vdx'/>", 'disk', "<device path='/dev/vdx'/>"],
    ['logical', '<name>vg</name>', 'logical', "<device path='/dev/vdx'/><name>vg</name>"],
    ['logical', "<device path='/dev/vdx'/><name>vg</name>", 'disk', "<device path='/dev/vdx'/>"],
    ['rbd', `${HOST}<name>vms</name>`, 'rbd', `<host name='192.0.2.9'/>${HOST}<name>vms</name>`],
    ['netfs', `${HOST}<dir path='/x'/>`, 'netfs', `${HOST}<dir path='/x'/>`],
    ['gluster', `${HOST}<name>v</name>`, 'gluster', `${HOST}<name>v</name><dir path='/'/>`],
    ['scsi', ADAPTER, 'scsi', ADAPTER],
    ['zfs', '<name>tank/vms</name>', 'zfs', '<name>tank/vms</name>'],
    ['iscsi', `${HOST}${TARGET}`, 'iscsi', `<host name='192.0.2.1' port='3260'/>${TARGET}`],
    ['iscsi-direct', `${HOST}${TARGET}${iqn('a')}`, 'iscsi-direct', `${HOST}${TARGET}${iqn('a')}`],
  ])('%s of %s and %s of %s', async (type, source, otherType, otherSource) => {
    const one = await holdings(type, source, `/nowhere/${type}`)
    expect(await isShared(one, await holdings(otherType, otherSource, '/nowhere/other'))).toBe(true)
  })
})

describe('two pools are of different storage', () => {
  it.each([
    ['disk', "<device path='/dev/vdx'/>", "<device path='/dev/vdy'/>"],
    ['rbd', `${HOST}<name>vms</name>`, `${HOST}<name>isos</name>`],
    ['rbd', `${HOST}<name>vms</name>`, '<host name="192.0.2.2"/><name>vms</name>'],
    ['netfs', `${HOST}<dir path='/x'/>`, `${HOST}<dir path='/y'/>`],
    ['iscsi', `${HOST}${TARGET}${iqn('a')}`, `${HOST}${TARGET}${iqn('b')}`],
    ['mpath', '', ''],
  ])('%s of %s and of %s', async (type, source, other) => {
    const one = await holdings(type, source, '/nowhere/one')
    expect(await isShared(one, await holdings(type, other, '/nowhere/other'))).toBe(false)
  })
})
