import { expect, it } from 'vitest'
import { z } from 'zod'
import { commandHelp } from '../../src/cli/help.ts'
import { render } from '../../src/cli/output.ts'
import { method } from '../../src/rpc/method.ts'
import { RecordingTerminal } from './support.ts'

const row = z.object({ name: z.string(), disks: z.array(z.string()) })
const list = method({
  name: 'shelf_list',
  summary: 'Lists shelves.',
  params: z.object({
    all: z.boolean().default(false).describe('Empty ones too'),
    labels: z.array(z.string()).default([]).describe('Those with a label'),
    order: z.string().default('name').describe('What they are sorted by'),
    label_file: z.string().default('').describe('A file with labels'),
    again: z.boolean().default(false).describe('After an interruption').meta({ internal: true }),
  }),
  result: z.array(row),
  cli: { columns: ['name', 'disks'] },
  run: () => [],
})

it('says nothing of defaults that go without saying, nor of what only the daemon gives', () => {
  const help = commandHelp({ words: ['shelf', 'list'], method: list })
  expect(/Options\n([\s\S]*?)\n\n/.exec(help)![1]!.split('\n')).toEqual([
    '  --all              Empty ones too',
    '  --labels LABELS    Those with a label (may be repeated)',
    '  --order ORDER      What they are sorted by (default name)',
    '  --label-file FILE  A file with labels',
  ])
})

it('sets a list in a table apart by commas and blanks', () => {
  const terminal = new RecordingTerminal({ isTerminal: true })
  const shown = render(terminal, list, [{ name: 'a', disks: ['vda (x)', 'vdb'] }])
  expect(shown).toContain('a     vda (x), vdb\n')
})

it('tells a terminal that it is done where the method has words for that, and a script nothing', () => {
  const remove = method({
    name: 'shelf_remove',
    summary: 'Removes a shelf.',
    params: z.object({ shelf: z.string() }),
    result: z.literal(true),
    cli: { positional: ['shelf'], text: (_, { shelf }) => `Shelf ${shelf} is gone\n` },
    run: () => true as const,
  })
  const shown = [true, false].map(isTerminal =>
    render(new RecordingTerminal({ isTerminal }), remove, true, { shelf: 'top' }),
  )
  expect(shown).toEqual(['Shelf top is gone\n', ''])
})

it('breaks a wide line on a narrow terminal, unless it is one to copy', () => {
  const wide = `  shelf get ${'--name a '.repeat(20)}`.trimEnd()
  const [folded, kept] = [{}, { keepsLines: true } as const].map(lines => {
    const get = method({
      name: 'shelf_get',
      summary: 'Shows a shelf.',
      params: z.object({}),
      result: z.string(),
      cli: { ...lines, text: line => `${line}\n` },
      run: () => wide,
    })
    return render(new RecordingTerminal({ isTerminal: true, columns: 60 }), get, wide)
  })
  expect(folded!.split('\n').length).toBeGreaterThan(2)
  expect(kept).toBe(`${wide}\n`)
})
