import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { IoType } from '../../src/bdev/io.ts'
import { logSettings } from '../../src/core/log.ts'
import { Prng } from '../../src/core/prng.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import type { FakeOptions } from '../support/fake-controller.ts'
import { byteByByte, type Fragmentation, fragmentedBy, whole } from '../support/stream.ts'
import { Host, namespace, Submitter } from './support.ts'

logSettings.write = () => {}

let host: Host
beforeEach(() => {
  host = new Host()
})
afterEach(() => host.close())

const pattern = (size: number, seed = 1): Uint8Array => new Prng(seed).fill(new Uint8Array(size))

async function disk(options: FakeOptions = {}): Promise<{ disk: Submitter; data: Uint8Array }> {
  const fake = host.fake(options)
  await host.attach(fake)
  return { disk: new Submitter(host, host.open('Nvme0n1')), data: fake.namespaces[0]!.data }
}

describe('a namespace as a device', () => {
  it('has the size, block size and UUID that the controller tells', async () => {
    expect(await host.attach(host.fake())).toEqual(['Nvme0n1'])
    expect(host.bdevs.get('Nvme0n1')).toMatchObject({
      blockSize: 512,
      blockCount: 1024,
      uuid: '2d2d3f0a-9a2b-4c55-8b1e-6a7f1c3c9d10',
      product: 'NVMe disk',
      writeCache: true,
    })
  })

  it('appears once for each namespace, with the block size of each', async () => {
    const small = namespace()
    const large = namespace({ nsid: 7, blockSize: 4096, uuid: 'ab'.repeat(16) })
    expect(await host.attach(host.fake({}, [small, large]))).toEqual(['Nvme0n1', 'Nvme0n7'])
    expect(host.bdevs.get('Nvme0n7')).toMatchObject({ blockSize: 4096, blockCount: 128 })
  })

  it('reads what is there and what was written', async () => {
    const { disk: own, data } = await disk()
    expect(await own.read(8, 8)).toEqual(data.slice(4096, 8192))
    expect(await own.write(16, 8, pattern(4096))).toBe(0)
    expect(data.slice(8192, 12288)).toEqual(pattern(4096))
    expect(await own.read(16, 8)).toEqual(pattern(4096))
  })

  it('splits what is longer than the controller takes, and scatters what lies in pieces', async () => {
    const { disk: own, data } = await disk({ mdts: 1 })
    const bytes = pattern(50 * 512)
    expect(await own.write(3, 50, bytes, [512, 1024, 40 * 512, 512 * 8, 512 * 0, 256, 256 - 0])).toBe(0)
    expect(data.slice(3 * 512, 53 * 512)).toEqual(bytes)
    expect(await own.read(3, 50, [100, 5000, 50 * 512 - 5100])).toEqual(bytes)
  })

  it.each([
    ['flush', IoType.FLUSH],
    ['write zeroes', IoType.WRITE_ZEROES],
    ['unmap', IoType.UNMAP],
  ])('ends a %s with success', async (_, type) => {
    const { disk: own, data } = await disk()
    expect(await own.end(own.submit(type, 10, 20))).toBe(Status.SUCCESS)
    const isZero = data.slice(10 * 512, 30 * 512).every(byte => byte === 0)
    expect(isZero).toBe(type !== IoType.FLUSH)
    expect(data[30 * 512]).not.toBe(0)
  })

  it('compares', async () => {
    const { disk: own, data } = await disk()
    const equal = data.slice(0, 1024)
    expect(await own.end(own.submit(IoType.COMPARE, 0, 2, equal))).toBe(Status.SUCCESS)
    expect(await own.end(own.submit(IoType.COMPARE, 1, 2, equal))).toBe(Status.COMPARE_FAILURE)
  })

  it('passes a final status on and tries no more', async () => {
    const fake = host.fake()
    await host.attach(fake)
    const own = new Submitter(host, host.open('Nvme0n1'))
    fake.intercept = ({ opcode, qid }) => (qid > 0 && opcode === 2 ? 0x4000 | 0x281 : undefined)
    const reads = (): number => fake.seen.filter(command => command === '1/02').length
    expect(await own.end(own.submit(IoType.READ, 0, 1))).toBe(Status.UNRECOVERED_READ_ERROR)
    expect(reads()).toBe(1)
  })

  it('tries a status without Do Not Retry three times more, after the delay the controller asks for', async () => {
    const fake = host.fake()
    await host.attach(fake)
    const own = new Submitter(host, host.open('Nvme0n1'))
    // CRD 1: CRDT1 is 2, that is, 200 ms.
    fake.intercept = ({ opcode, qid }) =>
      qid > 0 && opcode === 2 ? 0x0800 | Status.INTERNAL_ERROR : undefined
    const reads = (): number => fake.seen.filter(command => command === '1/02').length
    const read = own.submit(IoType.READ, 0, 1)
    await host.advance(150)
    expect(reads()).toBe(1)
    await host.advance(100)
    expect(reads()).toBe(2)
    await host.advance(1000)
    expect(reads()).toBe(4)
    expect(read.status).toBe(Status.INTERNAL_ERROR)
  })

  it('lets more I/O wait than the queue has slots, and ends all of it', async () => {
    const { disk: own, data } = await disk({ queueEntries: 5 })
    const reads = Array.from({ length: 100 }, (_, i) => own.submit(IoType.READ, i, 1))
    for (const [i, read] of reads.entries()) {
      expect(await own.end(read)).toBe(0)
      expect(read.data).toEqual(data.slice(i * 512, i * 512 + 512))
    }
  })
})

