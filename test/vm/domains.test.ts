import { expect, it } from 'vitest'
import { ProgramError } from '../../src/core/program.ts'
import { Virsh } from '../../src/libvirt/virsh.ts'
import { readDomains } from '../../src/vm/libvirt/domains.ts'

it('reads every domain, a few at a time, but those that go while they are looked at', async () => {
  const uuids = Array.from({ length: 20 }, (_, index) => `7e4d0a6c-0000-4000-8000-0000000000${index + 10}`)
  let running = 0
  let most = 0
  const virsh = new Virsh(undefined, async (program, args) => {
    most = Math.max(most, ++running)
    await new Promise(setImmediate)
    running--
    const uuid = args.at(-1)!
    if (args.includes('list')) return uuids.map(each => `${each}\n`).join('')
    if (uuid === uuids[3] && args.includes('dominfo')) {
      throw new ProgramError(program, args, '', {
        exitCode: 1,
        stderr: `error: failed to get domain '${uuid}'`,
      })
    }
    if (uuid === uuids[5] && args.includes('dumpxml')) {
      throw new ProgramError(program, args, '', { exitCode: 1, stderr: 'error: Domain not found: no domain' })
    }
    if (args.includes('dominfo')) return 'State:          in shutdown\nPersistent:     no\n'
    return `<domain type='qemu'><name>${uuid.slice(-2)}</name></domain>`
  })
  const names = (await readDomains(virsh)).map(({ name }) => Number(name))
  expect(names).toEqual(uuids.map((_, index) => index + 10).filter(each => each !== 13 && each !== 15))
  expect(most).toBeLessThanOrEqual(4)
})
