/** The answer to "which cache is in force here, why, and what can be lost". */
import type { ClusterOptions } from '../cluster.ts'
import { CACHE_OPTIONS } from './options.ts'
import {
  type CacheMode,
  isOffByMode,
  type Judgement,
  judge,
  type LiveConfig,
  type Rule,
  resolve,
  type Sayings,
  type Value,
  type Values,
} from './rules.ts'
import { fromOptions, readConf, readDefaults } from './sources.ts'

export interface Question {
  readonly cluster: ClusterOptions
  readonly mode: CacheMode
  readonly rules: readonly Rule[]
  /** A Ceph release whose librbd is meant; the one on this machine by default. */
  readonly release: string | undefined
  /** Of an image that is open here. */
  readonly live: LiveConfig | undefined
  /** It was opened with another file than the one asked about. */
  readonly isOtherFile: boolean
}

export interface Ruling {
  readonly rule: Rule
  readonly judgement: Judgement
  readonly values: Values
  /** Why it is dangerous; empty when it is not. */
  readonly danger: string
  readonly advice: readonly string[]
  readonly notes: readonly string[]
}

export interface Explanation {
  /** Which librbd the defaults are of. */
  readonly defaultsFrom: string
  readonly confPath: string | undefined
  readonly searched: readonly string[]
  readonly problems: readonly string[]
  readonly rulings: readonly Ruling[]
}

/** Throws `RpcError` ENOENT for a named file that cannot be read. */
export async function explain(question: Question): Promise<Explanation> {
  const { cluster, live, mode } = question
  const defaults = await readDefaults(question.release)
  const conf = readConf(cluster)
  const options = fromOptions(cluster.options)
  const sayings: Sayings = {
    defaults: defaults.values,
    defaultsFrom: defaults.from,
    file: conf.values,
    options: options.values,
    stored: live?.stored ?? {},
    mode,
  }
  return {
    defaultsFrom: defaults.from,
    confPath: conf.path,
    searched: conf.searched,
    problems: [...conf.problems, ...options.problems],
    rulings: question.rules.map(rule => ruling(rule, question, sayings)),
  }
}

function ruling(rule: Rule, { live, mode, isOtherFile }: Question, sayings: Sayings): Ruling {
  const values = corrected(rule, resolve(rule, sayings), isOtherFile ? undefined : live?.config)
  const judgement = judge(rule, mode, values)
  return {
    rule,
    judgement,
    values,
    danger: judgement.isDangerous ? dangerOf(mode, judgement) : '',
    advice: adviceOf(rule, mode, judgement, values),
    notes: [
      ...(rule === 'qpair' ? notesOfQpair(judgement, values, sayings) : notesOfQemu(rule, sayings)),
      ...(live === undefined ? [NOT_SEEN] : []),
    ],
  }
}

/**
 * An open image knows better what its client has been told: by the monitors, which nothing here can see, or by a file
 * that has changed since.
 */
function corrected(rule: Rule, values: Values, seen: LiveConfig['config'] = {}): Values {
  return Object.fromEntries(
    CACHE_OPTIONS.map(option => [option, correctedValue(rule, values[option], seen[option])]),
  ) as Values
}

function correctedValue(rule: Rule, given: Value, value: string | undefined): Value {
  if (value === undefined || value === given.value) return given
  if (given.kind === 'default') {
    return {
      value,
      kind: 'config',
      from: 'the monitors (ceph config dump), or a file as it was when connecting',
    }
  }
  // Only qpair's own client is the one that is open.
  if (rule !== 'qpair' || given.kind !== 'file') return given
  const from = `the file as it was when connecting; ${given.from} says ${given.value} now`
  return { value, kind: 'config', from }
}

function dangerOf(mode: CacheMode, { loss, lossWithoutFlushes }: Judgement): string {
  if (loss === 'flushed') return "the guest's flushes are dropped, and librbd keeps writes back"
  if (lossWithoutFlushes !== 'nothing') {
    return 'librbd keeps writes back from the first one on, so a guest that never flushes loses them'
  }
  return `cache mode ${mode} promises that the host keeps nothing back, and librbd does: whoever leaves out flushes because of that mode (barriers off, no fsync) loses what is said to be written`
}

function adviceOf(rule: Rule, mode: CacheMode, judgement: Judgement, values: Values): string[] {
  const { isDangerous, loss, lossWithoutFlushes, enabled, flushesHonoured } = judgement
  const cache = values.rbd_cache
  const untilFlush = values.rbd_cache_writethrough_until_flush
  const advice: string[] = []
  if (isDangerous && rule !== 'qpair' && mode === 'none') {
    advice.push(
      `set rbd_cache = false (now true: ${cache.from}), or use cache mode writeback and let the guest flush`,
    )
  }
  if (lossWithoutFlushes !== 'nothing') {
    advice.push(`set rbd_cache_writethrough_until_flush = true (now false: ${untilFlush.from})`)
  }
  if (loss === 'flushed') advice.push('use cache mode writeback, which passes flushes on')
  else if (!flushesHonoured && enabled) {
    advice.push('use cache mode writeback: without flushes librbd never leaves write-through')
  }
  if (rule !== 'qpair' && !enabled && !isOffByMode(mode)) {
    advice.push(`data is safe; to have the cache, set rbd_cache = true (now false: ${cache.from})`)
  }
  if (advice.length > 0) advice.push('open the image again on a new connection: before that no change counts')
  return advice
}

const NOT_SEEN =
  'what monitors, pool or image have set in the cluster is seen only for an image that is open here: name its bdev'

function notesOfQemu(rule: Rule, { file, options }: Sayings): string[] {
  if (rule !== 'qemu-before-2.4' || file.rbd_cache === undefined || options.rbd_cache !== undefined) return []
  return [
    'librados from Ceph 13 on keeps what QEMU set against the file: with it the cache mode wins here too',
  ]
}

function notesOfQpair(
  { keepsReads, loss }: Judgement,
  { rbd_cache: cache }: Values,
  { file }: Sayings,
): string[] {
  const notes = [
    'a cache mode of the guest does not reach librbd; its flushes and FUA writes do, and a vhost guest that cannot flush has every write flushed',
  ]
  if (cache.kind === 'qpair') {
    const { rbd_cache: inFile } = file
    const unheard = inFile?.value === 'true' ? `${inFile.from} does not count here; ` : ''
    notes.push(
      `${unheard}to have the cache, give rbd_cache=true: --config-param of bdev_rbd_register_cluster, or an option of the image itself`,
    )
  }
  if (loss !== 'nothing') {
    notes.push(
      'a host that goes on through another gateway, or connects again to this daemon when that was killed, is not told what is lost',
    )
  }
  if (loss !== 'nothing' || keepsReads)
    notes.push('a subsystem that several gateways may serve refuses the device, as long as the cache is on')
  return notes
}
