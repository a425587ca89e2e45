import type { NetworkInterfaceInfo } from 'node:os'
import { describe, expect, it } from 'vitest'
import { onlyAddress, onlyCluster } from '../../src/gateway/join-defaults.ts'

describe('the cluster of a gateway that is told none', () => {
  it('is the only one', () => {
    expect(onlyCluster(['ceph'])).toBe('ceph')
  })

  it('is not guessed', () => {
    expect(() => onlyCluster([])).toThrow(/no cluster is registered.*bdev_rbd_register_cluster/)
    expect(() => onlyCluster(['a', 'b'])).toThrow(/there are the clusters a, b: say which one/)
  })
})

describe('the address of a gateway that is told none', () => {
  const interfaces = (...addresses: string[]): NodeJS.Dict<NetworkInterfaceInfo[]> => ({
    lo: [info('127.0.0.1', true), info('::1', true)],
    eth: addresses.map(address => info(address, false)),
  })
  const info = (address: string, internal: boolean): NetworkInterfaceInfo =>
    ({ address, internal }) as NetworkInterfaceInfo

  it.each([
    [['192.0.2.7'], '192.0.2.7:4420'],
    [['192.0.2.7', 'fe80::1', '2001:db8::7', '169.254.3.4'], '192.0.2.7:4420'],
    [['2001:db8::7', 'fe80::1'], '[2001:db8::7]:4420'],
  ])('is the only one of %j', (addresses, address) => {
    expect(onlyAddress(interfaces(...addresses))).toBe(address)
  })

  it('is not guessed', () => {
    expect(() => onlyAddress(interfaces('192.0.2.7', '198.51.100.7'))).toThrow(
      /the addresses 192.0.2.7, 198.51.100.7: say where hosts reach/,
    )
    expect(() => onlyAddress(interfaces('fe80::1'))).toThrow(/has no address that hosts can reach/)
  })
})
