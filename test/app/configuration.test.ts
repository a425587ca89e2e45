import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { Configuration, type ConfigurationOptions } from '../../src/app/configuration.ts'
import { KeptCalls } from '../../src/app/kept-calls.ts'
import { parseConfig, readConfig, type SavedConfig, writeConfig } from '../../src/app/state-file.ts'
import { TimerHeap } from '../../src/core/clock.ts'
import { RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import type { Configurable, MethodCall } from '../../src/rpc/config.ts'

const directory = mkdtempSync(join(tmpdir(), 'qpair-state-'))
afterAll(() => rmSync(directory, { recursive: true }))

let lines: string[]
beforeEach(() => {
  lines = []
  logSettings.write = line => void lines.push(line)
})

/** A part whose state is the list of calls that were made to it. */
class Part implements Configurable {
  readonly subsystem: string
  readonly dependsOn: readonly string[]
  calls: MethodCall[] = []

  constructor(subsystem: string, ...dependsOn: string[]) {
    this.subsystem = subsystem
    this.dependsOn = dependsOn
  }

  config(): MethodCall[] {
    return this.calls
  }
}

const clock = new TimerHeap(() => nowUs)
let nowUs = 0

/** Of these parts; `isSlow` are calls whose end the start does not wait for. */
function configurationOf(
  parts: readonly Configurable[],
  { isSlow = () => false, isKeptElsewhere = () => false }: Partial<ConfigurationOptions> = {},
): Configuration {
  const kept = new KeptCalls({ isSlow, run: async () => {}, save: async () => {}, clock })
  return new Configuration(parts, { kept, isSlow, isKeptElsewhere, clock })
}

const bdevCall: MethodCall = { method: 'bdev_x_create', params: { name: 'b' } }
const nvmfCall: MethodCall = { method: 'nvmf_x', params: { nqn: 'n' } }

function saved(...subsystems: [string, MethodCall[]][]): SavedConfig {
  return { subsystems: subsystems.map(([subsystem, config]) => ({ subsystem, config })) }
}

describe('the saved configuration', () => {
  it('leaves out what is kept elsewhere', () => {
    const part = new Part('nvmf')
    part.calls = [bdevCall, nvmfCall]
    const configuration = configurationOf([part], { isKeptElsewhere: ({ method }) => method === 'nvmf_x' })
    expect(configuration.snapshot()).toEqual(saved(['nvmf', [bdevCall]]))
    expect(configuration.configOf('nvmf')).toEqual([bdevCall, nvmfCall])
  })

  it('lists each part after those it depends on, whatever order they are given in', () => {
    const configuration = configurationOf([new Part('nvmf', 'bdev'), new Part('bdev')])
    expect(configuration.subsystems).toEqual([
      { subsystem: 'bdev', depends_on: [] },
      { subsystem: 'nvmf', depends_on: ['bdev'] },
    ])
  })

  it('is made again in the order of need, whatever order the file has', async () => {
    const configuration = configurationOf([new Part('bdev'), new Part('nvmf', 'bdev')])
    const made: string[] = []
    await configuration.restore(
      saved(['nvmf', [nvmfCall]], ['bdev', [bdevCall]]),
      async method => void made.push(method),
    )
    expect(made).toEqual(['bdev_x_create', 'nvmf_x'])
  })

  it('goes on after a call that fails, says which, and keeps it until it was made', async () => {
    const bdev = new Part('bdev')
    const configuration = configurationOf([bdev])
    const other: MethodCall = { method: 'bdev_y_create', params: { name: 'c' } }
    await configuration.restore(saved(['bdev', [bdevCall, other]]), async (method, params) => {
      if (method === 'bdev_x_create') throw new RpcError('ENOENT', 'b: /mnt/b.img is not there')
      bdev.calls.push({ method, params: params as Record<string, unknown> })
    })
    expect(lines.join('')).toContain(
      'could not restore bdev_x_create {"name":"b"}: b: /mnt/b.img is not there',
    )
    expect(configuration.snapshot()).toEqual(saved(['bdev', [other, bdevCall]]))

    bdev.calls.push(bdevCall)
    expect(configuration.snapshot()).toEqual(saved(['bdev', [other, bdevCall]]))
    bdev.calls.pop()
    expect(configuration.snapshot()).toEqual(saved(['bdev', [other]]))
  })

  it('does not wait long for a call that takes long, and keeps it until it has ended', async () => {
    const configuration = configurationOf([new Part('bdev')], {
      isSlow: ({ method }) => method === 'bdev_x_create',
    })
    const made: string[] = []
    let finish = (): void => {}
    const other: MethodCall = { method: 'bdev_y_create' }
    const restored = configuration.restore(saved(['bdev', [bdevCall, other]]), async method => {
      made.push(method)
      if (method !== 'bdev_x_create') return
      await new Promise<void>(resolve => {
        finish = resolve
      })
    })
    expect(made).toEqual(['bdev_x_create'])
    nowUs += 5_000_000
    clock.fireDue()
    await restored
    expect(made).toEqual(['bdev_x_create', 'bdev_y_create'])
    expect(lines.join('')).toContain('restoring bdev_x_create {"name":"b"} takes long: not waiting for it')
    expect(configuration.snapshot()).toEqual(saved(['bdev', [bdevCall]]))
    finish()
    await expect.poll(() => configuration.snapshot()).toEqual(saved(['bdev', []]))
  })

  it('lets no host in before the namespaces are there, whatever order the file has', async () => {
    const nvmf = new Part('nvmf')
    const configuration = configurationOf([nvmf])
    const listener: MethodCall = { method: 'nvmf_subsystem_add_listener', params: { nqn: 'n' } }
    const namespace: MethodCall = {
      method: 'nvmf_subsystem_add_ns',
      params: { nqn: 'n', namespace: { bdev_name: 'b', nsid: 1 } },
    }
    const made: string[] = []
    await configuration.restore(saved(['nvmf', [nvmfCall, listener, namespace]]), async method => {
      made.push(method)
      if (method === 'nvmf_subsystem_add_ns') throw new RpcError('ENODEV', 'there is no bdev b')
    })
    expect(made).toEqual(['nvmf_x', 'nvmf_subsystem_add_ns'])
    expect(configuration.snapshot()).toEqual(saved(['nvmf', [namespace, listener]]))
  })

  it('has no place for a call that failed when another has made a thing of that name', async () => {
    const bdev = new Part('bdev')
    const configuration = configurationOf([bdev])
    await configuration.restore(saved(['bdev', [bdevCall]]), async () => {
      throw new RpcError('ENOENT', 'b: /mnt/b.img is not there')
    })
    bdev.calls.push({ method: 'bdev_x_create', params: { name: 'b', filename: '/srv/b.img' } })
    expect(configuration.snapshot()).toEqual(saved(['bdev', bdev.calls]))
  })

  it('of somebody else ends at the first call that fails', async () => {
    const configuration = configurationOf([new Part('bdev')])
    const load = configuration.load(saved(['bdev', [bdevCall]]), async () => {
      throw new RpcError('ENOENT', 'no such file')
    })
    await expect(load).rejects.toThrow('bdev: bdev_x_create failed: no such file')
  })

  it('of SPDK loads although modules and options in it have no counterpart here', async () => {
    const configuration = configurationOf([new Part('bdev')])
    const file = saved(
      ['accel', [{ method: 'accel_set_options' }]],
      ['bdev', [{ method: 'bdev_raid_set_options' }, bdevCall, { method: 'bdev_wait_for_examine' }]],
    )
    const made: string[] = []
    await configuration.load(file, async method => {
      if (method !== 'bdev_x_create') throw new RpcError('METHOD_NOT_FOUND', 'Method not found')
      made.push(method)
    })
    expect(made).toEqual(['bdev_x_create'])
    expect(lines.join('')).toContain('the configuration of accel (1 calls) has no counterpart here')
  })

  it('names the parts there are when one is asked for that is none', () => {
    expect(() => configurationOf([new Part('bdev')]).configOf('disk')).toThrow(
      "Subsystem 'disk' not found: there are bdev",
    )
  })
})

describe('the file', () => {
  const path = join(directory, 'config.json')

  it('is read as it was written, and is the owner’s alone', async () => {
    const config = saved(['bdev', [bdevCall]])
    await writeConfig(path, config)
    expect(await readConfig(path)).toEqual(config)
    expect(await readConfig(join(directory, 'none.json'))).toBeUndefined()
  })

  it('stays whole when a save fails half-way', async () => {
    await writeConfig(path, saved(['bdev', [bdevCall]]))
    const before = readFileSync(path, 'utf8')
    // What a machine that stopped in the middle of a save would leave behind.
    writeFileSync(join(directory, '.config.json.new'), '{"subsys')
    expect(await readConfig(path)).toEqual(JSON.parse(before))
    await writeConfig(path, saved())
    expect(await readConfig(path)).toEqual(saved())
  })

  it('takes batches and empty sections as SPDK writes them', () => {
    const text = JSON.stringify({
      subsystems: [
        { subsystem: 'bdev', config: [[bdevCall, nvmfCall]] },
        { subsystem: 'vmd', config: null },
      ],
    })
    expect(parseConfig(text, 'f')).toEqual(saved(['bdev', [bdevCall, nvmfCall]], ['vmd', []]))
  })

  it.each([
    ['{', 'f is no configuration file: '],
    ['[]', 'it has no list "subsystems"'],
    ['{"subsystems":[{}]}', 'an entry of "subsystems" has no name "subsystem"'],
    [
      '{"subsystems":[{"subsystem":"bdev","config":[{"params":{}}]}]}',
      'an entry of "bdev" has no "method": {"params":{}}',
    ],
  ])('refuses %s', (text, message) => {
    expect(() => parseConfig(text, 'f')).toThrow(message)
  })

  it.skipIf(process.getuid?.() === 0)('says when it may not be read (root may read everything)', async () => {
    writeFileSync(path, '{}')
    chmodSync(path, 0)
    await expect(readConfig(path)).rejects.toThrow(`cannot read the configuration ${path}`)
  })
})
