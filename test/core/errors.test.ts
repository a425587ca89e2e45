import { expect, it } from 'vitest'
import { thereAre } from '../../src/core/errors.ts'

it.each([
  [[], 'there are none'],
  [['a', 'b'], 'there are a, b'],
  [[...'abcdefghij'], 'there are a, b, c, d, e, f, g, h, i, j'],
  [[...'abcdefghijkl'], 'there are a, b, c, d, e, f, g, h, i, j and 2 more'],
])('tells of %j what there is', (names, told) => {
  expect(thereAre(names)).toBe(told)
})
