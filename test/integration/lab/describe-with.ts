import { describe } from 'vitest'
import { needs, type Program } from './packages.ts'

/**
 * A `describe` for tests that drive these programs. Where they are missing and cannot be installed, the group is
 * skipped and its name says what to type.
 */
export async function describeWith(
  programs: readonly Program[],
  name: string,
  body: () => void,
): Promise<void> {
  const reason = await needs(...programs)
  if (reason === undefined) describe(name, body)
  else describe.skip(`${name} (${reason})`, body)
}
