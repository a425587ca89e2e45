import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import { withUndo } from '../../src/vm/undo.ts'

const { write } = logSettings
beforeEach(() => {
  logSettings.write = () => {}
})
afterEach(() => {
  logSettings.write = write
})

describe('steps that are taken back', () => {
  it('are none when all goes well', async () => {
    const taken: string[] = []
    const result = await withUndo(async undo => {
      undo.add('a', async () => taken.push('a'))
      return 7
    })
    expect([result, taken]).toEqual([7, []])
  })

  it('are all, the last one first, with the reason told', async () => {
    const taken: string[] = []
    const work = withUndo(async undo => {
      undo.add('a', async () => taken.push('a'))
      undo.add('b', async () => taken.push('b'))
      throw new RpcError('EBUSY', 'no')
    })
    await expect(work).rejects.toMatchObject({ code: 'EBUSY', message: 'no' })
    expect(taken).toEqual(['b', 'a'])
  })

  it('are named where they could not be, and the others are taken back all the same', async () => {
    const taken: string[] = []
    const work = withUndo(async undo => {
      undo.add('a', async () => taken.push('a'))
      undo.add('the export', async () => {
        throw new Error('stuck')
      })
      throw new RpcError('EBUSY', 'no')
    })
    await expect(work).rejects.toThrow('no. This could not be taken back: the export (stuck)')
    expect(taken).toEqual(['a'])
  })
})
