import { describe, expect, it } from 'vitest'
import { Prng } from '../../src/core/prng.ts'
import { parseRbdName, type RbdName } from '../../src/rbd/rbd-name.ts'

const PLAIN: RbdName = {
  pool: 'volumes',
  namespace: '',
  image: 'disk',
  snapshot: undefined,
  user: undefined,
  file: undefined,
  options: {},
}

describe('a name with colons', () => {
  it.each<[string, Partial<RbdName>]>([
    ['rbd:volumes/disk', {}],
    ['rbd:volumes/disk@then', { snapshot: 'then' }],
    ['rbd:volumes/tenant/disk', { namespace: 'tenant' }],
    ['rbd:volumes/tenant/disk@then:id=me', { namespace: 'tenant', snapshot: 'then', user: 'me' }],
    ['rbd:volumes/disk:conf=/etc/c.conf', { file: '/etc/c.conf' }],
    [
      'rbd:volumes/disk:rbd cache=true:rbd-cache-size=1',
      { options: { rbd_cache: 'true', rbd_cache_size: '1' } },
    ],
    ['rbd:volumes/disk:key=a=b==', { options: { key: 'a=b==' } }],
    ['rbd:volumes/disk:key=', { options: { key: '' } }],
    // The one that OpenStack writes.
    [
      'rbd:volumes/volume-512c91d8:id=cinder:key=AQ==:auth_supported=cephx\\;none:' +
        'mon_host=9.115.251.194\\:6789\\;9.115.251.195\\:6789',
      {
        image: 'volume-512c91d8',
        user: 'cinder',
        options: {
          key: 'AQ==',
          auth_supported: 'cephx;none',
          mon_host: '9.115.251.194:6789;9.115.251.195:6789',
        },
      },
    ],
    ['rbd:volumes/a\\:b\\@c\\/d\\\\e', { image: 'a:b@c/d\\e' }],
    ['rbd:volumes/disk@a\\:b', { snapshot: 'a:b' }],
    ['rbd:a\\/b/disk', { pool: 'a/b' }],
    // As QEMU, which looks for the first "@" before it looks for options.
    ['rbd:volumes/disk:key=a@b', { image: 'disk:key=a', snapshot: 'b' }],
    ['rbd:volumes/disk:key=a\\@b', { options: { key: 'a@b' } }],
    ['rbd:volumes/disk\\', { image: 'disk\\' }],
  ])('%s', (name, parts) => {
    expect(parseRbdName(name)).toEqual({ ...PLAIN, ...parts })
  })

  it.each([
    ['volumes/disk', 'begins neither with "rbd:" nor with "json:"'],
    ['rbd:disk', 'has no "/" between pool and image'],
    ['rbd:volumes\\/disk', 'has no "/" between pool and image'],
    ['rbd:volumes:id=me:conf=/etc/ceph/ceph.conf', 'has no "/" between pool and image'],
    ['rbd:/disk', 'has no pool'],
    ['rbd:volumes/', 'has no image behind the pool volumes'],
    ['rbd:volumes/@then', 'has no image behind the pool volumes'],
    ['rbd:volumes/disk@', 'has no snapshot behind the "@" of volumes/disk'],
    ['rbd:volumes/disk:conf', 'has the option conf without "=" and a value'],
    ['rbd:volumes/disk:', 'has the option  without "=" and a value'],
  ])('%s is refused', (name, message) => {
    expect(() => parseRbdName(name)).toThrow(message)
  })

  it('gives back whatever was escaped', () => {
    const prng = new Prng(7)
    const characters = 'ab/@:=\\ ;é'
    const word = (): string =>
      Array.from({ length: prng.between(1, 8) }, () => characters[prng.below(characters.length)]!).join('')
    const escaped = (text: string): string => text.replaceAll(/[\\/@:=;]/g, '\\$&')
    for (let round = 0; round < 1000; round++) {
      const [pool, namespace, image, snapshot, key] = [word(), word(), word(), word(), word()] as const
      const name = `rbd:${[pool, namespace, image].map(escaped).join('/')}@${escaped(snapshot)}:key=${escaped(key)}`
      expect(parseRbdName(name)).toEqual({ ...PLAIN, pool, namespace, image, snapshot, options: { key } })
    }
  })
})

describe('a name in JSON', () => {
  const json = (node: object): RbdName => parseRbdName(`json:${JSON.stringify(node)}`)

  it.each<[string, object, Partial<RbdName>]>([
    ['the least', { driver: 'rbd', pool: 'volumes', image: 'disk' }, {}],
    [
      'everything',
      {
        driver: 'rbd',
        pool: 'volumes',
        namespace: 'tenant',
        image: 'disk',
        snapshot: 'then',
        user: 'cinder',
        conf: '/etc/c.conf',
        server: [
          { host: '9.115.251.194', port: '6789' },
          { host: 'fd00::1', port: 6789 },
        ],
        'auth-client-required': ['cephx', 'none'],
        'node-name': 'n0',
        cache: { direct: true },
      },
      {
        namespace: 'tenant',
        snapshot: 'then',
        user: 'cinder',
        file: '/etc/c.conf',
        options: { mon_host: '9.115.251.194:6789;[fd00::1]:6789', auth_client_required: 'cephx;none' },
      },
    ],
    [
      'with dots',
      {
        driver: 'rbd',
        pool: 'volumes',
        image: 'disk',
        'server.0.host': 'a',
        'server.0.port': '1',
      },
      { options: { mon_host: 'a:1' } },
    ],
    ['below raw', { driver: 'raw', file: { driver: 'rbd', pool: 'volumes', image: 'disk' } }, {}],
    [
      'below raw, with dots',
      { 'file.driver': 'rbd', 'file.pool': 'volumes', 'file.image': 'disk', 'file.user': 'me' },
      { user: 'me' },
    ],
    ['around a name', { driver: 'raw', file: { filename: 'rbd:volumes/disk:id=me' } }, { user: 'me' }],
  ])('%s', (_what, node, parts) => {
    expect(json(node)).toEqual({ ...PLAIN, ...parts })
  })

  it.each([
    [{ driver: 'nbd' }, 'has the driver nbd, not rbd'],
    [{ driver: 'qcow2', file: { driver: 'rbd' } }, 'has the driver qcow2, not rbd'],
    [{ pool: 'volumes', image: 'disk' }, 'has the driver (none), not rbd'],
    [{ driver: 'rbd', image: 'disk' }, 'has no pool'],
    [{ driver: 'rbd', pool: 'volumes' }, 'has no image behind the pool volumes'],
    [
      { driver: 'rbd', pool: 'p', image: 'i', 'key-secret': 's0' },
      'has a key-secret (s0), which only that QEMU knows',
    ],
    [
      { driver: 'rbd', pool: 'p', image: 'i', encrypt: { format: 'luks' } },
      'has encrypt.format, which is not supported',
    ],
    [{ driver: 'rbd', pool: 'p', image: 'i', server: [{ host: 'a' }] }, 'has the server a without a port'],
    [{ driver: 'rbd', pool: null, image: 'i' }, 'has no pool'],
    [{ driver: 'rbd', filename: 'json:{}' }, 'has a filename that does not begin with "rbd:"'],
  ])('%j is refused', (node, message) => {
    expect(() => json(node)).toThrow(message)
  })

  it.each(['json:', 'json:[]', 'json:{"key":"secret"'])('%s is refused, and not repeated', name => {
    expect(() => parseRbdName(name)).toThrow(/is not JSON|has no object/)
    expect(() => parseRbdName(name)).not.toThrow(/secret/)
  })
})
