/** Writes to new clusters, as the engine starts them: without a task where nothing has to be waited for. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { checkImage, createImage } from '../../../../src/bdev/drivers/qcow2/image.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { Machine, SECTOR } from './simulation.ts'

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-placer-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

async function newMachine(sectors: number): Promise<Machine> {
  const path = join(directory, 'image')
  rmSync(path, { force: true })
  await createImage(path, { sizeBytes: sectors * SECTOR, clusterSize: 512 })
  const machine = new Machine(readFileSync(path), null, true, new Prng(1))
  machine.open()
  return machine
}

describe('a write to clusters that are new', () => {
  it('takes no task, and one operation of the file, when its table is in memory', async () => {
    const machine = await newMachine(128)
    expect(machine.finish(machine.write(0, 1, 0x11))).toBe(0)
    const before = machine.file.ended
    const ended = machine.write(5, 3, 0x22)
    expect(machine.scheduler.active).toBe(0)
    expect(machine.finish(ended)).toBe(0)
    expect(machine.file.ended - before).toBe(1)
    const read = machine.readAll(128)
    expect([...read.subarray(4, 9)]).toEqual([0, 0x22222222, 0x22222222, 0x22222222, 0])
  })

  it('is waited for by another one of the same cluster', async () => {
    const machine = await newMachine(128)
    expect(machine.finish(machine.write(0, 1, 0x11))).toBe(0)
    const first = machine.write(7, 1, 0x33)
    const second = machine.write(7, 1, 0x44)
    expect(machine.scheduler.active).toBe(1)
    expect([machine.finish(first), machine.finish(second)]).toEqual([0, 0])
    machine.run(task => machine.engine.drain(task))
    expect(machine.readAll(128)[7]).toBe(0x44444444)
  })

  it('gives its clusters back when it fails', async () => {
    const machine = await newMachine(128)
    expect(machine.finish(machine.write(0, 1, 0x11))).toBe(0)
    machine.file.fails = operation => (operation === 'write' ? -28 : 0)
    expect(machine.finish(machine.write(9, 2, 0x55))).toBe(-28)
    machine.file.fails = () => 0
    expect(machine.readAll(128)[9]).toBe(0)
    machine.run(task => machine.engine.drain(task))
    const path = join(directory, 'after')
    writeFileSync(path, machine.file.afterKill())
    expect(await checkImage(path)).toMatchObject({ corruptions: 0, leaks: 0 })
  })
})
