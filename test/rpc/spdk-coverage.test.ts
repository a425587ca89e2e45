import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { methods } from '../../src/app/methods.ts'
import type { Declarations } from '../../src/rpc/method.ts'
import { expectDocument } from '../support/document.ts'
import { DIFFERENCES, MISSING, OWN, renderCoverage, summarize } from './spdk-coverage.ts'
import { compare, readSpdkSchema } from './spdk-schema.ts'

// SPDK's own schema (its repository's schema/schema.yaml) lies beside the project where it is developed.
const spdk = readSpdkSchema(
  fileURLToPath(new URL('../../../shared/reference/spdk-rpc-schema.yaml', import.meta.url)),
)
const table: Declarations = methods
const listed = MISSING.flatMap(each => each.methods)
const shared = table.filter(({ name }) => !OWN.test(name))

describe('the list of missing methods', () => {
  it('names each once, and none that is there', () => {
    expect(new Set(listed).size).toBe(listed.length)
    const there = table.map(({ name }) => name).filter(name => listed.includes(name))
    expect(
      there,
      'now implemented: take them out of MISSING in test/rpc/spdk-coverage.ts, then npm run docs',
    ).toEqual([])
  })
})

it('is rendered for the reader, up to date', () => {
  expectDocument('docs/reference/spdk.md', renderCoverage(table))
})

describe.skipIf(spdk === undefined)("SPDK's schema (skipped where the file is not at hand)", () => {
  it('has every method either here or on the list of missing ones, and those only', () => {
    const ours = [...shared.map(({ name }) => name), ...listed].sort()
    expect(ours).toEqual(spdk!.methods.map(({ name }) => name).sort())
    console.log(summarize(table))
  })

  it('agrees with every method here in parameters, types and required marks, but for the listed differences', () => {
    const line = ({ method, param, kind }: { method: string; param: string; kind: string }): string =>
      `${method}: ${param}: ${kind}`
    const found = table.flatMap(method => compare(spdk!, method)).map(line)
    expect(found.sort()).toEqual(DIFFERENCES.map(line).sort())
  })
})
