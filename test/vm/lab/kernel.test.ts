import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { cpio, directory, file } from '../../../src/vm/lab/cpio.ts'
import { installedKernels, unpackVmlinux } from '../../../src/vm/lab/kernel.ts'
import { ModuleTree } from '../../../src/vm/lab/modules.ts'

let root: string
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'qpair-kernel-'))
})
afterEach(() => rmSync(root, { recursive: true }))

const write = (path: string, content: string | Uint8Array = ''): void => {
  mkdirSync(join(root, path, '..'), { recursive: true })
  writeFileSync(join(root, path), content)
}

/** What modules say of themselves, between zero bytes. */
const info = (...lines: readonly string[]): string => `\x7fELF\0${lines.map(line => `${line}\0`).join('')}`

describe("a machine's kernels", () => {
  it('are those that have modules, the newest first, wherever the image is', () => {
    write('boot/vmlinuz-6.1.0-9')
    write('lib/modules/6.1.0-9/kernel/a.ko')
    write('lib/modules/6.10.0-1/kernel/a.ko')
    write('lib/modules/6.10.0-1/vmlinuz')
    write('boot/vmlinuz-5.0')
    write('lib/modules/4.0/kernel/a.ko')
    expect(installedKernels(root)).toEqual([
      { image: join(root, 'lib/modules/6.10.0-1/vmlinuz'), modules: join(root, 'lib/modules/6.10.0-1') },
      { image: join(root, 'boot/vmlinuz-6.1.0-9'), modules: join(root, 'lib/modules/6.1.0-9') },
    ])
  })

  it('are none on a machine that has no modules', () => {
    expect(installedKernels(root)).toEqual([])
  })

  it('are not taken apart when they are no images of the boot protocol', async () => {
    write('vmlinuz', new Uint8Array(4096))
    expect(await unpackVmlinux(join(root, 'vmlinuz'), join(root, 'vmlinux'))).toBe(false)
  })
})

describe('modules', () => {
  it('come after those that they need, packed or not, under either spelling', () => {
    write('kernel/nvme/nvme-core.ko.gz', gzipSync(info('depends=t10-pi', 'license=GPL')))
    write('kernel/nvme/nvme.ko', info('depends=nvme_core', 'softdep=pre: crc post: late'))
    write('kernel/block/t10-pi.ko', info('depends='))
    write('kernel/late.ko', info('depends='))
    const tree = new ModuleTree(root)
    expect(tree.has('nvme_core')).toBe(true)
    expect(tree.has('built-in')).toBe(false)
    expect(tree.closure(['nvme', 'built-in'])).toEqual([
      'kernel/block/t10-pi.ko',
      'kernel/nvme/nvme-core.ko.gz',
      'kernel/late.ko',
      'kernel/nvme/nvme.ko',
    ])
    expect(tree.read('kernel/nvme/nvme-core.ko.gz').toString('latin1')).toContain('license=GPL')
  })
})

it('writes archives as the kernel documents them: headers and contents on multiples of four', () => {
  const archive = cpio([directory('d'), file('d/f', 'abcde', 0o644)]).toString('latin1')
  const header = (inode: string, mode: string, size: string, nameSize: string): string =>
    `070701${inode}${mode}${'0'.repeat(8)}${'0'.repeat(8)}00000001${'0'.repeat(8)}${size}${'0'.repeat(32)}${nameSize}${'0'.repeat(8)}`
  expect(archive).toBe(
    `${header('00000001', '000041ed', '00000000', '00000002')}d\0` +
      `${header('00000002', '000081a4', '00000005', '00000004')}d/f\0\0\0abcde\0\0\0` +
      `${header('00000000', '00000000', '00000000', '0000000b')}TRAILER!!!\0\0\0\0`,
  )
})
