import { expect, it } from 'vitest'
import { closest, didYouMean } from '../../src/rpc/closest.ts'

it.each([
  ['bdev_get_bdev', 'bdev_get_bdevs'],
  ['gte', 'get'],
  ['nvmf_create_sybsystem', 'nvmf_create_subsystem'],
  ['delete_everything', undefined],
  ['', undefined],
])('takes %j for %j', (typed, meant) => {
  const names = ['bdev_get_bdevs', 'bdev_get_iostat', 'get', 'nvmf_create_subsystem']
  expect(closest(typed, names)).toBe(meant)
})

it('says nothing rather than guess, and spends no time on a name of a megabyte', () => {
  expect(didYouMean('x'.repeat(1_000_000), ['get'])).toBe('')
  expect(didYouMean('gett', ['get'])).toBe('; did you mean get?')
})
