import { describe, expect, it } from 'vitest'
import { formatPool, parsePool, poolTypes } from '../../src/libvirt/pool-xml.ts'
import { GUIDES, POOLS } from './pool-examples.ts'

const dir = (inner: string, attributes = "type='dir'"): string =>
  `<pool ${attributes}>\n<name>p</name>\n${inner}<target><path>/p</path></target></pool>`

describe("a pool's document", () => {
  it('has an example of every type', () => {
    expect(new Set(Object.values(POOLS).map(xml => parsePool(xml).type))).toEqual(new Set(poolTypes))
  })

  it.each(Object.entries(POOLS))('is read and written back as it was: %s', (_name, xml) => {
    expect(formatPool(parsePool(xml))).toBe(xml)
  })

  it('has what guides say of a network file system', () => {
    expect(parsePool(GUIDES.netfs)).toMatchObject({
      type: 'netfs',
      source: { hosts: [{ name: '192.168.159.144' }], dir: '/mnt/packtStratisXF501', format: 'auto' },
      target: { permissions: { mode: 0o755, owner: 0, group: 0, label: 'system_u:object_r:nfs_t:s0' } },
    })
  })

  it('has what guides say of a directory on Gluster', () => {
    expect(parsePool(GUIDES.gluster)).toMatchObject({
      type: 'dir',
      source: {},
      target: {
        path: '/var/lib/libvirt/images/GlusterFS',
        permissions: { mode: 0o755, owner: 107, group: 107 },
      },
    })
  })

  it('has what guides say of Ceph, with the name of the source where it has none of its own', () => {
    expect(parsePool(GUIDES.rbd)).toMatchObject({
      type: 'rbd',
      name: 'KVMpool',
      source: {
        name: 'KVMpool',
        hosts: [{ name: '192.168.159.151', port: 6789 }],
        auth: { type: 'ceph', username: 'KVMpool', secret: { uuid: '095b7aa1-5f2c-4b2a-9b8a-7ad2a2e2a5f6' } },
      },
      target: undefined,
    })
  })

  it('keeps what it does not know where it was', () => {
    const xml = `<pool type='netfs' state='new'>
  <name>p</name>
  <source>
    <host name='a'/>
    <host name='b' weight='2'/>
    <dir path='/d'/>
    <format type='auto'/>
    <shine xmlns:s="urn:s" s:on="yes"><deep>&lt;</deep></shine>
  </source>
  <target>
    <path>/p</path>
  </target>
  <later/>
</pool>
`
    const pool = parsePool(xml)
    expect(pool.foreign).toHaveLength(4)
    const again = formatPool(pool)
    expect(again).toContain(`<host name='b' weight='2'/>`)
    expect(again).toContain(`<shine xmlns:s="urn:s" s:on="yes"><deep>&lt;</deep></shine>\n  </source>`)
    expect(again).toMatch(/<later\/>\n<\/pool>\n$/)
    expect(again).toContain(`<pool type='netfs' state='new'>`)
    expect(parsePool(again)).toEqual(pool)
  })

  it('drops what was kept together with its place', () => {
    const pool =
      parsePool(`<pool type='netfs'><name>p</name><source><host name='a'/><host name='b' weight='2'/>
      <dir path='/d'/></source><target><path>/p</path></target></pool>`)
    const one = formatPool({ ...pool, source: { ...pool.source, hosts: [{ name: 'a' }] } })
    expect(one).not.toContain('weight')
  })

  it('has a usage only when all of it is said', () => {
    const usage = "<capacity unit='KiB'>2</capacity><allocation>1000</allocation><available>1048</available>"
    expect(parsePool(dir(usage)).usage).toEqual({
      capacityBytes: 2048,
      allocationBytes: 1000,
      availableBytes: 1048,
    })
    expect(parsePool(dir('<capacity>1</capacity>')).usage).toBeUndefined()
  })

  it.each([
    ['//srv//a///b/', '//srv/a/b'],
    ['///srv/', '/srv'],
    ['/', '/'],
  ])('has the path %s as %s, as libvirt does', (given, kept) => {
    const xml = `<pool type='dir'><name>p</name><target><path>${given}</path></target></pool>`
    expect(parsePool(xml).target?.path).toBe(kept)
  })

  it('takes a UUID with its hyphens anywhere', () => {
    expect(parsePool(dir('<uuid>70A7EB156c34-ee9cbf5769e8e5ff3fb2</uuid>')).uuid).toBe(
      '70a7eb15-6c34-ee9c-bf57-69e8e5ff3fb2',
    )
  })

  const source = (type: string, inner: string): string =>
    `<pool type='${type}'>\n<name>p</name><source>${inner}</source><target><path>/p</path></target></pool>`
  const host = "<host name='h'/>"

  it.each([
    ['<pool><name>p</name></pool>', "line 1: <pool> has no attribute 'type'"],
    [
      dir('', "type='tape'"),
      "<pool type='tape'>: it is one of dir, fs, netfs, logical, disk, iscsi, iscsi-direct",
    ],
    ["<pool type='dir'><target><path>/p</path></target></pool>", 'the pool has no <name>'],
    ["<pool type='dir'><name>a/b</name><target><path>/p</path></target></pool>", '"a/b" has a slash'],
    ["<pool type='dir'><name>p</name></pool>", 'a pool of type dir has a <path> in its <target>'],
    [
      "<pool type='dir'><name>p</name><target><path>p</path></target></pool>",
      'the target path p is not absolute',
    ],
    [dir('<uuid>12</uuid>'), '<uuid>12: it is 32 hexadecimal digits'],
    [source('fs', ''), "a pool of type fs has a <device path='…'/> in its <source>"],
    [source('fs', "<device path='/d'/><format type='zfs'/>"), "<format type='zfs'>: it is one of auto, ext2"],
    [source('fs', '<device/>'), "<device> has no attribute 'path'"],
    [source('netfs', host), 'a pool of type netfs has a <dir'],
    [source('netfs', "<dir path='/d'/>"), 'a pool of type netfs has a <host'],
    [source('netfs', `${host}<dir path='/d'/><format type='cifs'/><protocol ver='4'/>`), 'not for cifs'],
    [source('iscsi', "<device path='iqn'/>"), 'a pool of type iscsi has a <host'],
    [source('iscsi-direct', host), 'a pool of type iscsi-direct has an <initiator>'],
    [source('scsi', ''), 'a pool of type scsi has an <adapter>'],
    [source('scsi', '<adapter/>'), "has the attribute 'name' or the element <parentaddr>"],
    [
      source('scsi', "<adapter name='a'><parentaddr unique_id='1'><address/></parentaddr></adapter>"),
      'not by both',
    ],
    [source('scsi', "<adapter type='fc_host'/>"), 'an fc_host adapter has a wwnn'],
    [
      source('scsi', "<adapter type='fc_host' wwnn='12' wwpn='12'/>"),
      "wwnn='12': it is sixteen hexadecimal digits",
    ],
    [source('rbd', host), "a pool of type rbd has the Ceph pool's <name>"],
    [
      source('rbd', "<name>r</name><host name='h' port='70000'/>"),
      "<host port='70000'>: it is a whole number from 0 to 65535",
    ],
    [source('rbd', `<name>r</name>${host}<auth type='ceph' username='u'/>`), '<auth> has no <secret>'],
    [
      source('rbd', `<name>r</name>${host}<auth type='ceph' username='u'><secret/></auth>`),
      "by its 'uuid' or by its 'usage'",
    ],
    [
      source('rbd', `<name>r</name>${host}<auth username='u'><secret usage='s'/></auth>`),
      '<auth> has no type',
    ],
    [source('sheepdog', ''), 'a pool of type sheepdog has a <host'],
    [dir("<features><cow state='yes'/></features>", "type='mpath'"), 'not for mpath'],
    [dir("<features><cow state='maybe'/></features>"), "<cow state='maybe'>: it is one of yes, no"],
    [
      dir("<a:mount_opts xmlns:a='http://libvirt.org/schemas/storagepool/fs/1.0'/>"),
      'line 3: mount options are for',
    ],
    [
      dir("<fs:mount_opts xmlns:fs='http://example.org'/>"),
      "not in 'http://example.org': declare it on <pool>",
    ],
    [dir('<mount_opts/>'), "counts only in the namespace 'http://libvirt.org/schemas/storagepool/fs/1.0'"],
    [dir("<rbd:config_opts xmlns:rbd='x'/>"), 'counts only in the namespace'],
  ])('is refused with line and reason: %s', (xml, reason) => {
    expect(() => parsePool(xml)).toThrow(reason)
  })

  it.each([
    ['<mode>0789</mode>', '<mode>0789: it is an octal number'],
    ['<mode>01755</mode>', '<mode>01755: it is at most 0777'],
    ['<owner>root</owner>', 'it is a whole number from -1 to 4294967294'],
  ])('is refused with permissions such as %s', (inner, reason) => {
    const xml = `<pool type='dir'><name>p</name><target><path>/p</path><permissions>${inner}</permissions></target></pool>`
    expect(() => parsePool(xml)).toThrow(reason)
  })

  it('takes -1 for an owner that is not said, as old versions wrote it', () => {
    const xml = `<pool type='dir'><name>p</name><target><path>/p</path><permissions><owner>-1</owner></permissions></target></pool>`
    expect(formatPool(parsePool(xml))).not.toContain('permissions')
  })

  it('cannot be written with characters that XML has not', () => {
    const pool = parsePool(dir(''))
    expect(() => formatPool({ ...pool, name: 'a\u0000b' })).toThrow(
      'has a character that an XML document cannot hold',
    )
  })
})
