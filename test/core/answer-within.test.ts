import { expect, it } from 'vitest'
import { answerWithin } from '../../src/core/answer-within.ts'

it('is what comes, or why nothing comes', async () => {
  expect(await answerWithin(60_000, async () => 7)).toBe(7)
  await expect(answerWithin(60_000, () => Promise.reject(new Error('no route')))).rejects.toThrow('no route')
})

it('is given up in the end, whether or not that can be ended', async () => {
  let told: AbortSignal | undefined
  const answer = answerWithin(1, signal => {
    told = signal
    return new Promise(() => {})
  })
  expect(told?.aborted).toBe(false)
  await expect(answer).rejects.toMatchObject({ code: 'ETIMEDOUT', message: 'no answer came within 0.001 s' })
  expect(told?.aborted).toBe(true)
})
