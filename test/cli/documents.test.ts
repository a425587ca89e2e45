import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { readDocuments } from '../../src/cli/documents.ts'
import { UsageError } from '../../src/cli/parse-args.ts'
import { method } from '../../src/rpc/method.ts'

const directory = mkdtempSync(join(tmpdir(), 'qpair-documents-'))
afterAll(() => rmSync(directory, { recursive: true }))

const define = method({
  name: 'pool_define',
  summary: 'A method with a document.',
  params: z.object({ xml: z.string(), name: z.string().optional() }),
  result: z.boolean(),
  cli: { positional: ['xml'], files: ['xml'] },
  run: () => true,
})

describe('readDocuments', () => {
  it('puts the content of the file in the place of its name, and leaves the rest', () => {
    const path = join(directory, 'pool.xml')
    writeFileSync(path, '<pool/>')
    expect(readDocuments(define, { xml: path, name: path })).toEqual({ xml: '<pool/>', name: path })
    expect(readDocuments(define, { name: 'a' })).toEqual({ name: 'a' })
  })

  it('names a file that cannot be read', () => {
    const path = join(directory, 'nix')
    expect(() => readDocuments(define, { xml: path })).toThrow(UsageError)
    expect(() => readDocuments(define, { xml: path })).toThrow(`${path} cannot be read`)
  })
})
