/** Commands as one types them. */
export const commandLine = (words: readonly string[]): string => words.map(quoted).join(' ')

/** For a shell. */
export const quoted = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
