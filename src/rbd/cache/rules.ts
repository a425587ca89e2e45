/**
 * Which of several sayings about the RBD cache is in force, and what that means for data: pure rules.
 *
 * From the weakest to the strongest (what the pool or the image says in the cluster always wins):
 *
 *   QEMU before 2.4    built in, cache mode, file, options of the name          the file wins
 *   QEMU from 2.4      built in, file, options of the name, cache mode          the cache mode wins
 *   qpair              off, options of the cluster or the name                  on only when asked for here
 *
 * The last order is `rbd_cache`'s alone: qpair has the other options from the file too, and from what is built in.
 */
import { builtInDefaults, CACHE_OPTIONS, type CacheOption, type CacheValues } from './options.ts'

export const RULES = ['qemu-before-2.4', 'qemu-2.4', 'qpair'] as const
export type Rule = (typeof RULES)[number]

export const CACHE_MODES = ['none', 'writeback', 'writethrough', 'directsync', 'unsafe'] as const
export type CacheMode = (typeof CACHE_MODES)[number]

/** Where a value comes from. `config` is what no file or option on this machine accounts for. */
export type SourceKind = 'default' | 'file' | 'option' | 'cache mode' | 'qpair' | 'config' | 'pool' | 'image'

export interface Value {
  readonly value: string
  readonly kind: SourceKind
  /** For people: a file and its line, an option, a mode. */
  readonly from: string
}

export type Values = Readonly<Record<CacheOption, Value>>
export type SomeValues = { readonly [option in CacheOption]?: Value }

export interface Sayings {
  readonly defaults: CacheValues
  /** How the defaults are known. */
  readonly defaultsFrom: string
  readonly file: SomeValues
  readonly options: SomeValues
  /** Set in the cluster, for the pool or the image. */
  readonly stored: SomeValues
  readonly mode: CacheMode
}

/**
 * What librbd keeps in memory of what it has acknowledged: nothing, what was written since the first flush and is not
 * flushed yet, or anything that is not.
 */
export type Retention = 'nothing' | 'after a flush' | 'always'

/** What librbd does with a write. */
export type Policy = 'off' | 'writethrough' | 'writeback' | 'writearound'

/**
 * What acknowledged writes a guest loses when the process is killed or the power fails: none, those behind its last
 * flush, or any that were not written out yet, flushed or not.
 */
export type Loss = 'nothing' | 'unflushed' | 'flushed'

export interface Judgement {
  readonly enabled: boolean
  readonly policy: Policy
  /**
   * Reads may be answered from it. Others hold the exclusive lock while they write, but librbd reads without that, and is
   * not told to forget.
   */
  readonly keepsReads: boolean
  /** Write-through until somebody flushes. */
  readonly untilFlush: boolean
  /** The guest is told of a volatile write cache. */
  readonly guestSeesCache: boolean
  /** A flush of the guest's reaches librbd, or every write is flushed. */
  readonly flushesHonoured: boolean
  /** Of a guest that flushes. */
  readonly loss: Loss
  /** Of a guest that never flushes. */
  readonly lossWithoutFlushes: Loss
  /** How many bytes at most. */
  readonly lossBytesMax: number
  readonly isDangerous: boolean
}

export const isOffByMode = (mode: CacheMode): boolean => mode === 'none' || mode === 'directsync'

/** QEMU flushes behind every write itself, and tells the guest of no cache. */
const isThroughByMode = (mode: CacheMode): boolean => mode === 'writethrough' || mode === 'directsync'

/**
 * A host that goes on through another gateway is not told what went with the cache of the first, so nobody gets one who
 * does not ask for it. A file is no such request: it is there for all clients, and was often written for QEMU.
 */
const OFF_UNLESS_ASKED: SomeValues = {
  rbd_cache: { value: 'false', kind: 'qpair', from: 'qpair, unless an option asks for the cache' },
}

/** What is in force for each option. */
export function resolve(rule: Rule, sayings: Sayings): Values {
  const { file, options, stored } = sayings
  const mode: SomeValues = { rbd_cache: fromMode(sayings.mode) }
  const layers: Record<Rule, readonly SomeValues[]> = {
    'qemu-before-2.4': [mode, file, options, stored],
    'qemu-2.4': [file, options, mode, stored],
    qpair: [file, OFF_UNLESS_ASKED, options, stored],
  }
  const strongest = (option: CacheOption): Value =>
    layers[rule].findLast(layer => layer[option] !== undefined)?.[option] ?? {
      value: sayings.defaults[option],
      kind: 'default',
      from: sayings.defaultsFrom,
    }
  return Object.fromEntries(CACHE_OPTIONS.map(option => [option, strongest(option)])) as Values
}

function fromMode(mode: CacheMode): Value {
  return { value: String(!isOffByMode(mode)), kind: 'cache mode', from: `cache mode ${mode}` }
}

/** What values mean, under a rule and a mode. */
export function judge(rule: Rule, mode: CacheMode, values: Values): Judgement {
  const enabled = values.rbd_cache.value === 'true'
  const policy = policyOf(values)
  const waits = values.rbd_cache_writethrough_until_flush.value === 'true'
  const isKeptBack = policy === 'writeback' || policy === 'writearound'
  const isQemu = rule !== 'qpair'
  const isThrough = isQemu && isThroughByMode(mode)
  const isDeaf = isQemu && mode === 'unsafe'
  const loss = isKeptBack && !isThrough ? lossOf(isDeaf, waits) : 'nothing'
  const lossWithoutFlushes = isKeptBack && !isThrough && !waits ? 'unflushed' : 'nothing'
  const contradicts = isKeptBack && isQemu && mode === 'none'
  return {
    enabled,
    policy,
    keepsReads: enabled && values.rbd_cache_policy.value !== 'writearound',
    untilFlush: isKeptBack && waits,
    guestSeesCache: isQemu ? !isThrough : enabled,
    flushesHonoured: !isDeaf,
    loss,
    lossWithoutFlushes,
    lossBytesMax: loss === 'nothing' ? 0 : Number(values.rbd_cache_max_dirty.value),
    isDangerous: loss === 'flushed' || lossWithoutFlushes !== 'nothing' || contradicts,
  }
}

function policyOf(values: Values): Policy {
  if (values.rbd_cache.value !== 'true') return 'off'
  if (Number(values.rbd_cache_max_dirty.value) === 0) return 'writethrough'
  return values.rbd_cache_policy.value as Policy
}

/** What an open image has in force, by the layer that decided. */
export interface LiveConfig {
  readonly stored: SomeValues
  readonly config: { readonly [option in CacheOption]?: string }
}

/** What is in force for an open image. What is not known counts as in Ceph's defaults, where the cache is on. */
export function liveValues({ stored, config }: LiveConfig): Values {
  const defaults = builtInDefaults('16')
  return Object.fromEntries(
    CACHE_OPTIONS.map(option => [
      option,
      stored[option] ?? { value: config[option] ?? defaults[option], kind: 'config', from: 'the client' },
    ]),
  ) as Values
}

export function retentionOf({ loss, lossWithoutFlushes }: Judgement): Retention {
  if (loss === 'nothing') return 'nothing'
  return lossWithoutFlushes === 'nothing' ? 'after a flush' : 'always'
}

/** While writes are kept back. */
function lossOf(isDeaf: boolean, waits: boolean): Loss {
  if (!isDeaf) return 'unflushed'
  // No flush reaches librbd, so it never leaves write-through.
  return waits ? 'nothing' : 'flushed'
}
