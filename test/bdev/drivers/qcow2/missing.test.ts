/** Files that somebody else has made shorter: what is gone is never read as zeroes, and nothing covers it up. */
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { afterEach, beforeEach, expect, it } from 'vitest'
import {
  createImage,
  createSnapshot,
  imageInfo,
  resizeImage,
} from '../../../../src/bdev/drivers/qcow2/image.ts'
import { IoType } from '../../../../src/bdev/io.ts'
import { Status } from '../../../../src/spec/nvme-status.ts'
import { Bench } from './support.ts'

const MIB = 1 << 20
const CLUSTER = 65536

let bench: Bench
beforeEach(() => {
  bench = new Bench()
})
afterEach(() => bench.close())

const content = new Uint8Array(4 * MIB).fill(7)

/** An image with 4 MiB of data, closed. Returns the size of its file. */
async function filled(name: string, options: object = {}): Promise<number> {
  await createImage(bench.path(name), { sizeBytes: 64 * MIB, ...options })
  const disk = await bench.open(name)
  await disk.write(0, content)
  await bench.delete(name)
  return statSync(bench.path(name)).size
}

const complaints = (): string[] => bench.lines.filter(line => line.includes('somebody made it shorter'))

it.each([{}, { extendedL2: true }])(
  'fails reads of what was cut off while it is open, and goes on with what is left: %j',
  async options => {
    const size = await filled('image', options)
    const disk = await bench.open('image')
    await disk.read(0, content.length)
    // In the middle of a cluster: the rest of it is gone as well.
    truncateSync(bench.path('image'), size - MIB - 4096)
    expect(await disk.run(IoType.READ, 3 * MIB, 65536)).toBe(Status.UNRECOVERED_READ_ERROR)
    expect(await disk.run(IoType.READ, 3 * MIB - 4096, 4096)).toBe(Status.UNRECOVERED_READ_ERROR)
    expect(await disk.read(2 * MIB, 4096)).toEqual(content.subarray(0, 4096))
    expect(complaints()).toHaveLength(1)
    expect(complaints()[0]).toContain(bench.path('image'))
    expect(complaints()[0]).toContain(`it has ${size - MIB - 4096} bytes and had ${size}`)
  },
)

it.each([
  ['a new cluster', IoType.WRITE, 32 * MIB, 4096],
  ['a flush', IoType.FLUSH, 0, 0],
] as const)('is found out before %s makes a hole of what is gone', async (_, type, offset, length) => {
  const size = await filled('image')
  const disk = await bench.open('image')
  await disk.write(0, content.subarray(0, 4096))
  truncateSync(bench.path('image'), size - MIB)
  const data = type === IoType.WRITE ? new Uint8Array(length).fill(1) : undefined
  expect(await disk.run(type, offset, length, data)).toBe(Status.WRITE_FAULT)
  expect(await disk.run(IoType.WRITE, 0, 4096, new Uint8Array(4096))).toBe(Status.WRITE_FAULT)
  expect(statSync(bench.path('image')).size).toBe(size - MIB)
  expect(complaints()).toHaveLength(1)
})

it('is not used on when it is changed while it is open', async () => {
  const size = await filled('image')
  const disk = await bench.open('image')
  await disk.read(0, 4096)
  truncateSync(bench.path('image'), size - MIB)
  await expect(
    bench.call('bdev_qcow2_snapshot_create', { name: 'image', snapshot_name: 's' }),
  ).rejects.toMatchObject({ code: 'EINVAL', message: expect.stringContaining('is cut off') })
})

it('fails reads by a table that is gone, and says where it should be', async () => {
  await createImage(bench.path('image'), { sizeBytes: 64 * MIB })
  const end = statSync(bench.path('image')).size
  let disk = await bench.open('image')
  await disk.write(0, content)
  await bench.delete('image')
  truncateSync(bench.path('image'), end)
  disk = await bench.open('image', { read_only: true })
  expect(await disk.run(IoType.READ, 0, 4096)).toBe(Status.UNRECOVERED_READ_ERROR)
  expect(bench.lines.join('')).toContain(`behind the file's end at ${end}`)
})

it('is opened only to be read when it was cut off before, until it is as long again', async () => {
  const size = await filled('image')
  truncateSync(bench.path('image'), size - MIB)
  const refusal = {
    code: 'EINVAL',
    message: expect.stringMatching(
      new RegExp(`has ${size - MIB} bytes, and its tables refer to ${size}: .*truncate -s ${size} `),
    ),
  }
  await expect(bench.open('image')).rejects.toMatchObject(refusal)
  await expect(resizeImage(bench.path('image'), 128 * MIB)).rejects.toMatchObject(refusal)
  await expect(createSnapshot(bench.path('image'), 's')).rejects.toMatchObject(refusal)
  expect((await imageInfo(bench.path('image'))).virtualSizeBytes).toBe(64 * MIB)

  let disk = await bench.open('image', { read_only: true })
  expect(Buffer.compare(await disk.read(0, 3 * MIB), content.subarray(0, 3 * MIB))).toBe(0)
  expect(await disk.run(IoType.READ, 3 * MIB - 512, 1024)).toBe(Status.UNRECOVERED_READ_ERROR)
  await bench.delete('image')

  truncateSync(bench.path('image'), size)
  disk = await bench.open('image')
  expect(await disk.read(3 * MIB - 512, 1024)).toEqual(
    Uint8Array.from({ length: 1024 }, (_, i) => (i < 512 ? 7 : 0)),
  )
})

it('may end within its last cluster', async () => {
  await createImage(bench.path('image'), { sizeBytes: MIB })
  let disk = await bench.open('image')
  await disk.write(CLUSTER, content.subarray(0, 512))
  expect(statSync(bench.path('image')).size % CLUSTER).toBe(512)
  const expected = Uint8Array.from({ length: CLUSTER }, (_, i) => (i < 512 ? 7 : 0))
  expect(await disk.read(CLUSTER, CLUSTER)).toEqual(expected)
  await bench.delete('image')
  disk = await bench.open('image')
  expect(await disk.read(CLUSTER, CLUSTER)).toEqual(expected)
  await disk.write(2 * CLUSTER - 512, content.subarray(0, 512))
  expect((await disk.read(CLUSTER, CLUSTER))[CLUSTER - 1]).toBe(7)
})

it('may have clusters counted behind its end that nothing refers to: a crash leaves them', async () => {
  const size = await filled('image')
  const bytes = readFileSync(bench.path('image'))
  const block = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))))
  bytes.writeUInt16BE(1, block + (size / CLUSTER + 5) * 2)
  writeFileSync(bench.path('image'), bytes)
  const disk = await bench.open('image')
  await disk.write(32 * MIB, content)
  expect(Buffer.compare(await disk.read(32 * MIB, content.length), content)).toBe(0)
})

it.each(['raw', 'qcow2'] as const)('fails reads of a %s backing file that was cut off', async format => {
  if (format === 'qcow2') await filled('base')
  else writeFileSync(bench.path('base'), content)
  await createImage(bench.path('image'), { backingFile: 'base', backingFormat: format })
  const disk = await bench.open('image')
  await disk.read(0, MIB)
  truncateSync(bench.path('base'), 2 * MIB)
  expect(await disk.run(IoType.READ, 3 * MIB, 4096)).toBe(Status.UNRECOVERED_READ_ERROR)
  expect(await disk.run(IoType.WRITE, 3 * MIB, 512, new Uint8Array(512))).toBe(Status.WRITE_FAULT)
  await disk.write(0, content.subarray(0, 512))
  expect(complaints()).toHaveLength(1)
  expect(complaints()[0]).toContain(bench.path('base'))
})
