/** Snapshots within an image: L1 tables that are kept. */
import { RpcError, thereAre } from '../../../core/errors.ts'
import * as spec from '../../../spec/qcow2.ts'
import { resizeBitmaps, suspendBitmaps } from './bitmaps.ts'
import { changeImage } from './change.ts'
import type { SnapshotInfo } from './image.ts'
import type { ImageHandle } from './image-handle.ts'
import type { Refcounts } from './refcounts.ts'
import { countTree, markTree, type Tree, viewOf } from './tree.ts'

const NAME_BYTES_MAX = 255

export interface Snapshot extends Tree, SnapshotInfo {
  readonly vmClock: number
  /** With what is not known here, as it is. */
  readonly extra: Uint8Array
}

/** Throws `RpcError` EINVAL when the table is damaged. */
export async function readSnapshots(image: ImageHandle): Promise<Snapshot[]> {
  const { snapshotCount, snapshotsOffset, sizeBytes, geometry } = image.header
  const found: Snapshot[] = []
  let at = snapshotsOffset
  for (let i = 0; i < snapshotCount; i++) {
    if (at - snapshotsOffset > spec.SNAPSHOT_TABLE_BYTES_MAX)
      refuse(image, 'a snapshot table of more than 64 MiB')
    const head = viewOf(await image.read(at, spec.SnapshotEntry.size))
    const extraSize = spec.SnapshotEntry.extraSize.get(head, 0)
    const idSize = spec.SnapshotEntry.idSize.get(head, 0)
    const nameSize = spec.SnapshotEntry.nameSize.get(head, 0)
    if (extraSize > spec.SNAPSHOT_EXTRA_MAX) refuse(image, `a snapshot with ${extraSize} bytes of extra data`)
    const rest = await image.read(at + spec.SnapshotEntry.size, extraSize + idSize + nameSize)
    const extra = rest.subarray(0, extraSize)
    const known = viewOf(Buffer.concat([extra, Buffer.alloc(spec.SnapshotExtra.size)]) as Buffer<ArrayBuffer>)
    const seconds = spec.SnapshotEntry.seconds.get(head, 0)
    const nanoseconds = spec.SnapshotEntry.nanoseconds.get(head, 0)
    const snapshot: Snapshot = {
      id: rest.toString('utf8', extraSize, extraSize + idSize),
      name: rest.toString('utf8', extraSize + idSize),
      date: new Date(seconds * 1000 + nanoseconds / 1e6),
      vmClock: spec.SnapshotEntry.vmClock.get(head, 0),
      vmStateBytes:
        extraSize >= 8
          ? spec.SnapshotExtra.vmStateSize.get(known, 0)
          : spec.SnapshotEntry.vmStateSize.get(head, 0),
      diskSizeBytes: extraSize >= 16 ? spec.SnapshotExtra.diskSize.get(known, 0) : sizeBytes,
      l1Offset: spec.SnapshotEntry.l1TableOffset.get(head, 0),
      l1Size: spec.SnapshotEntry.l1Size.get(head, 0),
      extra,
    }
    checkTree(image, snapshot, geometry.clusterSize)
    found.push(snapshot)
    at += Math.ceil((spec.SnapshotEntry.size + extraSize + idSize + nameSize) / 8) * 8
  }
  return found
}

function checkTree(image: ImageHandle, { name, l1Offset, l1Size }: Snapshot, clusterSize: number): void {
  const end = Math.ceil(image.fileSize / clusterSize) * clusterSize
  if (l1Size * 8 > spec.L1_BYTES_MAX || l1Offset % clusterSize !== 0 || l1Offset + l1Size * 8 > end) {
    refuse(image, `a snapshot ${JSON.stringify(name)} with an L1 table of ${l1Size} entries at ${l1Offset}`)
  }
}

function refuse(image: ImageHandle, what: string): never {
  throw new RpcError('EINVAL', `${image.path} has ${what}: use qemu-img check ${image.path}`)
}

function encodeSnapshots(snapshots: readonly Snapshot[]): Buffer {
  return Buffer.concat(snapshots.map(encodeSnapshot))
}

