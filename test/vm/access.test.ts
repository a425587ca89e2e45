import {
  appendFileSync,
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ProgramError, runProgram } from '../../src/core/program.ts'
import type { RunProgram } from '../../src/libvirt/virsh.ts'
import { findObstacles, type Guest, type Need, type Obstacle } from '../../src/vm/libvirt/access.ts'
import { withdrawRule } from '../../src/vm/libvirt/apparmor.ts'

const UUID = '4dea22b3-1d52-d8f3-2516-782e98ab3fa0'

let root: string
/** Programs that were run, with what they answer; one that is not here is missing. */
let answers: Record<string, string>
let ran: string[]

const run: RunProgram = async (program, args) => {
  ran.push([program, ...args].join(' '))
  const answer = answers[program]
  if (answer !== undefined) return answer
  throw new ProgramError(program, args, 'no such program', { exitCode: null, stderr: '', isMissing: true })
}

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'qpair-access-'))
  chmodSync(root, 0o755)
  mkdirSync(join(root, 'etc/apparmor.d/abstractions'), { recursive: true })
  answers = {}
  ran = []
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

const own: Guest = { uuid: UUID, uid: process.getuid!(), gid: process.getgid!(), isRunning: false }
const need = (change: Partial<Need>): Need => ({
  path: '/images/nvme.raw',
  kind: 'file',
  isReadOnly: false,
  isKnownToLibvirt: false,
  ...change,
})
const find = (
  change: Partial<Need>,
  models: readonly string[],
  guest: Partial<Guest> = {},
): Promise<Obstacle[]> =>
  findObstacles(
    need({ path: root, ...change }),
    { ...own, ...guest },
    { models, user: undefined },
    { run, root },
  )

describe("AppArmor's profile of a guest", () => {
  const rules = (path: string): string => readFileSync(join(root, 'etc/apparmor.d', path), 'utf8')

  it('needs a rule for what stands in the arguments of QEMU, in the file of this machine', async () => {
    const [obstacle, ...more] = await find({}, ['apparmor', 'dac'])
    expect(more).toEqual([])
    expect(obstacle!.cause).toContain(`no rule for ${root}, since libvirt does not know of it`)
    expect(obstacle!.remedy).toEqual([
      `echo '  "${root}" rwk, # qpair' >> ${root}/etc/apparmor.d/local/abstractions/libvirt-qemu`,
    ])
    await obstacle!.fix()
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}" rwk, # qpair\n`)
    expect(await find({}, ['apparmor', 'dac'])).toEqual([])
  })

  it('is loaded anew for a guest that runs', async () => {
    answers['apparmor_parser'] = ''
    const [obstacle] = await find({ kind: 'socket' }, ['apparmor', 'dac'], { isRunning: true })
    const load = `apparmor_parser -r ${root}/etc/apparmor.d/libvirt/libvirt-${UUID}`
    expect(obstacle!.remedy[1]).toBe(load)
    await obstacle!.fix()
    expect(ran).toContain(load)
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}" rw, # qpair\n`)
  })

  it('has a directory for such rules in newer versions, and one line more is all that changes', async () => {
    writeFileSync(
      join(root, 'etc/apparmor.d/abstractions/libvirt-qemu'),
      '  include if exists <abstractions/libvirt-qemu.d>\n',
    )
    mkdirSync(join(root, 'etc/apparmor.d/abstractions/libvirt-qemu.d'))
    const file = 'abstractions/libvirt-qemu.d/qpair'
    writeFileSync(join(root, 'etc/apparmor.d', file), '  # ours')
    const [obstacle] = await find({ isReadOnly: true }, ['apparmor', 'dac'])
    await obstacle!.fix()
    expect(rules(file)).toBe(`  # ours\n  "${root}" rk, # qpair\n`)
  })

  it('has what a path means, and not what its characters mean in a rule', async () => {
    const path = join(root, 'a"b*[c]')
    writeFileSync(path, '')
    const [obstacle] = await find({ path }, ['apparmor', 'dac'])
    await obstacle!.fix()
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}/a\\"b\\*\\[c\\]" rwk, # qpair\n`)
  })

  it('loses the rule of a socket that is no more, and no other', async () => {
    const [obstacle] = await find({ kind: 'socket' }, ['apparmor', 'dac'])
    await obstacle!.fix()
    const file = join(root, 'etc/apparmor.d/local/abstractions/libvirt-qemu')
    appendFileSync(file, `  "${root}" rw,\n  "${root}/b" rw, # qpair\n`)
    await withdrawRule(root, { run, root })
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}" rw,\n  "${root}/b" rw, # qpair\n`)
  })

  it('is made by libvirt for what it knows', async () => {
    expect(await find({ isKnownToLibvirt: true }, ['apparmor', 'dac'])).toEqual([])
  })
})

