import { statfsSync } from 'node:fs'
import { expect, it } from 'vitest'
import { fileSystemUsage } from '../../src/core/file-system-usage.ts'
import { ProgramError } from '../../src/core/program.ts'

it('is as the kernel counts it', async () => {
  const { bsize, blocks } = statfsSync('/')
  const { capacityBytes, allocationBytes, availableBytes } = await fileSystemUsage('/')
  expect(capacityBytes).toBe(blocks * bsize)
  expect(allocationBytes).toBeGreaterThan(0)
  expect(allocationBytes + availableBytes).toBeLessThanOrEqual(capacityBytes)
})

it('is of no path that is not there', async () => {
  const missing = fileSystemUsage('/no/such/path')
  await expect(missing).rejects.toBeInstanceOf(ProgramError)
  await expect(missing).rejects.toThrow('No such file or directory')
})
