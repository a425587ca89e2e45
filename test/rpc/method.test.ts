import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { type MethodTable, method } from '../../src/rpc/method.ts'

const rename = method({
  name: 'disk_rename',
  summary: 'Renames a disk.',
  params: z.object({ name: z.string(), address: z.strictObject({ host: z.string() }).optional() }),
  result: z.array(z.object({ old_name: z.string() })),
  errors: { ENODEV: 'no disk has that name' },
  cli: {
    positional: ['name'],
    flags: { name: 'b', 'address.host': ['a', 'host'] },
    columns: ['old_name', { title: 'LENGTH', value: row => row.old_name.length }],
  },
  run: ({ name }, { disks }: { disks: Map<string, string> }) => [{ old_name: disks.get(name) ?? name }],
})

const ping = method({
  name: 'ping_get',
  summary: 'Answers.',
  params: z.object({}),
  result: z.literal(true),
  run: () => true as const,
})

describe('method', () => {
  it('fills in what the author left out', () => {
    expect(rename).toMatchObject({
      state: 'runtime',
      relaxed: false,
      saves: false,
      concurrent: false,
      aliases: [],
    })
    expect(ping.concurrent).toBe(true)
  })

  it('composes tables of methods that need different parts of one context', () => {
    const table = [rename, ping] satisfies MethodTable<{ disks: Map<string, string>; other: number }>
    // @ts-expect-error the context lacks the disks that disk_rename needs
    const wrong = [rename, ping] satisfies MethodTable<{ other: number }>
    expect(table.map(({ name }) => name)).toEqual(wrong.map(({ name }) => name))
  })

  it('keeps the types of parameters and result for its callers', () => {
    const rows: readonly { old_name: string }[] | Promise<{ old_name: string }[]> = rename.run(
      { name: 'a' },
      { disks: new Map([['a', 'b']]) },
    )
    expect(rows).toEqual([{ old_name: 'b' }])
  })

  it.each([
    ['a bad name', { name: 'Disk' }],
    ['a command line that names no parameter', { name: 'disk', cli: { positional: ['nmae'] } }],
    ['an ignored parameter that is also taken', { name: 'disk', ignored: ['name'] }],
  ])('refuses %s when the module is loaded', (_, part) => {
    const declare = (): unknown =>
      method({
        summary: '',
        params: z.object({ name: z.string() }),
        result: z.literal(true),
        run: () => true as const,
        // @ts-expect-error the compiler finds what is checked here once more for JavaScript authors
        cli: {},
        ...part,
      })
    expect(declare).toThrow()
  })
})

describe('a computed word', () => {
  it('may be positional, and names a parameter that exists', () => {
    const create = method({
      name: 'disk_create',
      summary: '',
      params: z.object({ num_blocks: z.int(), block_size: z.int() }),
      result: z.literal(true),
      cli: {
        positional: ['total_size', 'block_size'],
        computed: {
          total_size: { summary: 'MiB', param: 'num_blocks', compute: mib => mib * 2048 },
        },
      },
      run: () => true as const,
    })
    expect(create.cli.computed?.['total_size']?.compute(1, {})).toBe(2048)
  })
})