function encodeSnapshot(snapshot: Snapshot): Buffer {
  const id = Buffer.from(snapshot.id)
  const name = Buffer.from(snapshot.name)
  const extraSize = Math.max(spec.SnapshotExtra.size, snapshot.extra.length)
  const size = spec.SnapshotEntry.size + extraSize + id.length + name.length
  const bytes = Buffer.alloc(Math.ceil(size / 8) * 8)
  const view = viewOf(bytes)
  const ms = snapshot.date.getTime()
  spec.SnapshotEntry.l1TableOffset.set(view, 0, snapshot.l1Offset)
  spec.SnapshotEntry.l1Size.set(view, 0, snapshot.l1Size)
  spec.SnapshotEntry.idSize.set(view, 0, id.length)
  spec.SnapshotEntry.nameSize.set(view, 0, name.length)
  spec.SnapshotEntry.seconds.set(view, 0, Math.floor(ms / 1000))
  spec.SnapshotEntry.nanoseconds.set(view, 0, Math.floor((ms % 1000) * 1e6))
  spec.SnapshotEntry.vmClock.set(view, 0, snapshot.vmClock)
  spec.SnapshotEntry.vmStateSize.set(view, 0, snapshot.vmStateBytes < 2 ** 32 ? snapshot.vmStateBytes : 0)
  spec.SnapshotEntry.extraSize.set(view, 0, extraSize)
  bytes.set(snapshot.extra, spec.SnapshotEntry.size)
  spec.SnapshotExtra.vmStateSize.set(view, spec.SnapshotEntry.size, snapshot.vmStateBytes)
  spec.SnapshotExtra.diskSize.set(view, spec.SnapshotEntry.size, snapshot.diskSizeBytes)
  id.copy(bytes, spec.SnapshotEntry.size + extraSize)
  name.copy(bytes, spec.SnapshotEntry.size + extraSize + id.length)
  return bytes
}

/** The one of that id, or of that name if only one has it. Throws `RpcError` ENOENT, or EINVAL for several. */
function findSnapshot(image: ImageHandle, snapshots: readonly Snapshot[], which: string): Snapshot {
  const named = snapshots.filter(({ name }) => name === which)
  const found = snapshots.find(({ id }) => id === which) ?? named[0]
  if (named.length > 1 && found === named[0]) {
    const ids = named.map(({ id }) => id).join(', ')
    throw new RpcError(
      'EINVAL',
      `${image.path} has ${named.length} snapshots named ${which}: use one of the ids ${ids}`,
    )
  }
  if (found !== undefined) return found
  const names = snapshots.map(({ name }) => name)
  throw new RpcError('ENOENT', `${image.path} has no snapshot ${JSON.stringify(which)}: ${thereAre(names)}`)
}

export async function takeSnapshot(image: ImageHandle, name: string): Promise<Snapshot> {
  const snapshots = await readSnapshots(image)
  checkName(image, snapshots, name)
  const { header } = image
  const { clusterSize } = header.geometry
  return await changeImage(image, async refcounts => {
    await countTree(image, refcounts, header, 1)
    const l1 = await image.read(header.l1Offset, header.l1Size * 8)
    const start = await refcounts.allocate(Math.max(1, Math.ceil(l1.length / clusterSize)))
    const snapshot: Snapshot = {
      id: String(1 + snapshots.reduce((most, { id }) => Math.max(most, Number.parseInt(id, 10) || 0), 0)),
      name,
      date: new Date(),
      diskSizeBytes: header.sizeBytes,
      vmStateBytes: 0,
      vmClock: 0,
      l1Offset: start * clusterSize,
      l1Size: header.l1Size,
      extra: new Uint8Array(0),
    }
    await refcounts.write()
    // What has two references is not to be written in place from here on.
    await markTree(image, refcounts)
    await image.write(snapshot.l1Offset, await image.read(header.l1Offset, header.l1Size * 8))
    await replaceTable(image, refcounts, [...snapshots, snapshot])
    return snapshot
  })
}

function checkName(image: ImageHandle, snapshots: readonly Snapshot[], name: string): void {
  const size = Buffer.byteLength(name)
  if (size < 1 || size > NAME_BYTES_MAX) {
    throw new RpcError('EINVAL', `a snapshot's name of ${size} bytes: use 1 to ${NAME_BYTES_MAX}`)
  }
  if (snapshots.some(other => other.name === name)) {
    throw new RpcError(
      'EEXIST',
      `${image.path} has a snapshot ${JSON.stringify(name)} already: choose another name`,
    )
  }
  if (snapshots.length >= spec.SNAPSHOTS_MAX) {
    throw new RpcError('ENOSPC', `${image.path} has ${snapshots.length} snapshots: delete some`)
  }
}

