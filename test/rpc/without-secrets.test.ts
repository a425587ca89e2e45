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
