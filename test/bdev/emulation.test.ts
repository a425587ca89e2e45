import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { IoType } from '../../src/bdev/io.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { PendingIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

let group: LocalReactorGroup

beforeEach(() => {
  group = new LocalReactorGroup({ count: 2 })
})
afterEach(() => group.close())

describe('an emulated compare-and-write', () => {
  it('that finds no buffer does not keep those of other reactors waiting', async () => {
    const bdevs = new BdevRegistry(group, drivers)
    const locals = group.reactors.map(reactor => new ReactorBdevs(reactor, drivers))
    await group.run(bdevs.create('malloc', 'm0', { block_size: 512, num_blocks: 8 }))
    const { buffers } = group.reactors[0]!
    const taken: number[] = []
    for (let address = buffers.acquire(512); address !== 0; address = buffers.acquire(512))
      taken.push(address)

    const request = { type: IoType.COMPARE_AND_WRITE, blockCount: 1, data: new Uint8Array(1024) }
    const [hungry, fed] = locals.map(local => new PendingIo(local.open('m0'), request))
    for (let round = 0; round < 10; round++) group.poll()
    expect([hungry!.statuses, fed!.statuses]).toEqual([[], [Status.SUCCESS]])

    for (const address of taken) buffers.release(address, 512)
    group.settle()
    expect(hungry!.statuses).toEqual([Status.SUCCESS])
    for (const io of [hungry!, fed!]) io.free()
  })
})
