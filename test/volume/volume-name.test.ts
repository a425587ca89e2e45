import { describe, expect, it } from 'vitest'
import {
  checkFileName,
  isPartial,
  partialName,
  partialStateName,
  wholeName,
} from '../../src/volume/volume-name.ts'

describe('checkFileName', () => {
  it.each(['a', 'win 10.qcow2', 'ü', 'a'.repeat(220)])('takes %j', name => {
    expect(() => checkFileName(name)).not.toThrow()
  })

  it.each(['', '.', '..', '.hidden', 'a/b', '../a', 'a\0', 'a\nb', 'a'.repeat(221), 'ü'.repeat(111)])(
    'refuses %j',
    name => {
      expect(() => checkFileName(name)).toThrow(/cannot be the name of a volume/)
    },
  )
})

describe('partialName', () => {
  it('is hidden, ours, and not that of the note beside it', () => {
    expect(partialName('a')).toMatch(/^\.a\.[\da-f]{8}\.partial$/)
    expect(isPartial(partialName('a'))).toBe(true)
    expect(isPartial(partialStateName('a'))).toBe(false)
    expect(isPartial('.a.00000000.partial')).toBe(false)
    expect(wholeName(partialName('a.raw'))).toBe('a.raw')
    expect(wholeName('.a.00000000.partial')).toBeUndefined()
    expect(wholeName('a')).toBeUndefined()
  })
})
