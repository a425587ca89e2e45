import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect } from 'vitest'

/** Compares a generated page with its file, named from the project's root; `npm run docs` writes the file instead. */
export function expectDocument(path: string, text: string): void {
  const file = fileURLToPath(new URL(`../../${path}`, import.meta.url))
  if (process.env['QPAIR_WRITE_DOCS'] === '1') {
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, text)
    return
  }
  let found = ''
  try {
    found = readFileSync(file, 'utf8')
  } catch {
    // A page that is not there is as stale as one that is old.
  }
  expect(found === text, `${path} is stale: run npm run docs and commit it`).toBe(true)
}
