/** What a file holds, told from its first bytes: names as libvirt and `qemu-img` have them. */
import { type FileHandle, open } from 'node:fs/promises'
import type { Backing, VolumeFormat } from '../pool.ts'

export interface Probed {
  readonly format: VolumeFormat
  /** What a guest sees, in bytes. */
  readonly capacityBytes: number
  readonly backing?: Backing
}

/** Enough for the header of a qcow2 file and the name of its backing file, which lies in its first cluster mostly. */
const HEAD_BYTES = 4096
const BACKING_NAME_BYTES_MAX = 1023
/** Where a CD image says what it is (ECMA-119, 8.1.2): in its seventeenth sector of 2048 bytes. */
const ISO_OFFSET = 16 * 2048 + 1
const ISO_MAGIC = 'CD001'
const SECTOR = 512
const V2_HEADER_BYTES = 72

/** Looks at the file of `sizeBytes`. What nobody knows is raw, as everywhere. */
export async function probe(path: string, sizeBytes: number): Promise<Probed> {
  const file = await open(path, 'r')
  try {
    const head = Buffer.alloc(HEAD_BYTES)
    const { bytesRead } = await file.read(head, 0, HEAD_BYTES, 0)
    const found = probeHead(head.subarray(0, bytesRead), sizeBytes)
    if (found.format === 'qcow2') return await withBacking(file, head, found)
    if (found.format !== 'raw' || sizeBytes <= ISO_OFFSET + ISO_MAGIC.length) return found
    const isIso = (await readText(file, ISO_OFFSET, ISO_MAGIC.length)) === ISO_MAGIC
    return { ...found, format: isIso ? 'iso' : 'raw' }
  } finally {
    await file.close()
  }
}

export async function readHead(path: string): Promise<Buffer> {
  const file = await open(path, 'r')
  try {
    const { bytesRead, buffer } = await file.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}

/** As far as the first bytes tell: a CD image may look raw, and a backing file is not named. */
export function probeHead(head: Buffer, sizeBytes: number): Probed {
  if (head.length >= V2_HEADER_BYTES && head.readUInt32BE(0) === 0x514649fb) {
    return {
      format: head.readUInt32BE(4) === 1 ? 'qcow' : 'qcow2',
      capacityBytes: Number(head.readBigUInt64BE(24)),
    }
  }
  const isIso = head.toString('latin1', ISO_OFFSET, ISO_OFFSET + ISO_MAGIC.length) === ISO_MAGIC
  const other = OTHERS.find(
    ({ offset, magic }) => head.length >= 512 && head.subarray(offset, offset + magic.length).equals(magic),
  )
  if (other !== undefined) return { format: other.format, capacityBytes: other.capacity?.(head) ?? sizeBytes }
  return { format: isIso ? 'iso' : 'raw', capacityBytes: sizeBytes }
}

interface OtherFormat {
  readonly format: string
  readonly offset: number
  readonly magic: Buffer
  readonly capacity?: (head: Buffer) => number
}

/** Formats that are listed, so that nobody serves one of them as if it were raw. */
const OTHERS: readonly OtherFormat[] = [
  {
    format: 'vmdk',
    offset: 0,
    magic: Buffer.from('KDMV'),
    capacity: head => Number(head.readBigUInt64LE(12)) * SECTOR,
  },
  {
    format: 'vdi',
    offset: 0x40,
    magic: Buffer.from([0x7f, 0x10, 0xda, 0xbe]),
    capacity: head => Number(head.readBigUInt64LE(0x170)),
  },
  { format: 'vhdx', offset: 0, magic: Buffer.from('vhdxfile') },
  {
    format: 'vpc',
    offset: 0,
    magic: Buffer.from('conectix'),
    capacity: head => Number(head.readBigUInt64BE(48)),
  },
  { format: 'qed', offset: 0, magic: Buffer.from('QED\0') },
  { format: 'luks', offset: 0, magic: Buffer.from('LUKS\xba\xbe', 'latin1') },
]

/** qcow2's header: version at 4, backing file at 8 and 16, size at 24 (docs/interop/qcow2.txt of QEMU). */
async function withBacking(file: FileHandle, head: Buffer, found: Probed): Promise<Probed> {
  const nameOffset = Number(head.readBigUInt64BE(8))
  const nameBytes = head.readUInt32BE(16)
  if (nameOffset === 0 || nameBytes === 0 || nameBytes > BACKING_NAME_BYTES_MAX) return found
  return {
    ...found,
    backing: { path: await readText(file, nameOffset, nameBytes), format: backingFormat(head) },
  }
}

const EXTENSION_BACKING_FORMAT = 0xe2792aca

function backingFormat(head: Buffer): string | undefined {
  let offset = head.readUInt32BE(4) >= 3 ? head.readUInt32BE(100) : V2_HEADER_BYTES
  while (offset + 8 <= head.length) {
    const type = head.readUInt32BE(offset)
    const length = head.readUInt32BE(offset + 4)
    if (type === 0) return undefined
    if (type === EXTENSION_BACKING_FORMAT) return head.toString('utf8', offset + 8, offset + 8 + length)
    offset += 8 + Math.ceil(length / 8) * 8
  }
  return undefined
}

async function readText(file: FileHandle, offset: number, length: number): Promise<string> {
  const bytes = Buffer.alloc(length)
  const { bytesRead } = await file.read(bytes, 0, length, offset)
  return bytes.toString('utf8', 0, bytesRead)
}
