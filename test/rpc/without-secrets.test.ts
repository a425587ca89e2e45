import { describe, expect, it } from 'vitest'
import { withoutSecrets } from '../../src/rpc/without-secrets.ts'

describe('withoutSecrets', () => {
  it('hides secrets by their names, at every depth, and nothing else', () => {
    expect(
      withoutSecrets({
        name: 'c',
        key_file: '/k',
        psk: 'a',
        config_param: { key: 'b', keyring: '/r' },
        n: [1],
      }),
    ).toEqual({
      name: 'c',
      key_file: '/k',
      psk: '(hidden)',
      config_param: { key: '(hidden)', keyring: '/r' },
      n: [1],
    })
  })

  it.each([
    ['iscsi://u%s@h/iqn.t/1', 'iscsi://u%(hidden)@h/iqn.t/1'],
    ['iscsi://u:s@t@h:1/iqn.t/1', 'iscsi://u:(hidden)@h:1/iqn.t/1'],
    ['https://u:s@h/x?a=1', 'https://u:(hidden)@h/x?a=1'],
    [
      'iscsi://h/iqn.t/1?target_user=t&target_password=s&header_digest=none',
      'iscsi://h/iqn.t/1?target_user=t&target_password=(hidden)&header_digest=none',
    ],
    ['iscsi://u@h/iqn.t/1', 'iscsi://u@h/iqn.t/1'],
    ['iscsi://h:3260/iqn.2026-01.test:one/1', 'iscsi://h:3260/iqn.2026-01.test:one/1'],
  ])('hides passwords in URLs: %s', (url, shown) => {
    expect(withoutSecrets({ url })).toEqual({ url: shown })
  })

  it.each([
    ['rbd:p/i:key=AQ==:id=u', 'rbd:p/i:key=(hidden):id=u'],
    ['rbd:p/i:id=u:key=AQ==', 'rbd:p/i:id=u:key=(hidden)'],
    [
      'json:{"driver":"rbd","filename":"rbd:p/i:key=AQ=="}',
      'json:{"driver":"rbd","filename":"rbd:p/i:key=(hidden)"}',
    ],
    ['rbd:p/i:keyring=/k', 'rbd:p/i:keyring=/k'],
    ['/images/a:key=b', '/images/a:key=b'],
  ])("hides the key in QEMU's names of images: %s", (filename, shown) => {
    expect(withoutSecrets({ filename })).toEqual({ filename: shown })
  })
})
