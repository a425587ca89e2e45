/** What librbd does with snapshots and clones, and what it tells of an image. */
import type { LibraryHandle } from 'koffi'
import { blocking, i32At, PAGE_SIZE, stringAt, textAt, u64At, withPage } from './blocking.ts'
import { viewAt } from './memory.ts'
import { progressCallback, reportingProgress } from './progress.ts'

export interface SnapshotInfo {
  readonly id: number
  readonly name: string
  readonly sizeBytes: number
}

/** An image option that the image, its pool or the client's configuration sets. */
export interface ImageConfig {
  readonly value: string
  readonly source: 'config' | 'pool' | 'image'
}

/** Called now and then while work is done: the objects that are done with, and how many there are. */
export type Report = (done: number, total: number) => void

/** Results are 0 or more, or -errno. */
export interface Snapshots {
  createSnapshot(image: number, name: string): Promise<number>
  removeSnapshot(image: number, name: string): Promise<number>
  rollBack(image: number, name: string, report: Report): Promise<number>
  protectSnapshot(image: number, name: string): Promise<number>
  unprotectSnapshot(image: number, name: string): Promise<number>
  /** Or -errno. */
  listSnapshots(image: number): Promise<SnapshotInfo[] | number>
  /** 1 or 0, or -errno. */
  isProtected(image: number, name: string): Promise<number>
  /** `USER_SNAPSHOT`, another kind, or -errno. */
  snapshotKind(image: number, id: number): Promise<number>
  /** Seconds since 1970, or -errno. */
  snapshotTime(image: number, id: number): Promise<number>
  clone(
    parentPool: number,
    parent: string,
    snapshot: string,
    childPool: number,
    child: string,
    /** 2: the snapshot need not be protected, and can be removed from sight; Ceph's own choice when absent. */
    format?: 2,
  ): Promise<number>
  /** `pool/image` of those that stand on the image's snapshots, or -errno. */
  listChildren(image: number): Promise<string[] | number>
  flatten(image: number, report: Report): Promise<number>
  /** Switches features on or off. */
  updateFeatures(image: number, bits: number, isOn: boolean): Promise<number>
  /** Has the map of objects made anew. */
  rebuildObjectMap(image: number): Promise<number>
  /** Bits of `RBD_FEATURE_*`, or -errno. */
  features(image: number): Promise<number>
  /** Bytes, or -errno. */
  objectSize(image: number): Promise<number>
  /** `pool/image@snapshot`, or undefined for an image that is no clone. */
  parentOf(image: number): Promise<string | undefined>
  /** A pool's number, or -errno. */
  dataPoolId(image: number): number
  /** `rbd_*` options as they are in force for the image. */
  imageConfig(image: number): Promise<ReadonlyMap<string, ImageConfig>>
}

/** One that somebody made and sees; others belong to groups and mirrors, or only clones still need them. */
export const USER_SNAPSHOT = 0

const SNAPSHOT_SIZE = 24
const CONFIG_SIZE = 24
const SOURCES = ['config', 'pool', 'image'] as const
/** `rbd_image_info_t`. */
const STAT_SIZE = 160
const OBJECT_SIZE_AT = 8
const NAME_ROOM = 512
/** `RBD_IMAGE_OPTION_CLONE_FORMAT`. */
const CLONE_FORMAT = 12
/** `rbd_linked_image_spec_t`: the pool's number, its name, namespace, the image's id, its name, and whether it is in the trash. */
const LINKED_IMAGE_SIZE = 48

