import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { complete, completionScript } from '../../src/cli/completion.ts'
import { methodLists } from '../../src/cli/method-lists.ts'
import { shelfMethods, temporaryDirectory } from '../rpc/support.ts'
import { loaded } from './support.ts'

const completed = (...words: string[]): Promise<string[]> => complete(loaded(shelfMethods), words)

describe('complete', () => {
  it.each([
    [['sh'], ['shelf']],
    [
      ['shelf', ''],
      ['put', 'get', 'weigh', 'clear', 'tune', 'wait', 'break'],
    ],
    [['shelf', 'pu'], ['put']],
    [
      ['shelf', 'put', '--'],
      ['--name', '--weight', '--row', '--side'],
    ],
    [
      ['shelf', 'put', '--side', ''],
      ['left', 'right'],
    ],
    [['rpc', 'shelf_p'], ['shelf_put']],
    [['rpc', 'shelf_put', '--na'], ['--name']],
    [
      ['rpc', 'load'],
      ['load_config', 'load_subsystem_config'],
    ],
    [['save_config', '--in'], ['--indent']],
    [
      ['completion', ''],
      ['bash', 'zsh', 'fish'],
    ],
    [
      ['serve', '--log'],
      ['--logflag', '--loglevel'],
    ],
    [['--json', 'shelf', 'pu'], ['put']],
    [['-r', '/run/q.sock', 'sh'], ['shelf']],
    [['host', 'val'], ['validate']],
    [['help', 'sh'], ['shelf']],
    [['help', 'shelf', 'pu'], ['put']],
    [['host', 'validate', '--j'], ['--json']],
    [['nothing', 'of', 'it'], []],
  ])('%j offers %j', async (words, offers) => {
    expect((await completed(...words)).sort()).toEqual([...offers].sort())
  })

  it.each([
    [
      ['volume', 'snapshot', ''],
      ['create', 'list', 'revert', 'delete'],
    ],
    [['rbd', 'cache', ''], ['explain']],
    [['rbd', 'cache', 'explain', '--cache-m'], ['--cache-mode']],
    [['volume', 'snapshot', 'nothing', ''], []],
  ])('%j offers %j: verbs of several words are typed word by word', async (words, offers) => {
    expect((await complete(methodLists, words)).sort()).toEqual([...offers].sort())
  })

  it('offers everything at the start', async () => {
    expect(await completed('')).toEqual(
      expect.arrayContaining(['serve', 'doctor', 'rpc', 'methods', 'shelf']),
    )
  })
})

const bash = spawnSync('bash', ['--version']).status === 0

describe.skipIf(!bash)('the bash script (skipped without bash)', () => {
  it('hands the words to qpair complete, and its lines back', () => {
    const directory = temporaryDirectory()
    mkdirSync(join(directory, 'bin'))
    // In place of qpair: a program that shows what it was called with.
    writeFileSync(join(directory, 'bin', 'qpair'), '#!/bin/sh\nprintf "%s\\n" "$@"\n', { mode: 0o755 })
    writeFileSync(join(directory, 'script'), completionScript('bash'))
    const run = `source ${join(directory, 'script')}
      COMP_WORDS=(qpair shelf 'pu'); COMP_CWORD=2; _qpair; printf '<%s>' "\${COMPREPLY[@]}"
      complete -p qpair`
    const { stdout, stderr } = spawnSync('bash', ['--norc', '-c', run], {
      env: { ...process.env, PATH: `${join(directory, 'bin')}:${process.env['PATH']}` },
      encoding: 'utf8',
    })
    expect(stderr).toBe('')
    expect(stdout).toBe('<complete><--><shelf><pu>complete -F _qpair qpair\n')
  })
})
