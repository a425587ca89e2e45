import { describe, expect, it } from 'vitest'
import { IoType } from '../../src/bdev/io.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { Checker, type Op } from './checker.ts'
import { fillBlock, GARBAGE, writerOf } from './content.ts'
import { BLOCK_SIZE } from './disk.ts'

const content = (id: number, block = 0): Uint8Array => {
  const bytes = new Uint8Array(BLOCK_SIZE)
  if (id > 0) fillBlock(bytes, id, block)
  return bytes
}

/** A history of one block, told step by step. */
class History {
  readonly violations: string[] = []
  readonly checker = new Checker({
    blockCount: 4,
    violated: what => this.violations.push(what),
    mayFail: () => this.mayFail,
  })
  mayFail = false
  #lastId = 0

  begin(type: IoType, expected: number[] = [], blockCount = 1): Op {
    const op: Op = { id: ++this.#lastId, type, firstBlock: 0, blockCount, submittedUs: 0, expected }
    this.checker.begin(op)
    return op
  }

  land(id: number, block = 0): void {
    this.checker.landed(block, content(id, block))
  }

  end(op: Op, read?: number, status: number = Status.SUCCESS): void {
    this.checker.end(op, status, read === undefined ? null : content(read))
  }

  /** A whole write, and its number. */
  write(): number {
    const op = this.begin(IoType.WRITE)
    this.land(op.id)
    this.end(op)
    return op.id
  }

  read(value: number): void {
    this.end(this.begin(IoType.READ), value)
  }
}

describe('the content of blocks', () => {
  it('names its write, and is garbage elsewhere, torn or changed', () => {
    expect(writerOf(content(7, 3), 3)).toBe(7)
    expect(writerOf(content(7, 3), 2)).toBe(GARBAGE)
    expect(writerOf(content(0), 2)).toBe(0)
    const torn = content(7, 3)
    torn.set(content(8, 3).subarray(256), 256)
    expect(writerOf(torn, 3)).toBe(GARBAGE)
    const flipped = content(0)
    flipped[511] = 1
    expect(writerOf(flipped, 3)).toBe(GARBAGE)
  })
})

describe('the checker', () => {
  it('accepts reads of the last write, and before it of zeroes', () => {
    const history = new History()
    history.read(0)
    history.read(history.write())
    expect(history.violations).toEqual([])
  })

  it('accepts either content while a write is under way, if the medium had it', () => {
    const history = new History()
    const first = history.write()
    const second = history.begin(IoType.WRITE)
    history.read(first)
    const read = history.begin(IoType.READ)
    history.land(second.id)
    history.end(read, first)
    history.read(second.id)
    history.end(second)
    expect(history.violations).toEqual([])
  })

  it('finds a stale read', () => {
    const history = new History()
    const first = history.write()
    history.write()
    history.read(first)
    expect(history.violations).toEqual([
      expect.stringMatching(/returned write 1 in block 0: it may only hold 2/),
    ])
  })

  it('finds a read of what the medium did not hold, though the write was under way', () => {
    const history = new History()
    const write = history.begin(IoType.WRITE)
    history.read(write.id)
    expect(history.violations).toEqual([expect.stringMatching(/which the medium did not hold then/)])
  })

  it('finds an acknowledged write that never landed', () => {
    const history = new History()
    history.end(history.begin(IoType.WRITE))
    expect(history.violations).toEqual([
      expect.stringMatching(/was acknowledged, and block 0 is not on the medium/),
    ])
  })

  it('finds an I/O that ends twice', () => {
    const history = new History()
    const read = history.begin(IoType.READ)
    history.end(read, 0)
    history.end(read, 0)
    expect(history.violations).toEqual([expect.stringMatching(/ended twice/)])
  })

  it('finds an error where none was to be expected, and keeps quiet where one was', () => {
    const history = new History()
    history.end(history.begin(IoType.FLUSH), undefined, Status.INTERNAL_PATH_ERROR)
    expect(history.violations).toEqual([expect.stringMatching(/failed with .*though a path could be used/)])
    history.mayFail = true
    history.end(history.begin(IoType.FLUSH), undefined, Status.INTERNAL_PATH_ERROR)
    expect(history.violations).toHaveLength(1)
    expect(history.checker.failed).toBe(2)
  })

  it('finds content that nobody wrote, or that belongs to another block', () => {
    const history = new History()
    history.land(99)
    const write = history.begin(IoType.WRITE)
    history.checker.landed(1, content(write.id, 1))
    history.checker.landed(0, content(write.id, 1))
    expect(history.violations).toHaveLength(3)
  })

  it('finds a compare that missed a difference, or made one up', () => {
    const history = new History()
    const first = history.write()
    const second = history.write()
    const missed = history.begin(IoType.COMPARE, [first])
    history.end(missed)
    const invented = history.begin(IoType.COMPARE, [second])
    history.end(invented, undefined, Status.COMPARE_FAILURE)
    expect(history.violations).toEqual([
      expect.stringMatching(/found no difference that/),
      expect.stringMatching(/found a difference that/),
    ])
  })

  it('counts a late landing that hides newer data, instead of failing', () => {
    const history = new History()
    const first = history.write()
    history.write()
    history.land(first)
    history.read(first)
    expect(history.violations).toEqual([])
    expect(history.checker).toMatchObject({ late: 1, lateHarmful: 1 })
  })

  it('counts a second landing after another write came between, before either has ended', () => {
    const history = new History()
    const first = history.begin(IoType.WRITE)
    history.land(first.id)
    const second = history.write()
    history.land(first.id)
    history.end(first)
    history.read(first.id)
    expect(history.violations).toEqual([])
    expect(second).toBe(2)
    expect(history.checker).toMatchObject({ late: 1, lateHarmful: 1 })
  })

  it('counts a late landing over a write that is acknowledged only afterwards', () => {
    const history = new History()
    const first = history.write()
    const second = history.begin(IoType.WRITE)
    history.land(second.id)
    history.land(first)
    history.end(second)
    history.read(first)
    expect(history.violations).toEqual([])
    expect(history.checker).toMatchObject({ late: 1, lateHarmful: 1 })
  })

  it('counts a late landing of the same content as harmless', () => {
    const history = new History()
    history.land(history.write())
    expect(history.checker).toMatchObject({ late: 1, lateHarmful: 0 })
  })

  it('lets nothing else pass after a late landing', () => {
    const history = new History()
    const first = history.write()
    history.write()
    history.land(first)
    history.write()
    history.read(first)
    expect(history.violations).toHaveLength(1)
  })
})
