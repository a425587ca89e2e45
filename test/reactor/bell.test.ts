import { closeSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Bell, serveBells } from '../../src/reactor/bell.ts'
import { write } from '../../src/sys/libc.ts'
import { mapAnonymous, viewAt } from '../../src/sys/memory.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

let reactors: LocalReactorGroup
let bell: Bell
const heard: bigint[] = []
const cell = mapAnonymous(8)

beforeEach(() => {
  heard.length = 0
  reactors = new LocalReactorGroup({ ring: true, arenaBytes: 1 << 20 })
  serveBells(reactors.reactors[0]!)
  bell = new Bell(reactors)
})
afterEach(() => {
  reactors.close()
  closeSync(bell.fd)
})

/** As another thread does. */
function ring(value: bigint): void {
  viewAt(cell, 8).setBigUint64(0, value, true)
  expect(write(bell.fd, cell, 8)).toBe(8)
}

describe('a bell', () => {
  it('tells what was written, also beyond 53 bits', async () => {
    bell.listen(sum => heard.push(sum))
    ring(0x4000_0000_0000_0001n)
    await reactors.until(() => heard.length > 0)
    ring(2n)
    await reactors.until(() => heard.length > 1)
    expect(heard).toEqual([0x4000_0000_0000_0001n, 2n])
  })

  it('tells the sum of what was written before anybody listened', async () => {
    ring(3n)
    ring(4n)
    bell.listen(sum => heard.push(sum))
    await reactors.until(() => heard.length > 0)
    expect(heard).toEqual([7n])
  })

  it('tells whoever listened last, and only that one', async () => {
    bell.listen(() => heard.push(-1n))
    bell.listen(sum => heard.push(sum))
    ring(5n)
    await reactors.until(() => heard.length > 0)
    expect(heard).toEqual([5n])
  })
})
