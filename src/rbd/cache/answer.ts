/** An explanation as it is sent, and as a terminal shows it. */
import { z } from 'zod'
import { formatSize } from '../../core/format-size.ts'
import type { Explanation, Ruling } from './explain.ts'
import { CACHE_OPTIONS } from './options.ts'
import { CACHE_MODES, type CacheMode, type Judgement, RULES } from './rules.ts'

const LOSSES = ['nothing', 'unflushed', 'flushed'] as const

const explainedOption = z.object({
  name: z.string(),
  value: z.string().describe('Sizes in bytes, times in seconds'),
  source: z.enum(['default', 'file', 'option', 'cache mode', 'qpair', 'config', 'pool', 'image']),
  from: z.string().describe('For people: file and line, option, mode'),
})

const explainedRule = z.object({
  rule: z.enum(RULES),
  rbd_cache: z.boolean(),
  policy: z.enum(['off', 'writethrough', 'writeback', 'writearound']),
  writethrough_until_flush: z.boolean().describe('It begins as write-through and stays so until a flush'),
  guest_cache_mode: z.enum(CACHE_MODES),
  guest_sees_write_cache: z.boolean(),
  flushes_honoured: z.boolean(),
  loss: z.enum(LOSSES).describe('What a guest that flushes loses when killed or without power'),
  loss_without_flushes: z.enum(LOSSES).describe('The same of a guest that never flushes'),
  loss_bytes_max: z.int(),
  verdict: z.string(),
  dangerous: z.boolean(),
  danger: z.string().describe('Why; empty when it is not'),
  options: z.array(explainedOption),
  advice: z.array(z.string()),
  notes: z.array(z.string()),
})

export const cacheAnswer = z.object({
  image: z.string(),
  bdev: z.string().nullable().describe('The device through which the image is open here'),
  user: z.string(),
  defaults: z.string().describe('Which librbd the defaults are of'),
  conf: z.string().nullable().describe('The ceph.conf that counts'),
  searched: z.array(z.string()),
  problems: z.array(z.string()).describe('What stands in the file and does not count, and why'),
  rules: z.array(explainedRule),
})

export type CacheAnswer = z.output<typeof cacheAnswer>
type RuleAnswer = CacheAnswer['rules'][number]

export interface Subject {
  readonly path: string
  readonly bdev: string | null
  readonly user: string
  readonly mode: CacheMode
}

export function answerOf({ path, bdev, user, mode }: Subject, explanation: Explanation): CacheAnswer {
  const { defaultsFrom, confPath = null, searched, problems, rulings } = explanation
  return {
    image: path,
    bdev,
    user,
    defaults: defaultsFrom,
    conf: confPath,
    searched: [...searched],
    problems: [...problems],
    rules: rulings.map(ruling => ruleAnswer(mode, ruling)),
  }
}

function ruleAnswer(mode: CacheMode, { rule, judgement, values, danger, advice, notes }: Ruling): RuleAnswer {
  return {
    rule,
    rbd_cache: judgement.enabled,
    policy: judgement.policy,
    writethrough_until_flush: judgement.untilFlush,
    guest_cache_mode: mode,
    guest_sees_write_cache: judgement.guestSeesCache,
    flushes_honoured: judgement.flushesHonoured,
    loss: judgement.loss,
    loss_without_flushes: judgement.lossWithoutFlushes,
    loss_bytes_max: judgement.lossBytesMax,
    verdict: verdictOf(judgement),
    dangerous: judgement.isDangerous,
    danger,
    options: CACHE_OPTIONS.map(name => {
      const { value, kind, from } = values[name]
      return { name, value, source: kind, from }
    }),
    advice: [...advice],
    notes: [...notes],
  }
}

function verdictOf({ loss, lossWithoutFlushes, lossBytesMax }: Judgement): string {
  const size = formatSize(lossBytesMax)
  if (loss === 'nothing') return 'nothing that was acknowledged is lost'
  if (loss === 'flushed') return `up to ${size} of acknowledged writes are lost, flushed or not`
  const others = lossWithoutFlushes === 'nothing' ? 'loses nothing' : 'loses as much'
  return `up to ${size} that was acknowledged and not yet flushed is lost; a guest that never flushes ${others}`
}

const RULE_TITLES: Record<RuleAnswer['rule'], string> = {
  'qemu-before-2.4': 'QEMU before 2.4, where the file wins',
  'qemu-2.4': 'QEMU from 2.4 on, where the cache mode wins',
  qpair: 'qpair, where the cache is off unless an option asks for it',
}

const POLICIES: Record<RuleAnswer['policy'], string> = {
  off: 'off',
  writethrough: 'on, write-through',
  writeback: 'on, write-back',
  writearound: 'on, write-around (write-back that caches no reads)',
}

/** For a terminal. */
export function answerText(answer: CacheAnswer): string {
  const { image, bdev, user, conf, defaults, searched, problems, rules } = answer
  const places = searched.length === 0 ? 'none is read' : `none; looked at ${searched.join(', ')}`
  const lines = [
    `${image}${bdev === null ? '' : ` (bdev ${bdev})`} as client.${user}, defaults ${defaults}`,
    `ceph.conf: ${conf ?? places}`,
    ...problems.map(problem => `  Attention: ${problem}.`),
    ...rules.flatMap(ruleText),
  ]
  return lines.map(line => `${line}\n`).join('')
}

function ruleText(answer: RuleAnswer): string[] {
  const { options, policy, writethrough_until_flush: untilFlush } = answer
  const nameWidth = Math.max(...options.map(({ name }) => name.length))
  const valueWidth = Math.max(...options.map(({ value }) => value.length))
  return [
    '',
    `${RULE_TITLES[answer.rule]}, cache mode ${answer.guest_cache_mode}`,
    `  RBD cache: ${POLICIES[policy]}${untilFlush ? ', write-through until the first flush' : ''}`,
    `  The guest: told of ${answer.guest_sees_write_cache ? 'a' : 'no'} volatile write cache, its flushes are ${answer.flushes_honoured ? 'honoured' : 'dropped'}.`,
    `  Killed or without power: ${answer.verdict}.`,
    ...(answer.dangerous ? [`  DANGEROUS: ${answer.danger}.`] : []),
    ...answer.advice.map(line => `  To do: ${line}.`),
    ...answer.notes.map(line => `  Note: ${line}.`),
    ...options.map(
      ({ name, value, from }) => `    ${name.padEnd(nameWidth)}  ${value.padEnd(valueWidth)}  ${from}`,
    ),
  ]
}
