import { describe, expect, it } from 'vitest'
import { foldLines } from '../../src/core/fold-lines.ts'

describe('foldLines', () => {
  it('leaves lines that fit as they are', () => {
    expect(foldLines('  a  b\n\n12345\n', 5)).toBe('  a  b\n\n12345\n')
    expect(foldLines(`  -x, --y N  ${'z'.repeat(27)}\n`, 40)).toBe(`  -x, --y N  ${'z'.repeat(27)}\n`)
  })

  it('goes on under the second column', () => {
    expect(foldLines('  -o, --own N  one two three four five six\nnext', 40)).toBe(
      '  -o, --own N  one two three four five\n               six\nnext',
    )
  })

  it('goes on under the beginning of a line without columns', () => {
    expect(foldLines('    the words of a line with no gap in it', 30)).toBe(
      '    the words of a line with\n    no gap in it',
    )
  })

  it('leaves a word that is wider than its column in one piece', () => {
    expect(foldLines(`  a  ${'z'.repeat(40)} b`, 30)).toBe(`  a  ${'z'.repeat(40)}\n     b`)
  })

  it('does not squeeze text into what a wide first column leaves', () => {
    const line = `${'a'.repeat(30)}  one two three four five six`
    expect(foldLines(line, 40)).toBe(line)
  })
})
