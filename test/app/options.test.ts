import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { DEFAULT_RPC_SOCKET, parseServeOptions, type ServeOptions } from '../../src/app/options.ts'
import { parseCoreMask } from '../../src/core/core-mask.ts'
import { formatSize } from '../../src/core/format-size.ts'
import { parseMemorySize, parseSize, wholeBlocks } from '../../src/core/parse-size.ts'

const parse = (line: string): ServeOptions => {
  const options = parseServeOptions(line.split(' ').filter(word => word !== ''))
  if (options === 'help') throw new Error('help was asked for')
  return options
}

describe('the command line of serve', () => {
  it('needs nothing', () => {
    expect(parse('')).toMatchObject({ cpus: [-1], waitForRpc: false, plugins: [], disk: undefined })
  })

  it('takes the flags of SPDK applications', () => {
    expect(
      parse('-r /tmp/s -m 0x5 -c f.json -S /v -L nvmf -L nbd --wait-for-rpc -s 512 -u -g --no-huge'),
    ).toEqual(
      expect.objectContaining({
        rpcSocket: '/tmp/s',
        cpus: [0, 2],
        configFile: 'f.json',
        vhost: { directory: '/v', mode: undefined, owner: undefined },
        logFlags: ['nvmf', 'nbd'],
        waitForRpc: true,
      }),
    )
  })

  it('has the sockets of vhost controllers in the current directory, unless it is told where and whose', () => {
    expect(parse('').vhost).toEqual({ directory: undefined, mode: undefined, owner: undefined })
    expect(parse('-S run --vhost-mode 0660 --vhost-owner qemu:kvm').vhost).toEqual({
      directory: join(process.cwd(), 'run'),
      mode: '0660',
      owner: 'qemu:kvm',
    })
  })

  it('has a socket by default, unless the environment names another', () => {
    expect(parse('').rpcSocket).toBe(process.env['QPAIR_SOCKET'] ?? DEFAULT_RPC_SOCKET)
  })

  it('describes a disk, with sizes as people write them', () => {
    expect(parse('--disk /d.img --size 2.5G --listen 127.0.0.1:4420 --listen [::1]:4420').disk).toMatchObject(
      {
        path: '/d.img',
        sizeBytes: 2.5 * 2 ** 30,
        listen: ['127.0.0.1:4420', '[::1]:4420'],
      },
    )
  })

  it.each([
    ['--size 1G', '--size goes with --disk FILE'],
    ['--disk d --size 10X', '--size 10X is no size'],
    ['--reactors 0', '--reactors 0: give a number from 1 to 128'],
    ['-m 0x1 --reactors 2', '-m 0x1 and --reactors 2 both say how many reactors'],
    ['--loglevel LOUD', '--loglevel LOUD: give one of ERROR, WARNING, NOTICE, INFO, DEBUG'],
    ['--nonsense', "Unknown option '--nonsense'"],
    ['extra', "Unexpected argument 'extra'"],
  ])('refuses %s', (line, message) => {
    expect(() => parse(line)).toThrow(message)
  })
})

describe('a core mask', () => {
  it.each([
    ['0x1', [0]],
    ['3', [0, 1]],
    ['0xA', [1, 3]],
    ['[0,2-4]', [0, 2, 3, 4]],
    [`0x1${'0'.repeat(16)}`, [64]],
  ])('%s means processors %j', (mask, cpus) => {
    expect(parseCoreMask(mask, '-m')).toEqual(cpus)
  })

  it.each(['0', '', 'cores', '[]', '[3-1]', '[a]', '0xg'])('refuses %j and says what to give', mask => {
    expect(() => parseCoreMask(mask, '-m')).toThrow(
      /core mask .*: give a hexadecimal mask such as 0x3, or a list/,
    )
  })
})

describe('sizes', () => {
  it.each([
    ['4096', 4096],
    ['1k', 1024],
    ['512M', 512 * 2 ** 20],
    ['10GiB', 10 * 2 ** 30],
    ['10GB', 10 ** 10],
    ['512kB', 512_000],
    ['512B', 512],
    ['1.5T', 1.5 * 2 ** 40],
    ['2P', 2 ** 51],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseSize(text, '--size')).toBe(bytes)
  })

  it.each(['', '0', '-1G', '1.3', 'G', '1e9', '9999999999T'])('%j is none', text => {
    expect(() => parseSize(text, '--size')).toThrow('is no size')
  })

  it('of disks are rounded up to whole blocks', () => {
    expect([1, 512, 100_000_000].map(wholeBlocks)).toEqual([512, 512, 100_000_256])
  })

  it('of memory are MiB where nothing is said', () => {
    expect(['4096', '4096M', '4G'].map(text => parseMemorySize(text, '--memory'))).toEqual(
      Array(3).fill(2 ** 32),
    )
  })

  it('are printed for people', () => {
    expect([4096, 10 * 2 ** 30, 1.5 * 2 ** 20, 100].map(formatSize)).toEqual([
      '4 KiB',
      '10 GiB',
      '1.5 MiB',
      '100 bytes',
    ])
  })
})
