import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { currentLogSettings, LOG_FLAGS, type LogFlag, LogLevel, logSettings } from '../../core/log.ts'
import type { ReactorGroup } from '../../reactor/group.ts'
import { method } from '../../rpc/method.ts'

export interface NeedsReactors {
  readonly reactors: ReactorGroup
}

const level = z.enum(Object.keys(LogLevel) as (keyof typeof LogLevel)[])

/** Every thread has its own copy of the settings. */
async function publish({ reactors }: NeedsReactors): Promise<true> {
  await reactors.broadcast('reactor.log', currentLogSettings())
  return true
}

const logSetPrintLevel = method({
  name: 'log_set_print_level',
  summary: 'Sets the least level that is printed to stderr.',
  params: z.object({ level: level.describe('Everything at this level and above is printed') }),
  result: z.literal(true),
  state: 'any',
  cli: { positional: ['level'] },
  run({ level }, context: NeedsReactors) {
    logSettings.printLevel = level
    return publish(context)
  },
})

const logGetPrintLevel = method({
  name: 'log_get_print_level',
  summary: 'Tells the least level that is printed to stderr.',
  params: z.object({}),
  result: z.string(),
  state: 'any',
  run: () => logSettings.printLevel,
})

const logSetLevel = method({
  name: 'log_set_level',
  summary: 'Sets the least level that goes to the system journal, when the daemon runs under systemd.',
  params: z.object({ level: level.describe('Everything at this level and above is logged') }),
  result: z.literal(true),
  state: 'any',
  cli: { positional: ['level'] },
  run({ level }, context: NeedsReactors) {
    logSettings.level = level
    return publish(context)
  },
})

const logGetLevel = method({
  name: 'log_get_level',
  summary: 'Tells the least level that goes to the system journal.',
  params: z.object({}),
  result: z.string(),
  state: 'any',
  run: () => logSettings.level,
})

const flagParams = z.object({ flag: z.string().describe(`A component, or "all": ${LOG_FLAGS.join(', ')}`) })

/** The flags that a name stands for. Throws `RpcError` for a name that is none. */
export function flagsNamed(name: string): readonly LogFlag[] {
  if (name === 'all') return LOG_FLAGS
  const flag = LOG_FLAGS.find(known => known === name)
  if (flag === undefined) {
    throw new RpcError(
      'INVALID_PARAMS',
      `no log flag is called ${name}: there are ${LOG_FLAGS.join(', ')} and all`,
    )
  }
  return [flag]
}

const logSetFlag = method({
  name: 'log_set_flag',
  summary: 'Makes a component log everything, down to DEBUG.',
  params: flagParams,
  result: z.literal(true),
  state: 'any',
  cli: { positional: ['flag'] },
  run({ flag }, context: NeedsReactors) {
    for (const name of flagsNamed(flag)) logSettings.flags.add(name)
    return publish(context)
  },
})

const logClearFlag = method({
  name: 'log_clear_flag',
  summary: 'Makes a component log no more than the levels say.',
  params: flagParams,
  result: z.literal(true),
  state: 'any',
  cli: { positional: ['flag'] },
  run({ flag }, context: NeedsReactors) {
    for (const name of flagsNamed(flag)) logSettings.flags.delete(name)
    return publish(context)
  },
})

const logGetFlags = method({
  name: 'log_get_flags',
  summary: 'Tells which components log everything.',
  params: z.object({}),
  result: z.record(z.string(), z.boolean()),
  state: 'any',
  run: () => Object.fromEntries(LOG_FLAGS.map(flag => [flag, logSettings.flags.has(flag)])),
})

const logEnableTimestamps = method({
  name: 'log_enable_timestamps',
  summary: 'Switches the time before each log line on or off.',
  params: z.object({ enabled: z.boolean().describe('Whether each line starts with the time') }),
  result: z.literal(true),
  cli: { flags: { enabled: { on: ['e', 'timestamps'], off: ['d', 'no-timestamps'] } } },
  run({ enabled }, context: NeedsReactors) {
    logSettings.timestamps = enabled
    return publish(context)
  },
})

export const logMethods = [
  logSetPrintLevel,
  logGetPrintLevel,
  logSetLevel,
  logGetLevel,
  logSetFlag,
  logClearFlag,
  logGetFlags,
  logEnableTimestamps,
]
