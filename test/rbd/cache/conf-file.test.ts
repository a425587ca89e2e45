/** What librados 16.2.15 made of the same files is written beside each; the last test asks the librados at hand. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { ConfFile, FATAL_REASON } from '../../../src/rbd/cache/conf-file.ts'
import { builtInDefaults, CACHE_OPTIONS, parseValue } from '../../../src/rbd/cache/options.ts'
import { type Librbd, librbd } from '../../../src/sys/librbd.ts'

const SECTIONS = ['client.admin', 'client', 'global']

describe('a value and its line', () => {
  it.each([
    ['blanks in a name', '[client]\nrbd cache = true\n', 'true', 2],
    ['several, and tabs', '[client]\n  rbd \t cache   =   true  \n', 'true', 2],
    ['underscores', '\n\n[global]\nrbd_cache=true\n', 'true', 4],
    ['no section', 'rbd_cache = true\n', 'true', 1],
    ['comments', '# a\n[client] ; b\n;c\nrbd_cache = true # d\n', 'true', 4],
    ['a comment that goes on at no backslash', '# a \\\n[client]\nrbd_cache = true\n', 'true', 3],
    ['a backslash that goes on', '[client]\nrbd_cache = \\\ntr\\\nue\n', 'true', 2],
    ['quotes', '[client]\nrbd_cache = "true" # a\n', 'true', 2],
    ['an escaped character', '[client]\nrbd_cache = a\\#b\n', 'a#b', 2],
    ['lines that end as on Windows', '[client]\r\nrbd cache = true\r\n', 'true', 2],
    ['the last of one section', '[client]\nrbd cache = a\n[mon]\n[client]\nrbd_cache = b\n', 'b', 5],
    ['the most special section', '[client.admin]\nrbd_cache = a\n[client]\nrbd_cache = b\n', 'a', 2],
    ['a comment that nothing ends', '[client]\nrbd_cache = true\n# a', 'true', 2],
    ['letters in comments and quotes', '[client]\n# ü\nx = "ü"\nrbd_cache = true # ü\n', 'true', 4],
  ])('%s', (_what, text, value, line) => {
    const conf = new ConfFile(text)
    expect(conf.problem).toBeUndefined()
    expect(conf.get('rbd_cache', SECTIONS)).toEqual({ text: value, line })
  })

  it.each([
    ['of other clients', '[client.other]\nrbd_cache = true\n'],
    ['of daemons', '[mon]\nrbd_cache = true\n'],
    ['in a section with blanks in its name', '[ client ]\nrbd_cache = true\n'],
    ['in a section in capitals', '[CLIENT]\nrbd_cache = true\n'],
    ['with a dash', '[client]\nrbd-cache = true\n'],
    ['in capitals', '[client]\nRBD Cache = true\n'],
  ])('not %s', (_what, text) => {
    const conf = new ConfFile(text)
    expect(conf.problem).toBeUndefined()
    expect(conf.get('rbd_cache', SECTIONS)).toBeUndefined()
  })
})

describe('a file that librados refuses', () => {
  it.each([
    ['a word', '[client]\nrbd_cache = true\nword\n', 3, /neither/],
    ['no name', '[client]\n= true\n', 2, /neither/],
    ['a section without end', '[client\n', 1, /neither/],
    ['words behind a section', '[client] x\n', 1, /neither/],
    ['an option behind a section', '[client]rbd_cache=true\n', 1, /neither/],
    ['no newline at the end', '[client]\nrbd_cache = true', 2, /add a newline/],
    ['blanks at the end', '[client]\n  ', 2, /add a newline/],
    ['a quote without end', '[client]\nx = "a\n', 2, /quote/],
    ['a quote that a comment cuts', '[client]\nx = "a # b"\n', 2, /quote/],
    ['words behind a quote', '[client]\nx = "a" b\n', 2, /quote/],
    ['a value that goes on behind the end', '[client]\nx = a\\\n', 2, /goes on/],
    ['a section that does not begin its line', ' [client]\n', 1, /neither/],
    ['an option before the sections', 'x = 1\n[client]\n', 1, /before the first/],
    ['blanks before the sections', '  \n[client]\n', 1, /before the first/],
    ['a letter outside of ASCII', '[client]\nx = ü\n', 2, /not ASCII/],
    ['a byte order mark', '\ufeff[client]\nx = 1\n', 1, /not ASCII/],
  ])('%s', (_what, text, line, reason) => {
    const { problem } = new ConfFile(text)
    expect(problem).toEqual({ line, reason: expect.stringMatching(reason) })
  })
})

function load(): Librbd | undefined {
  try {
    return librbd()
  } catch {
    // Not installed: what is written above has to do.
    return undefined
  }
}

const library = load()
const directory = mkdtempSync(join(tmpdir(), 'qpair-conf-'))
afterAll(() => rmSync(directory, { recursive: true }))

/** Lines that were tried by hand, and pieces of which files are made. */
const PIECES = [
  '[client]',
  '[client.admin]',
  '[global]',
  '[osd]',
  ' [client]',
  '[ client ]',
  '[client] # c',
  'rbd cache = false',
  'rbd_cache=true',
  'rbd-cache = false',
  'rbd cache = no',
  'rbd_cache = FALSE',
  'rbd_cache = -1',
  'rbd_cache = 0x0',
  'rbd_cache = "false" ; c',
  "rbd cache='0'",
  'rbd cache = fal\\',
  'se',
  'rbd cache size = 64M',
  'rbd cache size = 64MiB',
  'rbd cache size = 64Mi # c',
  'rbd_cache_size = 1.5M',
  'rbd_cache_size = +4096B',
  'rbd cache max dirty = 0',
  'rbd cache max dirty age = 0.5',
  'rbd cache max dirty age = 2x',
  'rbd cache policy = writeback',
  'rbd cache policy = Writeback',
  'rbd cache writethrough until flush = false',
  '# comment \\',
  '  ; comment',
  '',
  '   ',
  'word',
  'x = a"b',
  'x = "a # b"',
  'x = \\# y',
  'x = \\',
]