describe("SELinux's label", () => {
  it.each([
    ['system_u:object_r:default_t:s0', 'default_t'],
    ['unconfined_u:object_r:user_home_t:s0:c1,c2', 'user_home_t'],
  ])('%s is not for guests', async (label, type) => {
    answers['stat'] = `${label}\n`
    const [obstacle] = await find({}, ['selinux', 'dac'])
    expect(obstacle!.cause).toContain(`is labelled ${type}, which guests may not open`)
    expect(obstacle!.remedy).toEqual([
      `semanage fcontext -a -t svirt_image_t ${root}`,
      `restorecon -v ${root}`,
    ])
  })

  it('is right, or given by libvirt', async () => {
    answers['stat'] = 'system_u:object_r:svirt_image_t:s0\n'
    expect(await find({}, ['selinux', 'dac'])).toEqual([])
    answers['stat'] = 'system_u:object_r:default_t:s0\n'
    expect(await find({ isKnownToLibvirt: true }, ['selinux', 'dac'])).toEqual([])
  })
})

describe.skipIf(process.getuid!() !== 0)(
  'owners and directories, which only root can try for another user',
  () => {
    const NOBODY = { uid: 65534, gid: 65534 }
    const real = (
      path: string,
      change: Partial<Need> = {},
      models: readonly string[] = [],
    ): Promise<Obstacle[]> =>
      findObstacles(
        need({ path, ...change }),
        { ...own, ...NOBODY },
        { models, user: undefined },
        {
          // What changes the machine is only noted; what looks is run.
          run: async (program, args, options) =>
            program === 'setpriv' ? runProgram(program, args, options) : run(program, args),
          root,
        },
      )

    it('name the first directory that is closed', async () => {
      const closed = join(root, 'closed')
      mkdirSync(join(closed, 'inner'), { recursive: true })
      chmodSync(closed, 0o700)
      const [obstacle] = await real(join(closed, 'inner/a.raw'))
      expect(obstacle!.cause).toBe(`user 65534, as whom QEMU runs, may not search the directory ${closed}`)
      expect(obstacle!.remedy).toEqual([`chmod o+x ${closed}`])
      answers['setfacl'] = 'setfacl 2.3.1'
      expect((await real(join(closed, 'inner/a.raw')))[0]!.remedy).toEqual([`setfacl -m u:65534:x ${closed}`])
    })

    it('name the file, unless libvirt hands it over itself', async () => {
      const path = join(root, 'a.raw')
      writeFileSync(path, '')
      chmodSync(path, 0o600)
      expect((await real(path))[0]!.cause).toBe(
        `user 65534, as whom QEMU runs, may not read and write ${path}`,
      )
      expect((await real(path))[0]!.remedy).toEqual([`chown 65534 ${path}`])
      expect(await real(path, { isKnownToLibvirt: true }, ['dac'])).toEqual([])
      expect(await real(path, { isKnownToLibvirt: true })).toHaveLength(1)
      chmodSync(path, 0o644)
      expect(await real(path, { isReadOnly: true })).toEqual([])
      expect(await real(path)).toHaveLength(1)
      chownSync(path, 65534, 65534)
      expect(await real(path)).toEqual([])
    })
  },
)
