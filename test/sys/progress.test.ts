import koffi from 'koffi'
import { describe, expect, it } from 'vitest'
import { progressCallback, reportingProgress } from '../../src/sys/progress.ts'

const isHere = process.arch === 'x64'

describe.skipIf(!isHere)('the callback (there is one for x86-64 only)', () => {
  const proto = koffi.proto('int progress_callback(uint64_t, uint64_t, uintptr_t)')
  const call = koffi.decode(progressCallback(), proto)

  it('leaves what a library tells where it is looked for, on whatever thread it is called', async () => {
    const reports: [number, number][] = []
    await reportingProgress(
      (done, total) => void reports.push([done, total]),
      async cell => {
        expect(call(3, 2 ** 40, cell)).toBe(0)
        await expect.poll(() => reports).toEqual([[3, 2 ** 40]])
        const result = await new Promise((resolve, reject) =>
          call.async(2 ** 40, 2 ** 40, cell, (error: Error | null, value: number) =>
            error === null ? resolve(value) : reject(error),
          ),
        )
        expect(result).toBe(0)
      },
    )
    expect(reports.at(-1)).toEqual([2 ** 40, 2 ** 40])
  })

  it('is looked at no more when the work has failed', async () => {
    const reports: number[] = []
    const failed = reportingProgress(
      done => void reports.push(done),
      async cell => {
        call(1, 2, cell)
        throw new Error('no')
      },
    )
    await expect(failed).rejects.toThrow('no')
    expect(reports).toEqual([1])
  })

  it('tells nothing as long as the library has not', async () => {
    const reports: number[] = []
    await reportingProgress(
      done => void reports.push(done),
      async () => {},
    )
    expect(reports).toEqual([])
  })
})
