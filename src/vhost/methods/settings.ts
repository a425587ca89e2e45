import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { done, uint32 } from '../../rpc/params.ts'
import { ctrlr, UNKNOWN, type VhostContext } from './context.ts'

const setCoalescing = method({
  name: 'vhost_controller_set_coalescing',
  summary: 'Delays interrupts of busy queues, so that one tells of several requests.',
  params: z.object({
    ctrlr,
    delay_base_us: uint32.describe('At the threshold; grows with the load above it. 0: no delay'),
    iops_threshold: uint32.describe('Completions a second of a queue, from 100, above which it begins'),
  }),
  result: done,
  errors: { ENODEV: UNKNOWN, EINVAL: 'a value is out of its range' },
  saves: true,
  cli: { positional: ['ctrlr', 'delay_base_us', 'iops_threshold'], commands: ['vhost set-coalescing'] },
  async run({ ctrlr: name, delay_base_us, iops_threshold }, { vhost }: VhostContext) {
    await vhost.setCoalescing(name, delay_base_us, iops_threshold)
    return true as const
  },
})

const setPolling = method({
  name: 'vhost_controller_set_polling',
  summary: 'Says how long a queue without requests is polled before its guest is asked for notifications.',
  params: z.object({
    ctrlr,
    quiet_us: uint32.max(1_000_000).describe('In microseconds; 50 at first, 0: not polled when it is empty'),
  }),
  result: done,
  errors: { ENODEV: UNKNOWN },
  saves: true,
  cli: { positional: ['ctrlr', 'quiet_us'], commands: ['vhost set-polling'] },
  async run({ ctrlr: name, quiet_us }, { vhost }: VhostContext) {
    await vhost.setPolling(name, quiet_us)
    return true as const
  },
})

const setOptions = method({
  name: 'vhost_set_options',
  summary: 'Sets what holds for every controller, from the next front end on.',
  params: z.object({
    require_sealed_memory: z
      .boolean()
      .optional()
      .describe(
        'Refuse guest memory that could be truncated, which would end the daemon; at first false: one line in the log',
      ),
  }),
  result: done,
  state: 'any',
  saves: true,
  run({ require_sealed_memory }, { vhost }: VhostContext) {
    if (require_sealed_memory !== undefined) vhost.setOptions({ requireSealedMemory: require_sealed_memory })
    return true as const
  },
})

export const settingsMethods = [setCoalescing, setPolling, setOptions]
