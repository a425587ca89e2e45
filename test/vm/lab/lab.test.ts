import { describe, expect, it } from 'vitest'
import { parseRequest } from '../../../src/vm/lab/options.ts'

describe('the command line of the lab', () => {
  it('is one disk, where nothing is said', () => {
    expect(parseRequest([])).toEqual({
      ...{ sizes: [10 * 2 ** 30], isMultipath: false, cpus: 2, memoryBytes: 2 ** 29, accel: 'auto' },
      kernel: undefined,
    })
  })

  it('takes the disks of a guide', () => {
    const request = parseRequest([
      '--nvme',
      '40G',
      '--nvme=50G',
      '--multipath',
      '--accel',
      'tcg',
      '--memory',
      '1G',
    ])
    expect(request).toMatchObject({ sizes: [40 * 2 ** 30, 50 * 2 ** 30], isMultipath: true, accel: 'tcg' })
  })

  it('takes a kernel with its modules', () => {
    expect(parseRequest(['--kernel', '/boot/k', '--modules', '/lib/modules/k'])).toMatchObject({
      kernel: { image: '/boot/k', modules: '/lib/modules/k' },
    })
  })

  it.each([
    [['--nvme', 'much'], '--nvme much is no size'],
    [['--nvme', '1G', '--nvme', '1000'], '--nvme 1000: a disk has 1 MiB at least, in blocks of 512 bytes'],
    [['--nvme', '2000001'], '--nvme 2000001: a disk has'],
    [['--kernel', '/boot/k'], '--kernel PATH and --modules DIR go together'],
    [['--cpus', '0'], '--cpus 0: give a number from 1 to 64'],
    [['--accel', 'fast'], '--accel fast: choose auto, kvm or tcg'],
    [['--disk', '1G'], 'See qpair vm lab --help'],
    [Array.from({ length: 17 }, () => '--nvme=1G'), 'the lab has room for 16 disks'],
  ])('refuses %j', (argv, reason) => {
    expect(() => parseRequest(argv)).toThrow(reason)
  })
})
