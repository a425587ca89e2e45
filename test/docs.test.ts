/** What the documents name exists: files, headings, commands, methods and scripts. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { methods } from '../src/app/methods.ts'
import { type Declared, findMethod, findTyped, nounsOf } from '../src/cli/commands.ts'
import { CONFIG_COMMANDS } from '../src/cli/config-commands.ts'
import { OWN_COMMANDS } from '../src/cli/help.ts'
import { commandLine } from '../src/cli/options.ts'
import { parseArgs } from '../src/cli/parse-args.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

interface Page {
  readonly path: string
  readonly text: string
}

const pages: Page[] = [
  ...readdirSync(ROOT).filter(name => name.endsWith('.md')),
  ...readdirSync(join(ROOT, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter(name => name.endsWith('.md'))
    .map(name => join('docs', name)),
].map(path => ({ path, text: readFileSync(join(ROOT, path), 'utf8') }))

/** Without fenced code, whose brackets are no links and whose # are no headings. */
const prose = (text: string): string => text.replace(/^( *)```[^\n]*\n[\s\S]*?^\1```/gm, '')

/** As GitHub makes them: lower case, punctuation dropped, spaces to dashes, a number behind what repeats. */
function anchorsOf(text: string): Set<string> {
  const anchors = new Set<string>()
  for (const [, title] of prose(text).matchAll(/^#{1,6} +(.+?) *$/gm)) {
    const plain = title!.replace(/\[([^\]]*)\]\([^)]*\)/g, '$1').toLowerCase()
    const slug = plain.replace(/[^\p{L}\p{N}\s_-]/gu, '').replace(/\s/g, '-')
    let anchor = slug
    for (let n = 1; anchors.has(anchor); n++) anchor = `${slug}-${n}`
    anchors.add(anchor)
  }
  return anchors
}

/** What is wrong with the links of a page, as `link: why`. */
function deadLinks({ path, text }: Page): string[] {
  const dead: string[] = []
  for (const [, link] of prose(text).matchAll(/\]\(([^)\s]+)\)/g)) {
    if (/^[a-z]+:/.test(link!)) continue
    const [file = '', anchor] = link!.split('#')
    const target = file === '' ? path : join(dirname(path), file)
    const place = join(ROOT, target)
    if (file !== '' && !existsSync(place)) dead.push(`${link}: no file ${target}`)
    else if (anchor !== undefined && (file === '' || statSync(place).isFile())) {
      const anchors = file === '' ? anchorsOf(text) : anchorsOf(readFileSync(place, 'utf8'))
      if (!anchors.has(anchor)) dead.push(`${link}: no heading #${anchor}`)
    }
  }
  return dead
}

