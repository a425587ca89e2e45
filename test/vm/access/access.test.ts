import {
  appendFileSync,
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ProgramError, runProgram } from '../../../src/core/program.ts'
import type { RunProgram } from '../../../src/libvirt/virsh.ts'
import { findObstacles, type Guest, type Need, type Obstacle } from '../../../src/vm/access/access.ts'
import { loadProfile, refusalSince, withdrawRule } from '../../../src/vm/access/apparmor.ts'

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

const own: Guest = {
  ...{ uuid: UUID, uid: process.getuid!(), gid: process.getgid!(), isRunning: false },
  selinuxLabel: 'system_u:system_r:svirt_t:s0:c1,c2',
}
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
    { models, user: undefined, selinuxLabel: undefined },
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
    await obstacle!.fix!()
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}" rwk, # qpair\n`)
    expect(await find({}, ['apparmor', 'dac'])).toEqual([])
  })

  it('is loaded anew for a guest that runs, and what is wrong with it told', async () => {
    const isRunning = { isRunning: true }
    const [obstacle] = await find({ kind: 'socket' }, ['apparmor', 'dac'], isRunning)
    const load = `apparmor_parser -r ${root}/etc/apparmor.d/libvirt/libvirt-${UUID}`
    expect(obstacle!.remedy[1]).toBe(load)
    await obstacle!.fix!()
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}" rw, # qpair\n`)

    await loadProfile(own, { run, root })
    expect(ran).not.toContain(load)
    if (process.getuid!() !== 0) return
    await expect(loadProfile({ ...own, ...isRunning }, { run, root })).rejects.toMatchObject({ code: 'EIO' })
    expect(ran).toContain(load)
  })

  it('loses its rule again when the disk does not come', async () => {
    const [obstacle] = await find({}, ['apparmor', 'dac'])
    await obstacle!.fix!()
    await obstacle!.undo!()
    expect(rules('local/abstractions/libvirt-qemu')).toBe('')
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
    await obstacle!.fix!()
    expect(rules(file)).toBe(`  # ours\n  "${root}" rk, # qpair\n`)
  })

  it('has what a path means, and not what its characters mean in a rule', async () => {
    const path = join(root, 'a"b*[c]')
    writeFileSync(path, '')
    const [obstacle] = await find({ path }, ['apparmor', 'dac'])
    await obstacle!.fix!()
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}/a\\"b\\*\\[c\\]" rwk, # qpair\n`)
  })

  it.each([
    ['  /images/*.raw rwk,', '/images/a.raw', true],
    ['/images/** rwmk, # all', '/images/deep/a.raw', true],
    ['"/images/{a,b}?.raw" wkr,', '/images/b1.raw', true],
    ['"/images/\\*.raw" rwk,', '/images/*.raw', true],
    ['/images/* rwk,', '/images/deep/a.raw', false],
    ['/images/*.raw rk,', '/images/a.raw', false],
    ['/images/a.raw.* rwk,', '/images/a.raw', false],
    ['#/images/* rwk,', '/images/a.raw', false],
    ['deny /images/* rwk,', '/images/a.raw', false],
    ['@{HOME}/* rwk,', '/images/a.raw', false],
    ['/images/{*.raw rwk,', '/images/a.raw', false],
  ])('with the rule %j has one for %s: %j', async (line, path, isEnough) => {
    mkdirSync(join(root, 'etc/apparmor.d/local/abstractions'), { recursive: true })
    writeFileSync(join(root, 'etc/apparmor.d/local/abstractions/libvirt-qemu'), `${line}\n`)
    // There is no such file, which is another obstacle.
    const causes = (await find({ path }, ['apparmor'])).map(({ cause }) => cause)
    expect(causes.some(cause => cause.startsWith('AppArmor'))).toBe(!isEnough)
  })

  it('has rules for what a link leads to', async () => {
    mkdirSync(join(root, 'real'))
    writeFileSync(join(root, 'real/a.raw'), '')
    symlinkSync(join(root, 'real'), join(root, 'link'))
    const [obstacle] = await find({ path: join(root, 'link/a.raw') }, ['apparmor', 'dac'])
    expect(obstacle!.cause).toContain(`no rule for ${root}/real/a.raw`)
    await obstacle!.fix!()
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}/real/a.raw" rwk, # qpair\n`)
    rmSync(join(root, 'real/a.raw'))
    await withdrawRule(join(root, 'link/a.raw'), { run, root })
    expect(rules('local/abstractions/libvirt-qemu')).toBe('')
  })

  describe('where the kernel tells what it can', () => {
    const kernel = (features: string): void => {
      mkdirSync(join(root, 'sys/kernel/security/apparmor/features', features), { recursive: true })
    }
    const socketRules = (): Promise<Obstacle[]> => find({ kind: 'socket' }, ['apparmor', 'dac'])

    it('needs no rule for a socket that the kernel does not ask for', async () => {
      kernel('network_v8/af_mask')
      expect(await socketRules()).toEqual([])
      expect(await find({}, ['apparmor', 'dac'])).toHaveLength(1)
    })

    it('needs one where it does, unless policies are made for an older kernel', async () => {
      kernel('network_v8/af_mask')
      kernel('network_v9/af_unix')
      expect(await socketRules()).toHaveLength(1)
      mkdirSync(join(root, 'etc/apparmor'))
      writeFileSync(join(root, 'etc/apparmor/parser.conf'), '# pinned\npolicy-features=/features\n')
      writeFileSync(join(root, 'features'), 'network_v8 {af_mask {unspec unix inet}}')
      expect(await socketRules()).toEqual([])
      writeFileSync(join(root, 'features'), 'network {af_mask {unspec unix inet}\naf_unix {yes\n}}')
      expect(await socketRules()).toHaveLength(1)
    })
  })

  it('and what it has refused is in the log of the kernel', async () => {
    const line = (time: number, uuid: string, name: string): string =>
      `[  42.1] audit: type=1400 audit(${time}.760:12): apparmor="DENIED" operation="open" profile="libvirt-${uuid}" ` +
      `name=${name} pid=338 comm="qemu-system-x86" requested_mask="wr" denied_mask="wr" fsuid=64055 ouid=64055\n`
    const since = (time: number, uuid?: string): Promise<string | undefined> =>
      refusalSince(time, uuid, { run, root })
    expect(await since(99, UUID)).toBeUndefined()
    answers['dmesg'] = line(100, UUID, '"/a.raw"') + line(200, UUID.replace('4', '5'), '"/b.raw"')
    expect(await since(99, UUID)).toBe('AppArmor has refused it /a.raw (wr)')
    expect(await since(101, UUID)).toBeUndefined()
    expect(await since(99)).toBeUndefined()
    answers['dmesg'] += line(201, UUID, '2F6120622E726177')
    expect(await since(99, UUID)).toBe('AppArmor has refused it /a b.raw (wr)')
  })

  it('loses the rule of a socket that is no more, and no other', async () => {
    const [obstacle] = await find({ kind: 'socket' }, ['apparmor', 'dac'])
    await obstacle!.fix!()
    const file = join(root, 'etc/apparmor.d/local/abstractions/libvirt-qemu')
    appendFileSync(file, `  "${root}" rw,\n  "${root}/b" rw, # qpair\n`)
    await withdrawRule(root, { run, root })
    expect(rules('local/abstractions/libvirt-qemu')).toBe(`  "${root}" rw,\n  "${root}/b" rw, # qpair\n`)
  })

  it('is changed for several guests at a time, in a file that stays as the administrator has made it', async () => {
    const directory = join(root, 'etc/apparmor.d/local/abstractions')
    mkdirSync(directory, { recursive: true })
    writeFileSync(join(root, 'own-rules'), '  # mine\n', { mode: 0o640 })
    symlinkSync(join(root, 'own-rules'), join(directory, 'libvirt-qemu'))
    const paths = ['a', 'b', 'c'].map(name => join(root, name))
    for (const path of paths) writeFileSync(path, '')
    const found = await Promise.all(paths.map(path => find({ path }, ['apparmor', 'dac'])))
    const fixes = found.flatMap(([first]) => (first?.fix === undefined ? [] : [first.fix()]))
    await Promise.all([...fixes, withdrawRule(paths[0]!, { run, root })])
    await withdrawRule(paths[1]!, { run, root })
    expect(rules('local/abstractions/libvirt-qemu')).toContain(`"${paths[2]}" rwk, # qpair`)
    expect(rules('local/abstractions/libvirt-qemu')).toContain('# mine')
    expect(statSync(join(root, 'own-rules')).mode & 0o777).toBe(0o640)
    expect(readdirSync(directory)).toEqual(['libvirt-qemu'])
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

  describe('where the policy can be asked', () => {
    const SUBJECT = own.selinuxLabel!
    const selinux = (path: string, text = ''): void => {
      const file = join(root, 'sys/fs/selinux', path)
      mkdirSync(dirname(file), { recursive: true })
      writeFileSync(file, text)
    }
    const known = (name: string, index: string, permissions: readonly string[]): void => {
      selinux(`class/${name}/index`, index)
      for (const [bit, permission] of permissions.entries())
        selinux(`class/${name}/perms/${permission}`, `${bit + 1}`)
    }
    /** Here an answer stands behind the place of a question of one length. */
    const policyAnswers = (object: string, index: string, allowed: string): void => {
      const question = `${SUBJECT} ${object} ${index}`
      selinux('access', `${' '.repeat(question.length)}${allowed} ffffffff 0 ffffffff 1 0`)
    }

    it('is any that the policy grants what is wanted', async () => {
      known('file', '6', ['ioctl', 'read', 'write', 'open'])
      const label = 'system_u:object_r:virt_content_t:s0'
      answers['stat'] = `${label}\n`
      policyAnswers(label, '6', 'a')
      expect(await find({ isReadOnly: true }, ['selinux', 'dac'])).toEqual([])
      const [obstacle] = await find({}, ['selinux', 'dac'])
      expect(obstacle!.cause).toContain('is labelled virt_content_t, which guests may not open')
      policyAnswers(label, '6', '8')
      const refused = (): Promise<Obstacle[]> => find({ isReadOnly: true }, ['selinux', 'dac'])
      expect((await refused())[0]!.remedy[0]).toBe(`semanage fcontext -a -t virt_content_t ${root}`)
      selinux('enforce', '0')
      expect(await refused()).toEqual([])
      selinux('enforce', '1')
      expect(await refused()).toHaveLength(1)
      expect(readFileSync(join(root, 'sys/fs/selinux/access'), 'latin1')).toContain(`${SUBJECT} ${label} 6`)
    })

    it('of a socket and of who listens there must be for guests', async () => {
      known('sock_file', '10', ['ioctl', 'read', 'write'])
      known('unix_stream_socket', '20', ['ioctl', 'connectto'])
      const label = 'system_u:object_r:var_run_t:s0'
      const daemon = 'system_u:system_r:daemon__t:s0'
      mkdirSync(join(root, 'proc/self/attr'), { recursive: true })
      writeFileSync(join(root, 'proc/self/attr/current'), `${daemon}\0`)
      answers['stat'] = `${label}\n`
      const allow = (allowed: string): void => policyAnswers(label, '10', allowed)
      const ask = (): Promise<Obstacle[]> => find({ kind: 'socket' }, ['selinux', 'dac'])
      expect(await ask()).toEqual([])
      allow('0')
      const [obstacle] = await ask()
      expect(obstacle!.cause).toBe(
        `SELinux: guests (svirt_t) may not connect to ${root}, labelled var_run_t, where this daemon listens as daemon__t`,
      )
      expect(obstacle!.remedy).toEqual([
        "echo '(allow svirt_t var_run_t (sock_file (write))) " +
          "(allow svirt_t daemon__t (unix_stream_socket (connectto)))' > qpair.cil",
        'semodule -i qpair.cil',
      ])
      expect(obstacle!.fix).toBeUndefined()
      allow('4')
      expect((await ask())[0]!.remedy[0]).not.toContain('sock_file')
      allow('6')
      expect(await ask()).toEqual([])
    })
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
        { models, user: undefined, selinuxLabel: undefined },
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