export async function dropSnapshot(image: ImageHandle, which: string): Promise<void> {
  const snapshots = await readSnapshots(image)
  const snapshot = findSnapshot(image, snapshots, which)
  const { clusterSize } = image.header.geometry
  await changeImage(image, async refcounts => {
    await replaceTable(
      image,
      refcounts,
      snapshots.filter(other => other !== snapshot),
    )
    await countTree(image, refcounts, snapshot, -1)
    const clusters = Math.ceil((snapshot.l1Size * 8) / clusterSize)
    await refcounts.add(snapshot.l1Offset / clusterSize, Math.max(1, clusters), -1)
    await refcounts.write()
    await markTree(image, refcounts)
  })
}

/** Has the disk be what it was: its size as well. */
export async function revertTo(image: ImageHandle, which: string): Promise<void> {
  const snapshot = findSnapshot(image, await readSnapshots(image), which)
  const old: Tree = image.header
  const { geometry } = image.header
  const { clusterSize } = geometry
  const needed = Math.ceil(snapshot.diskSizeBytes / geometry.l2Span)
  const l1Size = Math.max(snapshot.l1Size, needed)
  if (l1Size * 8 > spec.L1_BYTES_MAX) {
    refuse(image, `a snapshot ${JSON.stringify(snapshot.name)} of a disk of ${snapshot.diskSizeBytes} bytes`)
  }
  const oldSize = image.header.sizeBytes
  await changeImage(image, async refcounts => {
    const bitmaps = await suspendBitmaps(image)
    await countTree(image, refcounts, snapshot, 1)
    const clusters = Math.max(1, Math.ceil((l1Size * 8) / clusterSize))
    const start = await refcounts.allocate(clusters)
    await refcounts.write()
    const l1 = Buffer.alloc(clusters * clusterSize)
    ;(await image.read(snapshot.l1Offset, snapshot.l1Size * 8)).copy(l1)
    await image.write(start * clusterSize, l1)
    await image.changeHeader({
      l1Offset: start * clusterSize,
      l1Size,
      sizeBytes: snapshot.diskSizeBytes,
    })
    await countTree(image, refcounts, old, -1)
    await refcounts.add(
      old.l1Offset / clusterSize,
      Math.max(1, Math.ceil((old.l1Size * 8) / clusterSize)),
      -1,
    )
    await refcounts.write()
    await markTree(image, refcounts)
    await resizeBitmaps(image, refcounts, bitmaps, oldSize, true)
  })
}

/** Writes a new table, has the header name it, and gives the old one up. */
async function replaceTable(
  image: ImageHandle,
  refcounts: Refcounts,
  snapshots: readonly Snapshot[],
): Promise<void> {
  const { clusterSize } = image.header.geometry
  const { snapshotsOffset, snapshotCount } = image.header
  const oldBytes = snapshotCount === 0 ? 0 : encodedSize(await readSnapshots(image))
  const bytes = encodeSnapshots(snapshots)
  const start = bytes.length === 0 ? 0 : await refcounts.allocate(Math.ceil(bytes.length / clusterSize))
  await refcounts.write()
  if (bytes.length > 0) await image.write(start * clusterSize, padded(bytes, clusterSize))
  await image.changeHeader({ snapshotCount: snapshots.length, snapshotsOffset: start * clusterSize })
  if (oldBytes > 0) await refcounts.add(snapshotsOffset / clusterSize, Math.ceil(oldBytes / clusterSize), -1)
}

/** Of the table as it is in the file: extra data is as long as it is there. */
export function encodedSize(snapshots: readonly Snapshot[]): number {
  return snapshots.reduce((total, { id, name, extra }) => {
    const size = spec.SnapshotEntry.size + extra.length + Buffer.byteLength(id) + Buffer.byteLength(name)
    return total + Math.ceil(size / 8) * 8
  }, 0)
}

function padded(bytes: Buffer, clusterSize: number): Buffer {
  const whole = Buffer.alloc(Math.ceil(bytes.length / clusterSize) * clusterSize)
  bytes.copy(whole)
  return whole
}