describe.skipIf(library === undefined)('beside the librados on this machine (skipped without one)', () => {
  /** By librados: undefined when it refuses the file. */
  async function byLibrados(text: string): Promise<(string | undefined)[] | undefined> {
    const path = join(directory, 'ceph.conf')
    writeFileSync(path, text)
    const handle = library!.radosCreate('admin')
    try {
      if (library!.radosReadFile(handle, path) < 0) return undefined
      return CACHE_OPTIONS.map(option => parseValue(option, library!.radosGet(handle, option)!))
    } finally {
      await library!.radosShutdown(handle)
    }
  }

  function byUs(text: string): (string | undefined)[] | undefined {
    const conf = new ConfFile(text)
    if (conf.problem !== undefined) return undefined
    const defaults = builtInDefaults('16')
    return CACHE_OPTIONS.map(option => {
      const found = conf.get(option, SECTIONS)
      return (found === undefined ? undefined : parseValue(option, found.text)) ?? defaults[option]
    })
  }

  it('reads every pair of lines alike', async () => {
    const differing: string[] = []
    for (const [i, first] of PIECES.entries()) {
      for (const [j, second] of PIECES.entries()) {
        const pair = `${first}\n${second}`
        // In a section, before any, and without an end.
        const text = [`[client]\n${pair}\n`, `${pair}\n`, pair][(i + j) % 3]!
        // librados would end this process.
        expect(new ConfFile(text).problem?.reason).not.toBe(FATAL_REASON)
        const theirs = JSON.stringify(await byLibrados(text))
        const ours = JSON.stringify(byUs(text))
        if (theirs !== ours) differing.push(`${JSON.stringify(text)}: ${theirs} not ${ours}`)
      }
    }
    expect(differing).toEqual([])
  })
})
