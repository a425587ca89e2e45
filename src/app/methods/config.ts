import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import { withoutSecrets } from '../../rpc/without-secrets.ts'
import type { KeptCalls } from '../kept-calls.ts'

export interface NeedsKeptCalls {
  readonly kept: KeptCalls
}

const configGetKept = method({
  name: 'config_get_kept',
  summary:
    'Lists saved calls that failed at start, why they failed, and which of them are tried again by themselves.',
  params: z.object({}),
  result: z.array(
    z.object({
      id: z.int(),
      subsystem: z.string(),
      method: z.string(),
      params: z.record(z.string(), z.unknown()),
      reason: z.string().describe('Why it failed last'),
      waiting: z.boolean().describe('Tried again by itself until it succeeds'),
      tries: z.int().describe('How often it has failed'),
      since: z.string().describe('As in ISO 8601'),
    }),
  ),
  cli: { columns: ['id', 'method', 'waiting', 'tries', 'reason'], commands: ['config kept'] },
  run: (_, { kept }: NeedsKeptCalls) =>
    kept.list().map(({ id, subsystem, call, reason, isWaiting, tries, since }) => ({
      ...{
        id,
        subsystem,
        method: call.method,
        params: withoutSecrets(call.params ?? {}),
        reason,
        waiting: isWaiting,
        tries,
      },
      since: since.toISOString(),
    })),
})

const configForgetKept = method({
  name: 'config_forget_kept',
  summary: 'Drops a saved call that failed at start: it is not tried again, and not saved any more.',
  params: z.object({ id: z.int().min(1).describe('Its number in config_get_kept') }),
  result: done,
  errors: { ENOENT: 'no call of that number is kept', EEXIST: 'it has succeeded in this moment' },
  saves: true,
  // It may have to wait for an attempt that is under way.
  concurrent: true,
  cli: { positional: ['id'], commands: ['config forget'] },
  async run({ id }, { kept }: NeedsKeptCalls) {
    await kept.forget(id)
    return true as const
  },
})

export const configMethods = [configGetKept, configForgetKept]
