import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { BdevIo, IoType } from '../../src/bdev/io.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { logSettings } from '../../src/core/log.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

let reactors: LocalReactorGroup
let bdevs: BdevRegistry
let local: ReactorBdevs[]

beforeEach(() => {
  reactors = new LocalReactorGroup({ count: 2 })
  bdevs = new BdevRegistry(reactors, drivers)
  local = reactors.reactors.map(reactor => new ReactorBdevs(reactor, drivers))
})

afterEach(() => {
  vi.restoreAllMocks()
  reactors.close()
})

const GEOMETRY = { block_size: 512, num_blocks: 8 }

describe('BdevRegistry', () => {
  it('makes a device known on every reactor', async () => {
    const info = await bdevs.create('null', 'n0', GEOMETRY)
    expect(local.map(one => one.find('n0'))).toEqual([info, info])
  })

  it('finds a device by name, alias and UUID of either case', async () => {
    const uuid = '2d2d3f0a-9a2b-4c55-8b1e-6a7f1c3c9d10'
    const info = await bdevs.create('null', 'n0', { ...GEOMETRY, uuid: uuid.toUpperCase() })
    expect([bdevs.find('n0'), bdevs.find(uuid), bdevs.find(uuid.toUpperCase())]).toEqual([info, info, info])
  })

  it('refuses a name that is taken, and says by what', async () => {
    await bdevs.create('null', 'n0', GEOMETRY)
    await expect(bdevs.create('malloc', 'n0', GEOMETRY)).rejects.toMatchObject({
      code: 'EEXIST',
      message: 'a bdev named n0 exists already (a null bdev): choose another name',
    })
  })

  it('refuses a UUID that is taken, and says by whom', async () => {
    const { uuid } = await bdevs.create('null', 'n0', GEOMETRY)
    await expect(bdevs.create('null', 'n1', { ...GEOMETRY, uuid })).rejects.toMatchObject({
      code: 'EEXIST',
      message: expect.stringContaining('n0'),
    })
    expect(bdevs.list().map(info => info.name)).toEqual(['n0'])
  })

  it('names the devices there are when one is missing', () => {
    expect(() => bdevs.get('n7')).toThrow('there is no bdev n7: there are none')
  })

  it('refuses a second exclusive claim and names both owners', async () => {
    await bdevs.create('null', 'n0', GEOMETRY)
    const claim = bdevs.claim('n0', 'subsystem a', 'exclusive_write')
    expect(() => bdevs.claim('n0', 'subsystem b', 'exclusive_write')).toThrow(
      'subsystem b cannot have n0 for writing: subsystem a has it for itself',
    )
    expect(() => bdevs.claim('n0', 'NBD export', 'write')).toThrow(/EPERM|cannot have/)
    bdevs.claim('n0', 'NBD export', 'read').release()
    claim.release()
    bdevs.claim('n0', 'subsystem b', 'exclusive_write').release()
  })

  it('replays claims in any order in which they were made, and warns of writers all the same', async () => {
    const written = vi.spyOn(logSettings, 'write').mockReturnValue()
    await bdevs.create('null', 'n0', GEOMETRY)
    bdevs.claim('n0', 'subsystem a', 'exclusive_write')
    const claim = await bdevs.replaying(async () => {
      expect(() => bdevs.claim('n0', 'subsystem c', 'exclusive_write')).toThrow(
        'subsystem a has it for itself',
      )
      return bdevs.claim('n0', 'vhost controller b', 'write')
    })
    expect(written.mock.calls.join()).toContain(
      'n0 is written to by subsystem a and now by vhost controller b too',
    )
    expect(written.mock.calls.join()).toContain('Take it away from one of them, or have one read only')
    // What is asked for from now on is refused again.
    claim.release()
    expect(() => bdevs.claim('n0', 'vhost controller b', 'write')).toThrow('subsystem a has it for itself')
  })

  it('says of whoever writes to a device beside others who they are', async () => {
    const written = vi.spyOn(logSettings, 'write').mockReturnValue()
    await bdevs.create('null', 'n0', GEOMETRY)
    bdevs.claim('n0', 'vhost controller a', 'write')
    bdevs.claim('n0', 'NBD export b', 'read')
    expect(written).not.toHaveBeenCalled()
    bdevs.claim('n0', 'vhost controller c', 'write')
    expect(written.mock.calls.join()).toMatch(
      /NOTICE bdev: n0 is written to by vhost controller a and now by vhost controller c too/,
    )
  })

  it('tells every reactor and every listener of a new size, and refuses to shrink under an owner', async () => {
    const info = await bdevs.create('null', 'n0', GEOMETRY)
    const heard: unknown[] = []
    bdevs.listen({ resized: ({ name, blockCount }, old) => heard.push([name, blockCount, old]) })
    local[1]!.listen({ bdevResized: ({ name, blockCount }, old) => heard.push([name, blockCount, old, 1]) })
    const claim = bdevs.claim('n0', 'subsystem a', 'exclusive_write')

    await bdevs.resize('n0', 16)
    expect(heard).toEqual([
      ['n0', 16, 8, 1],
      ['n0', 16, 8],
    ])
    expect([info, ...local.map(one => one.find('n0')!)].map(one => one.blockCount)).toEqual([16, 16, 16])

    await expect(bdevs.resize('n0', 4)).rejects.toThrow('while subsystem a has it')
    claim.release()
    await bdevs.resize('n0', 4)
    expect(info.blockCount).toBe(4)
  })

  it('removes a device under those who use it: listeners first, then channels, then the device', async () => {
    await bdevs.create('null', 'n0', GEOMETRY)
    const heard: string[] = []
    bdevs.listen({
      removing: async ({ name }) => {
        await null
        heard.push(`removing ${name}`)
      },
      removed: ({ name }) => heard.push(`removed ${name}`),
    })
    const channel = local[0]!.open('n0')
    local[0]!.listen({ bdevRemoved: gone => heard.push(`channel of ${gone.info.name} is removed`) })

    await reactors.run(bdevs.remove('n0'))
    expect(heard).toEqual(['removing n0', 'channel of n0 is removed', 'removed n0'])

    const io = new BdevIo({ ioDone: () => {} })
    io.type = IoType.FLUSH
    channel.submit(io)
    reactors.settle()
    expect(io.status).toBe(Status.NAMESPACE_NOT_READY)
    local[0]!.close(channel)
    expect(() => local[0]!.open('n0')).toThrow('there is no bdev n0')
  })

  it('removes a device also when a listener fails to let go', async () => {
    await bdevs.create('null', 'n0', GEOMETRY)
    const gone: string[] = []
    bdevs.listen({ removing: () => Promise.reject(new Error('stuck')) })
    bdevs.listen({ removed: ({ name }) => gone.push(name) })
    await reactors.run(bdevs.remove('n0'))
    expect(gone).toEqual(['n0'])
  })

  it('waits for what is lent before it destroys a device', async () => {
    await bdevs.create('malloc', 'm0', GEOMETRY)
    const channel = local[0]!.open('m0')
    const io = new BdevIo({ ioDone: () => {} })
    io.lent = true
    io.blockCount = 8
    channel.submit(io)
    reactors.settle()

    let isRemoved = false
    const removal = bdevs.remove('m0').then(() => {
      isRemoved = true
    })
    for (let turn = 0; turn < 5; turn++) {
      reactors.poll()
      await new Promise(setImmediate)
    }
    expect(isRemoved).toBe(false)
    channel.release(io)
    await reactors.run(removal)
    expect(isRemoved).toBe(true)
  })

  it('saves the calls that recreate the devices, with their UUIDs and present sizes', async () => {
    const null0 = await bdevs.create('null', 'n0', GEOMETRY)
    const malloc0 = await bdevs.create('malloc', 'm0', { ...GEOMETRY, physical_block_size: 4096 })
    await bdevs.resize('n0', 32)
    bdevs.saveWith(() => [{ method: 'bdev_set_options', params: {} }])
    expect(bdevs.config()).toEqual([
      { method: 'bdev_set_options', params: {} },
      {
        method: 'bdev_null_create',
        params: { name: 'n0', block_size: 512, num_blocks: 32, uuid: null0.uuid },
      },
      {
        method: 'bdev_malloc_create',
        params: { name: 'm0', block_size: 512, num_blocks: 8, physical_block_size: 4096, uuid: malloc0.uuid },
      },
    ])
  })

  it('shares one channel a reactor among its users and closes it with the last', async () => {
    await bdevs.create('null', 'n0', GEOMETRY)
    const first = local[0]!.open('n0')
    // Compared here, not by `expect`, which would walk through the reactor's whole memory.
    const isSame = [local[0]!.open('n0') === first, local[1]!.open('n0') === first]
    expect(isSame).toEqual([true, false])
    local[0]!.close(first)
    local[0]!.close(first)
    expect(() => local[0]!.close(first)).toThrow('is open')
  })
})
