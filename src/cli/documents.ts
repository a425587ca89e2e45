/** Parameters that are documents: on the command line their word is the file that has one. */
import { readFileSync } from 'node:fs'
import type { Declared } from './commands.ts'
import { UsageError } from './parse-args.ts'

type Params = Readonly<Record<string, unknown>>

/** The parameters with the files' content in the place of their names; `-` is stdin. Throws `UsageError`. */
export function readDocuments(method: Declared, params: Params): Params {
  const files: readonly string[] = method.cli.files ?? []
  const read = files.filter(name => typeof params[name] === 'string')
  return { ...params, ...Object.fromEntries(read.map(name => [name, readDocument(params[name] as string)])) }
}

function readDocument(path: string): string {
  try {
    return readFileSync(path === '-' ? 0 : path, 'utf8')
  } catch (cause) {
    throw new UsageError(`${path} cannot be read: ${(cause as Error).message}`, { cause })
  }
}