export function snapshotCalls(rbd: LibraryHandle): Snapshots {
  const named = (name: string) => blocking(rbd.func(`int ${name}(uintptr_t, const char *)`))
  const isProtected = blocking(rbd.func('int rbd_snap_is_protected(uintptr_t, const char *, uintptr_t)'))
  const timestamp = blocking(rbd.func('int rbd_snap_get_timestamp(uintptr_t, uint64_t, uintptr_t)'))
  const getKind = blocking(rbd.func('int rbd_snap_get_namespace_type(uintptr_t, uint64_t, uintptr_t)'))
  const getFeatures = blocking(rbd.func('int rbd_get_features(uintptr_t, uintptr_t)'))
  const updateFeatures = blocking(rbd.func('int rbd_update_features(uintptr_t, uint64_t, uint8_t)'))
  const stat = blocking(rbd.func('int rbd_stat(uintptr_t, uintptr_t, size_t)'))
  const number = (call: ReturnType<typeof blocking>, image: number, at: number, ...rest: number[]) =>
    withPage(async out => {
      const result = await call(image, out, ...rest)
      return result < 0 ? result : u64At(out + at)
    })
  return {
    createSnapshot: named('rbd_snap_create'),
    removeSnapshot: named('rbd_snap_remove'),
    protectSnapshot: named('rbd_snap_protect'),
    unprotectSnapshot: named('rbd_snap_unprotect'),
    isProtected: (image, name) =>
      withPage(async out => {
        const result = await isProtected(image, name, out)
        return result < 0 ? result : i32At(out)
      }),
    snapshotTime: (image, id) =>
      withPage(async out => {
        const result = await timestamp(image, id, out)
        return result < 0 ? result : u64At(out)
      }),
    snapshotKind: (image, id) =>
      withPage(async out => {
        const result = await getKind(image, id, out)
        return result < 0 ? result : i32At(out)
      }),
    features: image => number(getFeatures, image, 0),
    updateFeatures: (image, bits, isOn) => updateFeatures(image, bits, isOn ? 1 : 0),
    objectSize: image => number(stat, image, OBJECT_SIZE_AT, STAT_SIZE),
    dataPoolId: rbd.func('int64_t rbd_get_data_pool_id(uintptr_t)'),
    ...longCalls(rbd),
    ...cloneCalls(rbd),
    ...listCalls(rbd),
  }
}

/** Those that tell how far they are, where that can be heard. */
function longCalls(rbd: LibraryHandle): Pick<Snapshots, 'flatten' | 'rollBack' | 'rebuildObjectMap'> {
  const flatten = blocking(rbd.func('int rbd_flatten(uintptr_t)'))
  const flattenTelling = blocking(rbd.func('int rbd_flatten_with_progress(uintptr_t, uintptr_t, uintptr_t)'))
  const rollBack = blocking(rbd.func('int rbd_snap_rollback(uintptr_t, const char *)'))
  const rollBackTelling = blocking(
    rbd.func('int rbd_snap_rollback_with_progress(uintptr_t, const char *, uintptr_t, uintptr_t)'),
  )
  const rebuild = blocking(rbd.func('int rbd_rebuild_object_map(uintptr_t, uintptr_t, uintptr_t)'))
  const callback = progressCallback()
  if (callback === 0) {
    return {
      flatten: image => flatten(image),
      rollBack: (image, name) => rollBack(image, name),
      // It calls back without asking: the map stays marked as invalid, which librbd then does without.
      rebuildObjectMap: async () => 0,
    }
  }
  return {
    rebuildObjectMap: image =>
      reportingProgress(
        () => {},
        cell => rebuild(image, callback, cell),
      ),
    flatten: (image, report) => reportingProgress(report, cell => flattenTelling(image, callback, cell)),
    rollBack: (image, name, report) =>
      reportingProgress(report, cell => rollBackTelling(image, name, callback, cell)),
  }
}