const cases: [string, Fragmentation, FakeOptions][] = [
  ['whole', whole, {}],
  ['one byte at a time', byteByByte, { c2hSuccess: false }],
  ['cut by seed 1', fragmentedBy(1), { chunkBytes: 4096 }],
  ['cut by seed 2', fragmentedBy(2), { inCapsuleBytes: 0, maxH2cData: 4096 }],
  ['cut by seed 3, aligned to 128 bytes', fragmentedBy(3), { cpda: 31, maxH2cData: 8192, chunkBytes: 12288 }],
]

describe.each(cases)('a device whose bytes arrive %s', (_, fragmentation, options) => {
  it('reads and writes every byte where it belongs', async () => {
    host.close()
    host = new Host({ network: { fragmentation, capacity: 20_000 } })
    const { disk: own, data } = await disk(options)
    const bytes = pattern(40 * 512, 5)
    expect(await own.write(0, 40, bytes, [512, 512 * 30, 512 * 9])).toBe(0)
    expect(await own.write(100, 2, bytes)).toBe(0)
    expect(data.slice(0, 40 * 512)).toEqual(bytes)
    expect(data.slice(51_200, 52_224)).toEqual(bytes.slice(0, 1024))
    expect(await own.read(0, 40, [700, 512 * 40 - 700])).toEqual(bytes)
  })
})

describe('random I/O', () => {
  it.each([11, 12, 13, 14])('agrees with a model of the disk, seed %i', async seed => {
    const prng = new Prng(seed)
    host.close()
    host = new Host({ network: { fragmentation: fragmentedBy(seed), capacity: 30_000 } })
    const { disk: own, data } = await disk({ queueEntries: 9, mdts: 1, c2hSuccess: prng.oneIn(2) })
    const model = data.slice()
    for (let round = 0; round < 20; round++) {
      // Ranges of one round do not overlap, so that their order does not matter.
      const submitted = Array.from({ length: 8 }, (_, i) => {
        const first = i * 128 + prng.below(64)
        const count = prng.between(1, 40)
        if (prng.oneIn(2)) return own.submit(IoType.READ, first, count)
        const bytes = prng.fill(new Uint8Array(count * 512))
        model.set(bytes, first * 512)
        return own.submit(IoType.WRITE, first, count, bytes)
      })
      for (const one of submitted) {
        expect(await own.end(one)).toBe(0)
        const at = one.io.firstBlock * 512
        expect(Buffer.compare(one.data, model.slice(at, at + one.data.length))).toBe(0)
      }
    }
    expect(Buffer.compare(data, model)).toBe(0)
  })
})
