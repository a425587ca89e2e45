import { describe, expect, it } from 'vitest'
import { checkIscsiName, parseAddress } from '../../../../src/bdev/drivers/iscsi/address.ts'
import { HeaderDigest } from '../../../../src/sys/libiscsi.ts'

const TARGET = 'iqn.2026-01.com.example:storage.disk1'

describe('URLs of iSCSI disks', () => {
  it('has the default port, and lets the target choose the digest', () => {
    expect(parseAddress(`iscsi://box/${TARGET}/0`)).toEqual({
      host: 'box',
      port: 3260,
      target: TARGET,
      lun: 0,
      headerDigest: HeaderDigest.NONE_OR_CRC32C,
    })
  })

  it.each([
    [`iscsi://[fe80::1]:1234/${TARGET}/7`, { host: 'fe80::1', port: 1234, lun: 7 }],
    [`iscsi://u%p@box/${TARGET}/1`, { credentials: { user: 'u', password: 'p' } }],
    [`iscsi://u:p%q@box/${TARGET}/1`, { credentials: { user: 'u', password: 'p%q' } }],
    [
      `iscsi://u%p@box/${TARGET}/1?target_user=t&target_password=s=s`,
      { targetCredentials: { user: 't', password: 's=s' } },
    ],
    [`iscsi://box/${TARGET}/1?header_digest=crc32c`, { headerDigest: HeaderDigest.CRC32C }],
    [`iscsi://box/${TARGET}/1?header_digest=none`, { headerDigest: HeaderDigest.NONE }],
  ])('reads %s', (url, parts) => {
    expect(parseAddress(url)).toMatchObject(parts)
  })

  it.each([
    [`http://box/${TARGET}/1`, 'no URL of an iSCSI disk'],
    [`iscsi://box/${TARGET}`, 'no URL of an iSCSI disk'],
    [`iscsi://box/${TARGET}/one`, 'no URL of an iSCSI disk'],
    [`iscsi:///${TARGET}/1`, 'no URL of an iSCSI disk'],
    [`iscsi://box:0/${TARGET}/1`, 'the port 0 is not one of 1 to 65535'],
    [`iscsi://box:65536/${TARGET}/1`, 'the port 65536 is not one of 1 to 65535'],
    [`iscsi://box/${TARGET}/16384`, 'the LUN 16384 is more than 16383'],
    ['iscsi://box/disk/1', 'the target of the URL, disk, is no iSCSI name'],
    [`iscsi://u@box/${TARGET}/1`, 'a user has a name and a password'],
    [`iscsi://%p@box/${TARGET}/1`, 'a user has a name and a password'],
    [`iscsi://box/${TARGET}/1?iser`, 'the option iser is not known'],
    [`iscsi://box/${TARGET}/1?header_digest=md5`, 'header_digest=md5 is neither crc32c nor none'],
    [`iscsi://u%p@box/${TARGET}/1?target_user=t`, 'target_user and target_password come together'],
    [`iscsi://box/${TARGET}/1?target_user=t&target_password=s`, 'a target proves who it is only to a user'],
    [`iscsi://u%${'p'.repeat(256)}@box/${TARGET}/1`, 'names and passwords have at most 255 bytes'],
  ])('refuses %s', (url, why) => {
    expect(() => parseAddress(url)).toThrow(why)
  })

  it('repeats no password when it refuses', () => {
    expect(() => parseAddress(`iscsi://u%hush@box/${TARGET}/x?target_password=hush`)).toThrow(
      expect.not.objectContaining({ message: expect.stringContaining('hush') }),
    )
  })
})

it.each(['iqn', 'iqn.2026-01.com.example:a b', `iqn.${'x'.repeat(220)}`, ''])(
  'takes %j for no iSCSI name',
  name => {
    expect(() => checkIscsiName('initiator_iqn', name)).toThrow('is no iSCSI name')
  },
)
