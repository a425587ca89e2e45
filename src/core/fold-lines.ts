/**
 * Folds the lines of a help page that are wider than a terminal. What is folded goes on under the line's second column,
 * which begins behind the first gap of two spaces, or under its own beginning when there is none. Without a width, as
 * `process.stdout.columns` is when the output is no terminal, nothing is folded.
 */
export function foldLines(text: string, columns: number = Number.POSITIVE_INFINITY): string {
  return text
    .split('\n')
    .map(line => (line.length <= columns ? line : foldLine(line, columns)))
    .join('\n')
}

/** Text narrower than this is harder to read than text that the terminal breaks. */
const NARROWEST = 24

function foldLine(line: string, columns: number): string {
  const indent = /^ *(?:\S.*? {2,}(?=\S))?/.exec(line)![0].length
  if (columns - indent < NARROWEST) return line
  const lines: string[] = []
  let current = line.slice(0, indent)
  let isEmpty = true
  for (const word of line.slice(indent).split(' ')) {
    if (!isEmpty && current.length + 1 + word.length > columns) {
      lines.push(current)
      current = ' '.repeat(indent)
      isEmpty = true
    }
    current += isEmpty ? word : ` ${word}`
    isEmpty = false
  }
  return [...lines, current].join('\n')
}
