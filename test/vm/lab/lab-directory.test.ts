import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { LabDirectory, removeLeftLabs } from '../../../src/vm/lab/lab-directory.ts'

let parent: string
beforeEach(() => {
  parent = mkdtempSync(join(tmpdir(), 'qpair-labs-'))
})
afterEach(() => rmSync(parent, { recursive: true }))

it('has thin disks, and goes with the lab', async () => {
  const lab = await LabDirectory.make(parent)
  const images = await lab.makeImages([1 << 20, 2 ** 40])
  expect(images.map(path => statSync(path).size)).toEqual([1 << 20, 2 ** 40])
  expect(statSync(images[1]!).blocks).toBe(0)
  await lab.remove()
  expect(existsSync(lab.path)).toBe(false)
})

it('is removed by the next lab when its own was killed, and no sooner', async () => {
  const lab = await LabDirectory.make(parent)
  const left = join(parent, 'qpair-lab-left01')
  mkdirSync(left)
  writeFileSync(join(left, 'lock'), '')
  writeFileSync(join(left, 'nvme0.raw'), 'large')
  // Neither of these is a lab.
  const other = join(parent, 'other')
  mkdirSync(other)
  writeFileSync(join(other, 'lock'), '')
  mkdirSync(join(parent, 'qpair-lab-empty1'))
  symlinkSync(other, join(parent, 'qpair-lab-link01'))

  const theirs = join(parent, 'qpair-lab-results')
  mkdirSync(theirs)
  writeFileSync(join(theirs, 'lock'), '')

  expect(await removeLeftLabs(parent)).toEqual([left])
  expect(existsSync(left)).toBe(false)
  for (const path of [lab.path, theirs, join(other, 'lock'), join(parent, 'qpair-lab-empty1')]) {
    expect(existsSync(path)).toBe(true)
  }
  await lab.remove()
})

it('says what the file system has against it, and that there are others', async () => {
  await expect(LabDirectory.make(join(parent, 'nowhere'))).rejects.toMatchObject({
    code: 'ENOENT',
    message: expect.stringMatching(/nowhere: there is no such directory; TMPDIR=DIR/),
  })
  const lab = await LabDirectory.make(parent)
  rmSync(lab.path, { recursive: true })
  await expect(lab.makeImages([2 ** 30])).rejects.toMatchObject({
    code: 'ENOENT',
    message: expect.stringMatching(/nvme0.raw, a file of 1 GiB: there is no such directory; TMPDIR=DIR/),
  })
  await lab.remove()
})
