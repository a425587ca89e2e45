import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { methods } from '../../src/app/methods.ts'
import { commandsOf, findMethod, findTyped } from '../../src/cli/commands.ts'
import { findIn, methodLists } from '../../src/cli/method-lists.ts'

const SOURCES = fileURLToPath(new URL('../../src', import.meta.url))

/** The lists without the whole table behind them. */
const nearOnly = { ...methodLists, all: async () => [] }

/** As one types them: `rbd snapshot-create` and `rbd snapshot create`. */
const commandLines = methods.flatMap(method =>
  commandsOf(method).flatMap(({ words }) => [words, words.join(' ').replaceAll('-', ' ').split(' ')]),
)

describe('the lists of methods', () => {
  it('have every command where it is looked for, and the same one as the whole table', async () => {
    for (const [noun, ...args] of commandLines) {
      const near = await findIn(nearOnly, [noun, ...args].join('-'), table => findTyped(table, noun!, args))
      expect(near?.command.method.name, `qpair ${noun} ${args.join(' ')} is looked for in its list`).toBe(
        findTyped(methods, noun!, args)?.command.method.name,
      )
    }
  })

  it('have every method where it is looked for', async () => {
    for (const { name } of methods) {
      const near = await findIn(nearOnly, name, table => findMethod(table, name))
      expect(near?.name, `qpair rpc ${name} is looked for in its list`).toBe(name)
    }
  })
})

/** What a module imports when it is loaded: not its types, and not what it imports later. */
function importsOf(path: string): string[] {
  const text = readFileSync(join(SOURCES, path), 'utf8')
  return [...text.matchAll(/^(?:import|export) (?!type )[^'"`;]*?from '([^']+)'/gm)].map(([, name]) =>
    name!.startsWith('.') ? join(dirname(path), name!) : name!,
  )
}

/** The way from a module to each one that is loaded with it. */
function loadedWith(path: string, way = path, ways = new Map<string, string>()): Map<string, string> {
  if (ways.has(path)) return ways
  ways.set(path, way)
  if (!path.endsWith('.ts')) return ways
  for (const name of importsOf(path)) loadedWith(name, `${way} > ${name}`, ways)
  return ways
}

/** Declared beside what moves data, or asks the libraries of Ceph and iSCSI. */
const WITH_NATIVE_CODE = [
  'bdev/methods.ts',
  'rbd/methods.ts',
  'volume/methods/pool-sources.ts',
  'volume/methods/transfers.ts',
]

const lists = [
  ...readFileSync(join(SOURCES, 'cli/method-lists.ts'), 'utf8').matchAll(/import\('\.\.\/(.*\.ts)'\)/g),
].map(([, path]) => path!)
const lean = lists.filter(path => ![...WITH_NATIVE_CODE, 'app/methods.ts'].includes(path))

describe('what a command loads', () => {
  it('is nothing of the daemon before it is known which method is called', () => {
    const layers = new Set([...loadedWith('cli/main.ts').keys()].map(path => path.split('/')[0]!))
    expect([...layers].filter(name => !name.startsWith('node:')).sort()).toEqual([
      'cli',
      'core',
      'rpc',
      'zod',
    ])
  })

  it.each(['cli/main.ts', 'cli/completion.ts', ...lean])(
    '%s has no native code, hence no data path',
    path => {
      expect(loadedWith(path).get('koffi')).toBe(undefined)
    },
  )

  it.each(WITH_NATIVE_CODE)('%s has it: the test above would see it', path => {
    expect(loadedWith(path).get('koffi')).toBeDefined()
  })
})
