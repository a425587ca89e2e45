import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { ProgramError } from '../../../src/core/program.ts'
import { OwnGuests, type OwnGuestsParts, type RunRequest } from '../../../src/vm/run/own-guests.ts'

const REQUEST: RunRequest = {
  ...{ name: 'web', cpus: 1, memoryBytes: 1 << 28, hugePages: false, machine: undefined, accel: 'tcg' },
  ...{ disks: [], cdrom: undefined, kernel: undefined, initrd: undefined, append: undefined },
  ...{
    firmware: undefined,
    net: { type: 'none' },
    network: 'none',
    screen: undefined,
    passwordFile: undefined,
  },
}

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-own-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

/** Guests without disks, which need none of the parts that serve those. */
const guests = (own: Pick<OwnGuestsParts, 'directory' | 'run'>): OwnGuests =>
  new OwnGuests({ ...({} as OwnGuestsParts), ...own })

it('starts no guest for a daemon that would not know it again', async () => {
  await expect(guests({ directory: undefined }).start(REQUEST)).rejects.toThrow(
    'guest web would outlive the daemon, which keeps nothing: start it with a state directory, qpair serve --state DIR',
  )
})

it('starts no guest whose sockets would have too long a name', async () => {
  const deep = join(directory, 'x'.repeat(100))
  await expect(guests({ directory: deep }).start(REQUEST)).rejects.toThrow(
    /longer than the 107 bytes.*shorter --state/,
  )
})

it('says why nothing can be kept of a guest, and starts none', async () => {
  const path = join(directory, 'file')
  writeFileSync(path, '')
  const own = guests({ directory: join(path, 'guests'), run: async () => 'QEMU emulator version 7.2.22' })
  await expect(own.start(REQUEST)).rejects.toMatchObject({
    code: 'ENOTDIR',
    message: expect.stringContaining('The daemon needs a state directory that it may write to, with room'),
  })
  expect(own.list()).toEqual([])
})

it('names the packages of a QEMU that is missing, and leaves nothing', async () => {
  const run = async (program: string): Promise<string> => {
    throw new ProgramError(program, [], 'no such program', { exitCode: null, stderr: '', isMissing: true })
  }
  await expect(guests({ directory, run }).start(REQUEST)).rejects.toThrow(
    /apt-get install qemu-system-x86 \(Debian\)/,
  )
  expect(existsSync(join(directory, 'web'))).toBe(false)
})

it('takes away a start that never came to a record, and leaves what it does not understand', async () => {
  mkdirSync(join(directory, 'never'))
  mkdirSync(join(directory, 'odd'))
  writeFileSync(join(directory, 'odd/guest.json'), '{')
  const own = guests({ directory })
  own.adopt()
  expect(own.list()).toEqual([])
  expect(existsSync(join(directory, 'never'))).toBe(false)
  await expect(own.start({ ...REQUEST, name: 'odd' })).rejects.toThrow('a guest odd that is not understood')
  expect(existsSync(join(directory, 'odd/guest.json'))).toBe(true)
})

it('says which guests there are when one is not', () => {
  expect(() => guests({ directory }).get('web')).toThrow(
    "there is no guest web that qpair has started: there are none; libvirt's domains",
  )
})
