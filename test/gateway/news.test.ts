/** Watching the group's object, with a library that does what the test says. */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { News } from '../../src/gateway/news.ts'
import type { RadosWatches } from '../../src/sys/librados-watch.ts'

const OBJECT = { pool: 1, name: 'lease' }
const ETIMEDOUT = -110
const ENOTCONN = -107

const lines: string[] = []
const { write } = logSettings
beforeAll(() => {
  logSettings.write = line => lines.push(line)
})
afterAll(() => {
  logSettings.write = write
})

/** Hands out watches 1, 2 … and remembers what it was asked. */
class FakeRados implements RadosWatches {
  readonly calls: string[] = []
  readonly lost = new Set<number>()
  refusal = 0
  /** A watch waits for this. */
  gate: Promise<void> = Promise.resolve()
  #last = 0

  async watch(): Promise<number> {
    await this.gate
    if (this.refusal !== 0) return this.refusal
    this.calls.push(`watch ${++this.#last}`)
    return this.#last
  }

  checkWatch(_: number, watch: number): number {
    return this.lost.has(watch) ? ENOTCONN : 1
  }

  async unwatch(_: number, watch: number): Promise<number> {
    this.calls.push(`unwatch ${watch}`)
    return 0
  }

  async notify(): Promise<number> {
    this.calls.push('notify')
    return 0
  }

  acknowledge(_: object, watch: number, notification: bigint): void {
    this.calls.push(`acknowledge ${notification} of ${watch}`)
  }
}

let rados: FakeRados
let heard: number
let news: News

beforeEach(() => {
  lines.length = 0
  rados = new FakeRados()
  heard = 0
  news = new News({ rados, object: OBJECT, eventfd: 9, heard: () => heard++ })
})

/** Chains of promises are short. */
async function settled(): Promise<void> {
  for (let i = 0; i < 10; i++) await null
}

async function watching(): Promise<void> {
  news.ensure()
  await settled()
}

describe('news of a group', () => {
  it('are looked for once the watch stands: there may have been some before', async () => {
    await watching()
    expect(rados.calls).toEqual(['watch 1'])
    expect(heard).toBe(1)
  })

  it('are acknowledged and looked for', async () => {
    await watching()
    news.rung(77n)
    expect(rados.calls).toEqual(['watch 1', 'acknowledge 77 of 1'])
    expect(heard).toBe(2)
  })

  it('come again after the watch was lost, and what was missed is looked for', async () => {
    await watching()
    rados.lost.add(1)
    news.rung(0x7f00_0000_1000n)
    await settled()
    expect(rados.calls).toEqual(['watch 1', 'unwatch 1', 'watch 2'])
    expect(heard).toBe(3)
  })

  it('come again at the next look when the loss itself was not told', async () => {
    await watching()
    rados.lost.add(1)
    await watching()
    expect(rados.calls).toEqual(['watch 1', 'unwatch 1', 'watch 2'])
  })

  it('are watched for once, however often that is asked for', async () => {
    let open = (): void => {}
    rados.gate = new Promise(resolve => {
      open = resolve
    })
    for (let i = 0; i < 3; i++) await watching()
    open()
    await watching()
    await watching()
    expect(rados.calls).toEqual(['watch 1'])
  })

  it('that cannot be watched for are complained of once, and tried again', async () => {
    rados.refusal = ETIMEDOUT
    await watching()
    await watching()
    expect(lines.filter(line => line.includes('lease cannot be watched (ETIMEDOUT)'))).toHaveLength(1)
    rados.refusal = 0
    await watching()
    expect(rados.calls).toEqual(['watch 1'])
  })

  it('are neither told nor heard of any more once it is closed', async () => {
    await watching()
    await news.close()
    news.rung(5n)
    await news.tell()
    await watching()
    expect(rados.calls).toEqual(['watch 1', 'unwatch 1'])
    expect(heard).toBe(1)
  })

  it('are not watched for by a watch that comes to be after the end', async () => {
    let open = (): void => {}
    rados.gate = new Promise(resolve => {
      open = resolve
    })
    await watching()
    await news.close()
    open()
    await settled()
    expect(heard).toBe(0)
  })
})
