/** The name that somebody probably meant: the one with the fewest edits, or undefined when none is near. */
export function closest(typed: string, names: Iterable<string>): string | undefined {
  let best: string | undefined
  // A third of the letters may be wrong; more and the guess would be noise.
  let bestDistance = Math.max(1, Math.floor(typed.length / 3)) + 1
  for (const name of names) {
    const distance = editDistance(typed, name)
    if (distance < bestDistance) {
      best = name
      bestDistance = distance
    }
  }
  return best
}

/** Ready to be put behind a message: `; did you mean X?`, or nothing. */
export function didYouMean(typed: string, names: Iterable<string>): string {
  return question(closest(typed, names))
}

export const question = (name: string | undefined): string =>
  name === undefined ? '' : `; did you mean ${name}?`

/** How many letters to add, drop, change or swap with their neighbour (optimal string alignment), row by row. */
function editDistance(a: string, b: string): number {
  // Names longer than this come from nobody's keyboard, and the work is the product of both lengths.
  if (a.length > 128 || b.length > 128) return Number.POSITIVE_INFINITY
  let before: number[] = []
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = a[i - 1] === b[j - 1] ? 0 : 1
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      const swap = swapped ? before[j - 2]! + 1 : Number.POSITIVE_INFINITY
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + change, swap))
    }
    before = row
    row = next
  }
  return row[b.length]!
}
