/** Bdevs that are there only as long as a copy reads or fills what is beneath them. */
import { randomUUID } from 'node:crypto'
import type { BdevRegistry } from '../../bdev/registry.ts'
import type { ReactorGroup } from '../../reactor/group.ts'
import type { MethodCall } from '../../rpc/config.ts'
import type { Call } from '../nvme-export.ts'
import { BdevDisk } from './disk.ts'

export interface ScratchOptions {
  readonly bdevs: BdevRegistry
  readonly reactors: ReactorGroup
  /** A method of the daemon at once, saving nothing. */
  readonly replay: Call
}

const TAKES_UUID = /^bdev_(aio|uring|qcow2|rbd)_create$/

export class ScratchBdevs {
  readonly #options: ScratchOptions
  #lastId = 0

  constructor(options: ScratchOptions) {
    this.#options = options
  }

  /** Lends the bdev that this call makes. */
  async lend(
    { method, params }: MethodCall,
    use: 'read' | 'zeroed',
    work: (disk: BdevDisk) => Promise<void>,
  ): Promise<void> {
    const { bdevs, reactors, replay } = this.#options
    const name = `transfer${++this.#lastId}`
    bdevs.unsaved.add(name)
    try {
      // Two copies of one volume are two devices over one medium, which would have one UUID.
      const uuid = TAKES_UUID.test(method) ? { uuid: randomUUID() } : {}
      await replay(method, { ...params, ...uuid, name })
      const disk = await BdevDisk.open(bdevs, reactors, name, 'a copy of its content', use)
      try {
        await work(disk)
      } finally {
        await disk.close()
      }
    } finally {
      if (bdevs.find(name) !== undefined) await bdevs.remove(name)
      bdevs.unsaved.delete(name)
    }
  }
}