/** What is typed in fenced code, behind a prompt: continued lines joined, without comments, redirections and `&`. */
function typedLines(text: string): string[] {
  const blocks = [...text.matchAll(/^( *)```[^\n]*\n([\s\S]*?)^\1```/gm)].map(match => match[2]!)
  const lines = blocks.flatMap(block => [...block.replace(/\\\n\s*/g, ' ').matchAll(/^\s*[$#] (.+)$/gm)])
  return lines.map(match => match[1]!.replace(/ (?:[#&>|]|2>).*$/, '').trim())
}

/** Command lines of qpair and of rpc.py, as `qpair` would have them. */
function commandLines(text: string): string[] {
  const typed = typedLines(text).flatMap(line => {
    const own = /^(?:qpair|node bin\/qpair\.js) (.+)$/.exec(line)
    const spdk = /^(?:scripts\/)?rpc\.py (.+)$/.exec(line)
    return own !== null ? [own[1]!] : spdk !== null ? [`rpc ${spdk[1]}`] : []
  })
  const quoted = [...prose(text).matchAll(/`(?:node bin\/)?qpair(?:\.js)? ([^`]+)`/g)]
  return [...typed, ...quoted.map(match => match[1]!.replace(/\s+/g, ' ').trim())]
}

const PLACEHOLDERS = new Set([
  '…',
  'DIR',
  'FILE',
  'HOSTNQN',
  'METHOD',
  'NAME',
  'NOUN',
  'NQN',
  'SHELL',
  'VERB',
])
const isPlaceholder = (word: string): boolean => PLACEHOLDERS.has(word)

/** Why a command line cannot be typed, or undefined. Placeholders in capitals stand for anything. */
function fault(line: string): string | undefined {
  const words = (line.match(/'[^']*'|\S+/g) ?? []).map(word => word.replace(/^'|'$/g, ''))
  dropOptions(words, ['-r', '--rpc-socket', '--timeout'])
  const [first, second = ''] = words
  if (first === undefined || isPlaceholder(first)) return undefined
  if (first === 'rpc') {
    const [name, ...rest] = dropOptions(words.slice(1), ['-s', '-p', '-t', '-r'])
    if (name === undefined || isPlaceholder(name) || CONFIG_COMMANDS.has(name)) return undefined
    const method = findMethod(methods, name)
    return method === undefined ? `no method ${name}` : wrongArguments(method, rest)
  }
  const own = OWN_COMMANDS.some(([usage]) => usage.split(' ')[0] === first) || CONFIG_COMMANDS.has(first)
  if (own) return undefined
  const typed = findTyped(methods, first, words.slice(1))
  if (typed !== undefined) return wrongArguments(typed.command.method, typed.behind)
  if (!nounsOf(methods).includes(first)) return `no command ${first}`
  return second === '' || second.startsWith('-') || isPlaceholder(second)
    ? undefined
    : `no command ${first} ${second}`
}

/** Takes options off the front, with the values of those that have one. */
function dropOptions(words: string[], withValue: readonly string[]): string[] {
  while (words[0]?.startsWith('-')) words.splice(0, withValue.includes(words[0]) ? 2 : 1)
  return words
}

/** A command without arguments only names it; one with arguments is parsed as it would be. */
function wrongArguments(method: Declared, given: readonly string[]): string | undefined {
  const words = given.filter(word => word !== '--json')
  const isShown = words.length === 0 || words.some(isPlaceholder) || words.includes('--help')
  if (isShown) return undefined
  try {
    parseArgs(commandLine(method), words)
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

/**
 * Names that look like methods: begun as SPDK's are, with an underscore. Those that the documents name because they are
 * absent, parameters and properties are listed here.
 */
const METHOD_LIKE =
  /\b(?:bdev|nvmf|nbd|framework|log|notify|thread|spdk|workload|rpc|vhost|iscsi|keyring)_[a-z0-9_]*[a-z0-9]\b/g
const NOT_METHODS = new Set(['bdev_name', 'bdev_retry_count', 'nvmf_tgt', 'nvmf_tcp', 'rpc_socket'])
const ABSENT = new Set(['nbd_start_disk', 'nvmf_create_target', 'spdk_tgt'])

const isWrittenByHand = ({ path }: Page): boolean => !path.startsWith('docs/reference')

describe('the documents', () => {
  it.each(pages)('$path has links that lead somewhere', page => {
    expect(deadLinks(page)).toEqual([])
  })

  it.each(pages.filter(isWrittenByHand))('$path names commands that exist', ({ text }) => {
    const faults = commandLines(text).flatMap(line => {
      const why = fault(line)
      return why === undefined ? [] : [`qpair ${line}: ${why}`]
    })
    expect(faults).toEqual([])
  })

  it.each(pages.filter(isWrittenByHand))('$path names methods that exist', ({ text }) => {
    const named = [...text.matchAll(METHOD_LIKE)].map(([name]) => name)
    const isKnown = (name: string): boolean =>
      NOT_METHODS.has(name) ||
      ABSENT.has(name) ||
      CONFIG_COMMANDS.has(name) ||
      findMethod(methods, name) !== undefined ||
      // `bdev_aio_*` stands for the methods that begin so; the driver's own parameters follow the same pattern.
      methods.some(method => method.name.startsWith(`${name}_`))
    expect(named.filter(name => !isKnown(name))).toEqual([])
  })

  it('name as absent only what is absent', () => {
    expect([...ABSENT].filter(name => findMethod(methods, name) !== undefined)).toEqual([])
  })

  it('name scripts of package.json that exist', () => {
    const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { scripts: object }
    const missing = pages.flatMap(({ path, text }) =>
      [...text.matchAll(/\bnpm run ([a-z][\w:-]*)/g)]
        .map(match => match[1]!)
        .filter(name => !Object.hasOwn(scripts, name))
        .map(name => `${path}: npm run ${name}`),
    )
    expect(missing).toEqual([])
    expect(Object.hasOwn(scripts, 'start') && Object.hasOwn(scripts, 'test')).toBe(true)
  })
})

describe('these checks', () => {
  const page = (text: string): Page => ({ path: relative(ROOT, join(ROOT, 'docs/made-up.md')), text })

  it('see a dead link and a dead anchor', () => {
    expect(deadLinks(page('[a](nowhere.md) [b](#nothing) [c](../README.md#nothing)'))).toHaveLength(3)
    expect(deadLinks(page('# A *bold* `head`, twice\n[b](#a-bold-head-twice) [c](../README.md)'))).toEqual([])
  })

  it('see a command and a method that do not exist', () => {
    expect(fault('bdev malloc-creat 64 512')).toBe('no command bdev malloc-creat')
    expect(fault('rpc -s /tmp/a bdev_get_bdev')).toBe('no method bdev_get_bdev')
    expect(fault('bdef list')).toBe('no command bdef')
    expect(fault('rpc nvmf_create_transport -t TCP --no-such-flag 1')).toContain('no-such-flag')
    const text =
      '# qpair is a title\n```console\n# qpair bdev list > all\n```\n`qpair -r X rpc bdev_get_bdevs`'
    expect(commandLines(text)).toEqual(['bdev list', '-r X rpc bdev_get_bdevs'])
    expect(fault('-r /run/q.sock bdev list')).toBeUndefined()
  })
})
