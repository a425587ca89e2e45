import { describe, expect, it } from 'vitest'
import { CompletionInbox } from '../../src/rbd/completion-inbox.ts'
import { SLOTS } from '../../src/rbd/messages.ts'

describe('CompletionInbox', () => {
  it('hands out slots with their results in the order in which they were put, round and round', () => {
    const ring = CompletionInbox.allocate()
    const [reader, writer, other] = [
      new CompletionInbox(ring),
      new CompletionInbox(ring),
      new CompletionInbox(ring),
    ]
    for (let round = 0; round < 3; round++) {
      for (let slot = 0; slot < SLOTS; slot++) (slot % 3 === 0 ? other : writer).put(slot, slot - 500)
      for (let slot = 0; slot < SLOTS; slot++) {
        expect(reader.take()).toBe(slot)
        expect(reader.result).toBe(slot - 500)
      }
      expect(reader.take()).toBe(-1)
    }
  })

  it('goes on where the reader before it stopped', () => {
    const ring = CompletionInbox.allocate()
    const writer = new CompletionInbox(ring)
    writer.put(7, 0)
    expect(new CompletionInbox(ring).take()).toBe(7)
    writer.put(8, 4096)
    const reader = new CompletionInbox(ring)
    expect([reader.take(), reader.result, reader.take()]).toEqual([8, 4096, -1])
  })
})
