/** The house rules that a program can check. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** Layers from the bottom. One may import lower ones and itself; those on one line are strangers. */
const LAYERS = [
  ['core'],
  ['spec', 'rpc'],
  ['sys'],
  ['reactor'],
  ['bdev'],
  ['nvme', 'rbd', 'nvmf', 'nbd', 'vhost', 'virtio', 'workload'],
  ['gateway', 'libvirt'],
  ['volume', 'host'],
  ['vm'],
  ['app'],
  ['cli'],
]

/** Files beside the layers: what the package exports. */
const EXPORTS = ['client.ts', 'driver.ts']

/** Packages, and the only layers that may import them. */
const PACKAGES: Record<string, readonly string[]> = {
  koffi: ['sys'],
  '@xmldom/xmldom': ['libvirt'],
  zod: [
    'rpc',
    'bdev',
    'nvme',
    'rbd',
    'nvmf',
    'nbd',
    'vhost',
    'virtio',
    'workload',
    'gateway',
    'libvirt',
    'volume',
    'host',
    'vm',
    'app',
    'cli',
  ],
}

const FILE_LINES_MAX = 600
const FUNCTION_LINES_MAX = 70

interface Source {
  readonly path: string
  readonly layer: string
  readonly text: string
}

function sourcesBelow(directory: string): Source[] {
  return readdirSync(join(ROOT, directory), { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && entry.name.endsWith('.ts'))
    .map(entry => {
      const path = relative(ROOT, join(entry.parentPath, entry.name))
      return { path, layer: path.split('/')[1]!, text: readFileSync(join(ROOT, path), 'utf8') }
    })
}

const rank = (layer: string): number => LAYERS.findIndex(layers => layers.includes(layer))
const mayImport = (from: string, to: string): boolean => from === to || rank(to) < rank(from)
const sources = sourcesBelow('src')
const everything = [
  ...sources,
  ...sourcesBelow('test'),
  ...sourcesBelow('bench'),
  ...sourcesBelow('examples'),
]

/** Every module that a file imports or re-exports, static or dynamic. */
function importsOf(text: string): string[] {
  return [...text.matchAll(/(?:^|\n)(?:import|export)[^'"]*? from '([^']+)'|\bimport\('([^']+)'\)/g)].map(
    ([, fixed, dynamic]) => (fixed ?? dynamic)!,
  )
}

/** Functions and methods longer than allowed, as `name: lines`, by the indentation that the formatter guarantees. */
function longFunctions(text: string): string[] {
  const lines = text.split('\n')
  const found: string[] = []
  for (const [start, line] of lines.entries()) {
    const head =
      /^(\s*)(?:export )?(?:default )?(?:private |static |override |async |get |set )*(?:function\*? )?(#?[\w$]+)(?:<[^()]*>)?\(.*\{$/.exec(
        line,
      ) ?? /^(\s*)(?:export )?const ([\w$]+) = .*=> \{$/.exec(line)
    if (head === null || /^(?:if|for|while|switch|catch|describe|it|function)$/.test(head[2]!)) continue
    const length = lines.slice(start).findIndex(next => next.startsWith(`${head[1]}}`)) + 1
    if (length > FUNCTION_LINES_MAX) found.push(`${head[2]}: ${length} lines`)
  }
  return found
}

describe('layers', () => {
  it.each(sources)('$path imports only what its layer may', ({ path, layer, text }) => {
    if (!EXPORTS.includes(layer)) expect(rank(layer), `${layer} is a known layer`).toBeGreaterThanOrEqual(0)
    for (const name of importsOf(text)) {
      if (name.startsWith('node:') || EXPORTS.includes(layer)) continue
      const target = normalize(join(dirname(path), name)).split('/')[1]!
      const allowed = name.startsWith('.') ? mayImport(layer, target) : PACKAGES[name]?.includes(layer)
      expect(allowed, `${path} imports ${name}`).toBe(true)
    }
  })

  it('sees an import that breaks the rule', () => {
    expect(mayImport('nbd', 'nvmf')).toBe(false)
    expect(mayImport('bdev', 'nvmf')).toBe(false)
    expect(importsOf("import { a } from '../b/c.ts'\nconst d = await import('./e.ts')")).toEqual([
      '../b/c.ts',
      './e.ts',
    ])
  })
})

describe('sizes', () => {
  it.each(sources.filter(({ layer }) => layer !== 'spec'))('$path can be read in one sitting', ({ text }) => {
    expect(text.split('\n').length).toBeLessThanOrEqual(FILE_LINES_MAX)
    expect(longFunctions(text)).toEqual([])
  })

  it('sees a function that is too long', () => {
    const body = '  work()\n'.repeat(FUNCTION_LINES_MAX)
    expect(longFunctions(`export function long(a: number): void {\n${body}}\n`)).toEqual(['long: 72 lines'])
  })
})

describe('words', () => {
  it.each(everything)('$path has no leftovers', ({ path, text }) => {
    // Spelled apart, so that this file passes its own rule.
    const leftovers = new RegExp(['TO', 'DO\\b|FIX', 'ME\\b|\\bX', 'XX\\b'].join(''))
    expect(leftovers.test(text), `${path} has a leftover`).toBe(false)
    expect(/\b(?:it|describe|test)\.only\(/.test(text), `${path} runs only one test`).toBe(false)
  })
})
