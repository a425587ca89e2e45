import { describe, expect, it } from 'vitest'
import { VolumeExports } from '../../src/volume/export.ts'
import type { Found } from '../../src/volume/found.ts'
import type { Volumes } from '../../src/volume/volumes.ts'
import { Storage } from './support.ts'

describe('a volume that is taken back from a guest', () => {
  it.each([false, true])('stays, and what has to be done is said (force: %s)', async force => {
    const called: string[] = []
    const answers: Readonly<Record<string, unknown>> = {
      nbd_export_list: [],
      nvmf_get_subsystems: [],
      vhost_get_controllers: [
        { ctrlr: 'vms-a', sessions: [{ name: 'vms-as0' }], backend_specific: { block: { bdev: 'vms-a' } } },
      ],
    }
    const volumes = { useOf: async () => ({ bdevs: [{ name: 'vms-a' }] }) }
    const exports = new VolumeExports(volumes as unknown as Volumes, async method => {
      called.push(method)
      return answers[method]
    })
    const found = { pool: { name: 'vms' }, volume: { name: 'a' } } as unknown as Found
    await expect(exports.unexport(found, { bdev: undefined, force })).rejects.toMatchObject({
      code: 'EBUSY',
      message:
        'volume a is in use at this moment by guest at vms-as0: have the guest let go of its disk, or shut it down, first: ' +
        "--force does not take a guest's vhost disk away",
    })
    expect(called).not.toContain('vhost_delete_controller')
  })
})

describe('a volume that a guest writes to by itself', () => {
  it('is exported only by somebody who knows of that', async () => {
    const storage = new Storage({ guestsOf: ({ name }) => (name === 'a' ? ['guest web, disk vda'] : []) })
    try {
      await storage.directoryPool('vms')
      for (const name of ['a', 'b']) await storage.create(name)
      const open = (volume: string, options: object): Promise<unknown> =>
        storage.call('volume_export', { volume, nbd: true, ...options })
      await expect(open('a', {})).rejects.toThrow(
        'volume a is used by guest web, disk vda already: end that first; --shared serves it to both',
      )
      expect(storage.bdevs.list()).toEqual([])
      // There is no NBD here: what follows shows only that nothing else was in the way.
      for (const [volume, options] of [
        ['a', { shared: true }],
        ['a', { read_only: true }],
        ['b', {}],
      ] as const) {
        await expect(open(volume, options)).rejects.toThrow('nbd_export_start')
      }
    } finally {
      storage.close()
    }
  })
})
