import { describe, expect, it } from 'vitest'
import { methods } from '../../src/app/methods.ts'
import { allCommands, NOUNS, nounsOf } from '../../src/cli/commands.ts'
import { commandHelp } from '../../src/cli/help.ts'
import { commandLine } from '../../src/cli/options.ts'
import { renderCliReference, renderRpcReference } from '../../src/cli/reference.ts'
import type { Declarations } from '../../src/rpc/method.ts'
import { expectDocument } from '../support/document.ts'

const table: Declarations = methods

describe('the generated reference', () => {
  it('of methods is up to date', () => {
    expectDocument('docs/reference/rpc.md', renderRpcReference(table))
  })

  it('of commands is up to date', () => {
    expectDocument('docs/reference/cli.md', renderCliReference(table))
  })
})

describe('the command line of the whole table', () => {
  it('has no two commands of one name, and none that another hides', () => {
    const names = allCommands(table).map(({ words }) => words.join(' '))
    expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([])
    const nouns = new Set(names.filter(name => name.includes(' ')).map(name => name.split(' ')[0]))
    expect(names.filter(name => nouns.has(name))).toEqual([])
  })

  it('says of each noun what it is about', () => {
    expect(nounsOf(table).filter(noun => NOUNS[noun] === undefined)).toEqual([])
  })

  it.each(table.map(method => [method.name, method] as const))(
    'of %s has each flag once and a help page',
    (_, method) => {
      const { options } = commandLine(method)
      const flags = options.flatMap(({ on, off }) => [...on, ...off])
      expect(flags.filter((flag, i) => flags.indexOf(flag) !== i)).toEqual([])
      expect(commandHelp({ words: [method.name], method })).toContain(method.summary)
      for (const name of ['json', 'rpc-socket', 'help'])
        expect(flags, 'a flag of qpair itself').not.toContain(name)
    },
  )
})
