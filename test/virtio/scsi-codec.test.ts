import { afterEach, describe, expect, it } from 'vitest'
import { IoType } from '../../src/bdev/io.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { bytesOf, type Chain, dump } from './device.ts'
import { TestQueue } from './queue.ts'

let queue: TestQueue
afterEach(() => queue.close())

async function open(): Promise<void> {
  queue = await TestQueue.open({ kind: 'scsi', target: 3, zeroesBlocks: 0 })
}

/** The response of a chain, after what the device reads. */
const responseOf = ({ pieces }: Chain) => bytesOf(pieces.find(({ isWritable }) => isWritable)!)

/** le32 sense_len, le32 residual, le16 status_qualifier, u8 status, u8 response; then the sense. */
function answer(
  chain: Chain,
  response: number,
  status = 0,
  sense: readonly number[] = [],
  residual = 0,
): void {
  const bytes = responseOf(chain)
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  view.setUint32(0, sense.length, true)
  view.setUint32(4, residual, true)
  view.setUint8(10, status)
  view.setUint8(11, response)
  bytes.set(sense, 12)
  queue.device.use(chain, 108)
  queue.poll()
}

const fixed = (key: number, asc: number, ascq = 0): number[] => {
  const sense = new Array<number>(18).fill(0)
  sense[0] = 0x70
  sense[2] = key
  sense[7] = 10
  sense[12] = asc
  sense[13] = ascq
  return sense
}

// Virtual I/O Device specification 1.2, section 5.6.6.1: u8 lun[8], le64 id, u8 task_attr, u8 prio, u8 crn, u8 cdb[32].
const LUN = '01034000 00000000'
const FRONT = `${LUN} 00000000 00000000 000000`

describe('requests to a SCSI disk', () => {
  // SBC-3: READ (16), WRITE (16), SYNCHRONIZE CACHE (10), UNMAP.
  it.each([
    [
      { type: IoType.READ, firstBlock: 0x12345, blockCount: 2 },
      '8800000000000001234500000002',
      ['r51', 'w108', 'w1024'],
    ],
    [
      { type: IoType.WRITE, firstBlock: 7, blockCount: 1 },
      '8a00000000000000000700000001',
      ['r51', 'r512', 'w108'],
    ],
    [{ type: IoType.FLUSH }, '35000000000000000000', ['r51', 'w108']],
    [{ type: IoType.UNMAP, firstBlock: 9, blockCount: 3 }, '42000000000000001800', ['r51', 'r24', 'w108']],
  ])('has %j as the standard has it', async (request, cdb, shape) => {
    await open()
    const io = queue.submit(request)
    const [chain] = queue.device.take()
    const { pieces } = chain!
    expect(pieces.map(({ length, isWritable }) => `${isWritable ? 'w' : 'r'}${length}`)).toEqual(shape)
    expect(dump(pieces[0]!).replaceAll(' ', '')).toBe(`${FRONT.replaceAll(' ', '')}${cdb.padEnd(64, '0')}`)
    if (shape[1] === 'r24') {
      // be16 data length, be16 descriptors' length, 4 reserved; be64 LBA, be32 blocks, 4 reserved
      expect(dump(pieces[1]!)).toBe('00160010 00000000 00000000 00000009 00000003 00000000')
    }
    answer(chain!, 0)
    expect(io.statuses).toEqual([Status.SUCCESS])
  })

  it.each([
    ['an unrecovered read error', fixed(3, 0x11), Status.UNRECOVERED_READ_ERROR],
    ['a medium error without more', fixed(3, 0), Status.UNRECOVERED_READ_ERROR],
    ['an address beyond the end', fixed(5, 0x21), Status.LBA_OUT_OF_RANGE],
    ['a field that is invalid', fixed(5, 0x24), Status.INVALID_FIELD],
    ['write protection', fixed(7, 0x27), Status.NAMESPACE_WRITE_PROTECTED],
    ['no space left', fixed(7, 0x27, 7), Status.CAPACITY_EXCEEDED],
    ['a unit that is not ready', fixed(2, 4), Status.NAMESPACE_NOT_READY],
    ['an error that was recovered from', fixed(1, 0x17), Status.SUCCESS],
    // Descriptor format (SPC-4, section 4.5.2): key, ASC and ASCQ are bytes 1 to 3.
    ['the same in descriptors', [0x72, 5, 0x21, 0, 0, 0, 0, 0], Status.LBA_OUT_OF_RANGE],
  ])('tells %s by the NVMe status', async (_, sense, status) => {
    await open()
    const io = queue.submit({ type: IoType.READ, blockCount: 1 })
    answer(queue.device.take()[0]!, 0, 2, sense)
    expect(io.statuses).toEqual([status])
  })

  it.each([
    ['a reservation of somebody else', 0, 0x18, Status.RESERVATION_CONFLICT],
    ['a target that is not there', 3, 0, Status.INVALID_NAMESPACE_OR_FORMAT],
    ['a failure below SCSI', 9, 0, Status.INTERNAL_ERROR],
    ['a response that no specification knows', 200, 0, Status.INTERNAL_ERROR],
  ])('tells %s by the NVMe status', async (_, response, scsiStatus, status) => {
    await open()
    const io = queue.submit({ type: IoType.WRITE, blockCount: 1 })
    answer(queue.device.take()[0]!, response, scsiStatus)
    expect(io.statuses).toEqual([status])
  })

  it('takes data that came short for no success', async () => {
    await open()
    const io = queue.submit({ type: IoType.READ, blockCount: 2 })
    answer(queue.device.take()[0]!, 0, 0, [], 512)
    expect(io.statuses).toEqual([Status.DATA_TRANSFER_ERROR])
  })

  it('sends a command again after a unit attention, at once', async () => {
    await open()
    const io = queue.submit({ type: IoType.WRITE, blockCount: 1, data: new Uint8Array(512).fill(9) })
    answer(queue.device.take()[0]!, 0, 2, fixed(6, 0x29))
    const [again] = queue.device.take()
    expect(bytesOf(again!.pieces[1]!)).toEqual(new Uint8Array(512).fill(9))
    // The control thread looks what has changed.
    await queue.reactors.until(() => queue.news.length > 0)
    answer(again!, 0)
    expect(io.statuses).toEqual([Status.SUCCESS])
  })

  it('sends a command again to a unit that was busy, after a while, and gives up in the end', async () => {
    await open()
    const io = queue.submit({ type: IoType.READ, blockCount: 1 })
    const [first] = queue.device.take()
    answer(first!, 0, 8)
    expect(queue.device.take()).toEqual([])
    for (let attempt = 0; attempt < 100; attempt++) {
      queue.reactors.advance(11_000)
      answer(queue.device.take()[0]!, 0, 0x28)
    }
    expect(io.statuses).toEqual([Status.COMMAND_INTERRUPTED])
  })

  it('takes a check condition without sense for the failure that it is', async () => {
    await open()
    const io = queue.submit({ type: IoType.READ, blockCount: 1 })
    answer(queue.device.take()[0]!, 0, 2)
    expect(io.statuses).toEqual([Status.UNRECOVERED_READ_ERROR])
  })
})
