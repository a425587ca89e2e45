import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ProtocolError } from '../../../src/core/errors.ts'
import { hexOf, type ScsiGuest, ScsiHost } from './support.ts'

let host: ScsiHost
let guest: ScsiGuest

beforeEach(async () => {
  host = await ScsiHost.start()
  guest = await host.guest('vhost.0', ['m0'])
})
afterEach(() => host.close())

const word = (value: number): Uint8Array => new Uint8Array(Uint32Array.of(value).buffer)

describe('the model of a SCSI controller', () => {
  it('is a device of type 8 with two queues before those for requests, hot plug and changes', () => {
    const { deviceId, fixedQueues, features } = guest.model
    expect({ deviceId, fixedQueues, features }).toEqual({ deviceId: 8, fixedQueues: 2, features: 0b110n })
  })

  it('has a configuration space of 36 bytes', () => {
    expect(hexOf(guest.model.config(0n, { writeback: true }))).toBe(
      [
        '04000000', // num_queues
        '7e000000', // seg_max
        '00000200', // max_sectors
        '80000000', // cmd_per_lun
        '10000000', // event_info_size
        '60000000', // sense_size
        '20000000', // cdb_size
        '0000', // max_channel
        '0700', // max_target
        'ff3f0000', // max_lun
      ].join(''),
    )
  })

  it('lets the driver write the sizes of sense and CDB, and nothing else', () => {
    const { model, state } = guest
    expect(model.writeConfig(20, word(252), state)).toBe(true)
    expect(model.writeConfig(24, word(16), state)).toBe(true)
    expect(model.describe(0n, state)).toMatchObject({ senseSize: 252, cdbSize: 16 })
    expect(hexOf(model.config(0n, state)).slice(40, 56)).toBe('fc00000010000000')
    for (const [offset, bytes] of [
      [20, word(253)],
      [24, word(15)],
      [24, word(261)],
      [24, word(0xffff_ffff)],
      [0, word(1)],
      [20, word(96).subarray(0, 2)],
      [22, word(0)],
    ] as const) {
      expect(() => model.writeConfig(offset, bytes, state), `${offset}`).toThrow(ProtocolError)
    }
    expect(model.describe(0n, state)).toMatchObject({ senseSize: 252, cdbSize: 16 })
  })

  it('tells front ends apart, and names the same initiator for all of them', () => {
    const first = guest.model.describe(0n, guest.state)
    const second = guest.model.describe(0n, { writeback: true })
    expect(guest.model.describe(0n, guest.state).nexus).toBe(first.nexus)
    expect(second.nexus).not.toBe(first.nexus)
    expect([first.initiator, second.initiator]).toEqual(['vhost.0', 'vhost.0'])
    expect(second.targets).toEqual([{ number: 0, name: 'Target 0', bdev: 'm0' }])
    // One memory for all threads.
    expect(structuredClone(first).units.buffer).toBeInstanceOf(SharedArrayBuffer)
  })
})
