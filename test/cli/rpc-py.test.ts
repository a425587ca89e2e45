import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { methods } from '../../src/app/methods.ts'
import { type CliOption, commandLine } from '../../src/cli/options.ts'
import { parseArgs } from '../../src/cli/parse-args.ts'
import type { Declarations } from '../../src/rpc/method.ts'

/** What SPDK's rpc.py (26.09-pre, August 2026) takes: words by position, and what each flag sets. */
type Flags = Record<
  string,
  { words: string[]; flags: Record<string, `${string} ${'true' | 'false' | 'value'}`> }
>

const rpcPy: Flags = JSON.parse(readFileSync(new URL('rpc-py-flags.json', import.meta.url), 'utf8'))
const table: Declarations = methods
const shared = table.filter(({ name }) => name in rpcPy).map(method => [method.name, method] as const)

/** What a flag would set here, in the notation of the file. */
function effect(options: readonly CliOption[], flag: string): string | undefined {
  const name = flag.replace(/^--?/, '').replaceAll('_', '-')
  const named = (names: readonly string[]): boolean => names.some(each => each.replaceAll('_', '-') === name)
  const option = options.find(({ on, off }) => named(on) || named(off))
  if (option === undefined) return undefined
  const param = option.path.split('.').at(-1)
  if (option.kind !== 'switch') return `${param} value`
  return `${param} ${named(option.on)}`
}

describe("SPDK's rpc.py", () => {
  it.each(shared)('%s has the same words and flags here', (name, method) => {
    const { positional, options } = commandLine(method)
    const { words, flags } = rpcPy[name]!
    const effects = Object.fromEntries(Object.keys(flags).map(flag => [flag, effect(options, flag)]))
    expect(effects).toEqual(flags)
    // A word that only is an option there may be a word here, behind the others.
    expect(positional.slice(0, words.length).map(({ path }) => path.split('.').at(-1))).toEqual(words)
  })

  // The lines of guides that people follow, as they stand there.
  it.each([
    ['nvmf_create_transport', '-t RDMA -m 64', { trtype: 'RDMA', max_io_qpairs_per_ctrlr: 64 }],
    [
      'nvmf_create_subsystem',
      'nqn.2021-06.io.spdk:ctc_rbd0 -a -s SPDK_BDEV_0 -i 32761 -I 65519',
      {
        nqn: 'nqn.2021-06.io.spdk:ctc_rbd0',
        allow_any_host: true,
        serial_number: 'SPDK_BDEV_0',
        min_cntlid: 32761,
        max_cntlid: 65519,
      },
    ],
    [
      'nvmf_subsystem_add_ns',
      'nqn.2021-06.io.spdk:ctc_rbd0 rbd0',
      { nqn: 'nqn.2021-06.io.spdk:ctc_rbd0', namespace: { bdev_name: 'rbd0' } },
    ],
    [
      'nvmf_subsystem_add_listener',
      'nqn.2021-06.io.spdk:ctc_rbd0 -t rdma -a 55.243.92.20 -s 4420',
      {
        nqn: 'nqn.2021-06.io.spdk:ctc_rbd0',
        listen_address: { trtype: 'rdma', traddr: '55.243.92.20', trsvcid: '4420' },
      },
    ],
    ['nvmf_get_subsystems', 'nqn.2021-06.io.spdk:ctc_rbd0', { nqn: 'nqn.2021-06.io.spdk:ctc_rbd0' }],
    ['bdev_nvme_get_controllers', '-n Nvme0', { name: 'Nvme0' }],
    ['bdev_nvme_set_options', '-p 100 -d -r -1', { bdev_retry_count: -1 }],
    ['nvmf_set_crdt', '-t1 10 -t2 20', { crdt1: 10, crdt2: 20 }],
    [
      'vhost_scsi_controller_add_target',
      'bus0 -1 Malloc0',
      { ctrlr: 'bus0', scsi_target_num: -1, bdev_name: 'Malloc0' },
    ],
    ['bdev_malloc_create', '-b Malloc0 64 512', { name: 'Malloc0', num_blocks: 131072, block_size: 512 }],
  ])('%s %s', (name, line, params) => {
    const method = table.find(each => each.name === name)!
    expect(parseArgs(commandLine(method), line.split(' '))).toEqual(params)
  })
})
