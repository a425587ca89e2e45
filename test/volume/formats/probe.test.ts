import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { probe, probeHead } from '../../../src/volume/formats/probe.ts'

const directory = mkdtempSync(join(tmpdir(), 'qpair-probe-'))
afterAll(() => rmSync(directory, { recursive: true }))

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(/\s/g, ''), 'hex')

/** A file that begins so and has that many bytes. */
function file(parts: readonly (readonly [offset: number, bytes: Buffer])[], sizeBytes: number): string {
  const content = Buffer.alloc(sizeBytes)
  for (const [offset, bytes] of parts) bytes.copy(content, offset)
  const path = join(directory, `${Math.random()}`)
  writeFileSync(path, content)
  return path
}

// By hand from docs/interop/qcow2.txt: magic, version, backing offset and size, cluster bits, size …
const QCOW2 = hex(`
  514649fb 00000003 0000000000000200 00000008 00000010
  0000000140000000 00000000 00000001 0000000000030000
  0000000000010000 00000001 00000000 0000000000000000`)
const NO_BACKING = hex('514649fb 00000002 0000000000000000 00000000 00000010 0000000000100000')
const HEADER_LENGTH = hex('00000068')
// The backing format extension: type, length, "raw" and padding; then the end.
const EXTENSION = hex('e2792aca 00000003 7261770000000000 00000000 00000000')

describe('probe', () => {
  it('reads size, backing file and its format from a qcow2 header', async () => {
    const path = file(
      [
        [0, QCOW2],
        [100, HEADER_LENGTH],
        [104, EXTENSION],
        [0x200, Buffer.from('base.img')],
      ],
      4096,
    )
    expect(await probe(path, 4096)).toEqual({
      format: 'qcow2',
      capacityBytes: 5 * 2 ** 30,
      backing: { path: 'base.img', format: 'raw' },
    })
  })

  it('knows a qcow2 image that stands alone', async () => {
    const path = file([[0, NO_BACKING]], 4096)
    expect(await probe(path, 4096)).toEqual({ format: 'qcow2', capacityBytes: 2 ** 20 })
  })

  it('tells a CD image by the descriptor in its seventeenth sector', async () => {
    const path = file([[16 * 2048, hex('01 4344303031 01')]], 40_960)
    expect(await probe(path, 40_960)).toEqual({ format: 'iso', capacityBytes: 40_960 })
  })

  it.each([
    ['vmdk', [0, hex('4b444d56 01000000 03000000 0008000000000000')], 2 ** 20],
    ['vdi', [0x40, hex('7f10dabe')], 0],
    ['vhdx', [0, Buffer.from('vhdxfile')], 4096],
    ['qed', [0, Buffer.from('QED\0')], 4096],
    ['luks', [0, hex('4c554b53 babe')], 4096],
  ] as const)('does not take %s for raw', async (format, part, capacityBytes) => {
    expect(await probe(file([part], 4096), 4096)).toEqual({ format, capacityBytes })
  })

  it.each([0, 3, 511, 4096])('takes %i bytes of nothing for raw', async size => {
    expect(await probe(file([], size), size)).toEqual({ format: 'raw', capacityBytes: size })
  })

  it('knows what a server sends by its beginning', () => {
    const head = Buffer.alloc(1024)
    NO_BACKING.copy(head)
    expect(probeHead(head, head.length).format).toBe('qcow2')
    expect(probeHead(Buffer.alloc(10), 10).format).toBe('raw')
  })
})
