// Base 2.1, sections 5.1.11 and 5.1.25.
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISCOVERY, HOSTID, type Host, TargetRig } from './support.ts'

let rig: TargetRig
let host: Host
beforeEach(async () => {
  rig = await TargetRig.ready({ ana: true })
  host = await rig.host({ katoMs: 15_500 })
})
afterEach(() => rig.close())

const get = (fid: string, rest: Record<number, string> = {}) => host.admin({ 0: '0a', 40: fid, ...rest })
const set = (fid: string, cdw11: string, rest: Record<number, string> = {}) =>
  host.admin({ 0: '09', 40: fid, 44: cdw11, ...rest }, 0)

describe('Set and Get Features', () => {
  it.each([
    ['arbitration', '01', '07 01 02 03', 0x0302_0107],
    ['power management', '02', '20 00 00 00', 0x20],
    ['temperature threshold', '04', '40 01 00 00', 0x140],
    ['error recovery', '05', '05 00 00 00', 5],
    ['write atomicity', '0a', '01 00 00 00', 1],
  ])('remembers %s, and knows its default', async (_, fid, value, number) => {
    const initial = (await get(fid)).dw0
    expect((await set(fid, value)).status).toBe(0)
    expect((await get(fid)).dw0).toBe(number)
    expect((await get(fid, { 41: '01' })).dw0).toBe(initial)
    expect((await get(fid, { 41: '02' })).dw0).toBe(initial)
    expect((await get(fid, { 41: '03' })).dw0).toBe(4) // changeable, not saveable
  })

  it.each([
    ['a power state that is not there', '02', '01 00 00 00', {}, 0x002],
    ['a lower temperature threshold', '04', '40 01 10 00', {}, 0x002],
    ['errors for deallocated blocks', '05', '00 00 01 00', {}, 0x002],
    ['an impossible number of queues', '07', 'ff ff 01 00', {}, 0x002],
    ['coalescing of interrupts', '08', '01 01 00 00', {}, 0x10e],
    ['interrupt vectors', '09', '01 00 01 00', {}, 0x10e],
    ['to switch off a cache that it cannot reach', '06', '00 00 00 00', {}, 0x10e],
    ['the host identifier', '81', '01 00 00 00', {}, 0x00c],
    ['a feature that is not there', '10', '00 00 00 00', {}, 0x002],
    ['to save', '01', '00 00 00 00', { 43: '80' }, 0x10d],
    ['a namespace of its own', '01', '00 00 00 00', { 4: '01000000' }, 0x10f],
  ])('refuses %s', async (_, fid, value, rest, status) => {
    expect((await set(fid, value, rest)).status).toBe(status)
  })

  it('grants all queues there are, whatever was asked for', async () => {
    expect((await set('07', '03 00 03 00')).dw0).toBe(0x007e_007e)
    expect((await get('07')).dw0).toBe(0x007e_007e)
  })

  it('takes the notices that it can give', async () => {
    expect((await get('0b')).dw0).toBe(0x900)
    await set('0b', 'ff ff ff ff')
    expect((await get('0b')).dw0).toBe(0x900)
    await set('0b', '00 01 00 00')
    expect((await get('0b')).dw0).toBe(0x100)
  })

  it('rounds the keep-alive time-out up to whole units, and not below the least', async () => {
    expect((await get('0f')).dw0).toBe(16_000)
    expect((await set('0f', 'e8 03 00 00')).status).toBe(0)
    expect((await get('0f')).dw0).toBe(10_000)
    await set('0f', '00 00 00 00')
    expect((await get('0f')).dw0).toBe(0)
  })

  it('tells the host identifier, in its long form only', async () => {
    const { data } = await get('81', { 44: '01000000' })
    expect(Buffer.from(data!).toString('hex')).toBe(HOSTID)
    expect((await get('81')).status).toBe(0x002)
  })

  it('remembers what the host can do', async () => {
    const behavior = new Uint8Array(512)
    behavior[0] = 1
    expect((await host.admin({ 0: '09', 40: '16' }, 512, behavior)).status).toBe(0)
    expect((await get('16')).data!.subarray(0, 4)).toEqual(Uint8Array.of(1, 0, 0, 0))
    behavior[0] = 2
    expect((await host.admin({ 0: '09', 40: '16' }, 512, behavior)).status).toBe(0x002)
    expect((await host.admin({ 0: '09', 40: '16' }, 100, behavior.subarray(0, 100))).status).toBe(0x00f)
  })

  it('refuses an unknown selection', async () => {
    expect((await get('01', { 41: '04' })).status).toBe(0x002)
  })

  it('has few features on a discovery controller', async () => {
    host = await rig.host({ subnqn: DISCOVERY })
    expect((await get('0b')).dw0! >>> 0).toBe(0x8000_0000)
    expect((await get('0f')).dw0).toBe(0)
    expect((await get('01')).status).toBe(0x002)
  })
})