function cloneCalls(rbd: LibraryHandle): Pick<Snapshots, 'clone' | 'parentOf'> {
  const clone = blocking(
    rbd.func('int rbd_clone3(uintptr_t, const char *, const char *, uintptr_t, const char *, uintptr_t)'),
  )
  const createOptions = rbd.func('void rbd_image_options_create(uintptr_t)')
  const destroyOptions = rbd.func('void rbd_image_options_destroy(uintptr_t)')
  const setNumber = rbd.func('int rbd_image_options_set_uint64(uintptr_t, int, uint64_t)')
  const parentInfo = blocking(
    rbd.func('int rbd_get_parent_info(uintptr_t, uintptr_t, size_t, uintptr_t, size_t, uintptr_t, size_t)'),
  )
  return {
    clone: (parentPool, parent, snapshot, childPool, child, format) =>
      withPage(async page => {
        createOptions(page)
        const options = u64At(page)
        if (format !== undefined) setNumber(options, CLONE_FORMAT, format)
        try {
          return await clone(parentPool, parent, snapshot, childPool, child, options)
        } finally {
          destroyOptions(options)
        }
      }),
    parentOf: image =>
      withPage(async page => {
        const [pool, name, snapshot] = [page, page + NAME_ROOM, page + 2 * NAME_ROOM]
        const result = await parentInfo(image, pool, NAME_ROOM, name, NAME_ROOM, snapshot, NAME_ROOM)
        if (result < 0) return undefined
        return `${textAt(pool, NAME_ROOM)}/${textAt(name, NAME_ROOM)}@${textAt(snapshot, NAME_ROOM)}`
      }),
  }
}

function listCalls(rbd: LibraryHandle): Pick<Snapshots, 'listSnapshots' | 'listChildren' | 'imageConfig'> {
  const list = blocking(rbd.func('int rbd_snap_list(uintptr_t, uintptr_t, uintptr_t)'))
  const listEnd = rbd.func('void rbd_snap_list_end(uintptr_t)')
  const config = blocking(rbd.func('int rbd_config_image_list(uintptr_t, uintptr_t, uintptr_t)'))
  const children = blocking(rbd.func('int rbd_list_children3(uintptr_t, uintptr_t, uintptr_t)'))
  const childrenEnd = rbd.func('void rbd_linked_image_spec_list_cleanup(uintptr_t, size_t)')
  const configEnd = rbd.func('void rbd_config_image_list_cleanup(uintptr_t, int)')
  const room = PAGE_SIZE - 8
  return {
    listSnapshots: image =>
      withPage(async page => {
        const entries = page + 8
        viewAt(page, 4).setInt32(0, Math.floor(room / SNAPSHOT_SIZE), true)
        const count = await list(image, entries, page)
        // ERANGE: there are more than fit, close to seven hundred.
        if (count < 0) return count
        const snapshots = Array.from({ length: count }, (_, i) => {
          const at = entries + i * SNAPSHOT_SIZE
          return { id: u64At(at), sizeBytes: u64At(at + 8), name: stringAt(u64At(at + 16)) }
        })
        if (count > 0) listEnd(entries)
        return snapshots
      }),
    listChildren: image =>
      withPage(async page => {
        const entries = page + 8
        viewAt(page, 8).setBigUint64(0, BigInt(Math.floor(room / LINKED_IMAGE_SIZE)), true)
        // ERANGE: there are more than fit, close to three hundred and fifty.
        const result = await children(image, entries, page)
        if (result < 0) return result
        const count = u64At(page)
        const names = Array.from({ length: count }, (_, i) => {
          const at = entries + i * LINKED_IMAGE_SIZE
          return `${stringAt(u64At(at + 8))}/${stringAt(u64At(at + 32))}`
        })
        childrenEnd(entries, count)
        return names
      }),
    imageConfig: image =>
      withPage(async page => {
        const entries = page + 8
        const found = new Map<string, ImageConfig>()
        viewAt(page, 4).setInt32(0, Math.floor(room / CONFIG_SIZE), true)
        if ((await config(image, entries, page)) < 0) return found
        const count = i32At(page)
        for (let at = entries; at < entries + count * CONFIG_SIZE; at += CONFIG_SIZE) {
          const source = SOURCES[i32At(at + 16)] ?? 'config'
          found.set(stringAt(u64At(at)), { value: stringAt(u64At(at + 8)), source })
        }
        configEnd(entries, count)
        return found
      }),
  }
}
