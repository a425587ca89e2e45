/** What is asked of libvirt, of QEMU and of the daemon, and what is taken back when one of them refuses. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import { ProgramError } from '../../src/core/program.ts'
import { DomainDocument } from '../../src/libvirt/domain-xml.ts'
import type { RunProgram } from '../../src/libvirt/virsh.ts'
import { ServerImages } from '../../src/vm/disk/server-images.ts'
import type { AttachRequest } from '../../src/vm/libvirt/attach.ts'
import { LibvirtGuests, type LibvirtGuestsParts } from '../../src/vm/libvirt/guests.ts'
import { Turns } from '../../src/volume/turns.ts'
import { DOMAIN, NONE, ScriptedVirsh } from './scripted-virsh.ts'

let directory: string
let path: string
let virsh: ScriptedVirsh
let calls: string[]
const { write } = logSettings

beforeEach(() => {
  logSettings.write = () => {}
  directory = mkdtempSync(join(tmpdir(), 'qpair-attach-'))
  path = join(directory, 'nvme.raw')
  writeFileSync(path, '')
  virsh = new ScriptedVirsh()
  calls = []
})
afterEach(() => {
  logSettings.write = write
  rmSync(directory, { recursive: true })
})

/** A daemon with the bdev m0, and none of whose calls fails. */
function guests(): LibvirtGuests {
  const parts = {
    bdevs: {
      find: (name: string) => (name === 'm0' ? { name } : undefined),
      get: () => ({ driver: 'uring' }),
      ownersOf: () => '',
    },
    volumes: {
      find: (name: string) => {
        throw new RpcError('ENOENT', `there is no volume ${name}`)
      },
      useOfMedium: async () => ({ bdevs: [], programs: [], others: [], dependents: [] }),
    },
    vhost: { list: () => [], get: (name: string) => ({ socketPath: join(directory, name) }) },
    nbd: { list: () => [] },
    socketDirectory: directory,
    turns: new Turns(),
    images: new ServerImages(),
    call: async (method: string, params: unknown) => {
      calls.push(method)
      // What is served has a socket, which QEMU's user is looked at for.
      const { ctrlr, unix } = params as { ctrlr?: string; unix?: string }
      if (ctrlr !== undefined) writeFileSync(join(directory, ctrlr), '')
      if (unix !== undefined) writeFileSync(unix, '')
      return true
    },
    run: virsh.run,
    root: directory,
  }
  return new LibvirtGuests(parts as unknown as LibvirtGuestsParts)
}

const request = (change: Partial<AttachRequest>): AttachRequest => ({
  ...{ domain: 'g1', volume: path, pool: undefined, bus: 'nvme', target: undefined, serial: undefined },
  ...{
    isReadOnly: false,
    isShared: false,
    means: undefined,
    format: undefined,
    fix: false,
    live: false,
    config: false,
  },
  ...change,
})

describe('an NVMe disk for a guest that runs', () => {
  it('goes behind the last port that QEMU has free, and is written down with the guest', async () => {
    const attached = await guests().attach(undefined, request({ live: true }))
    expect(attached).toMatchObject({ target: 'nvme0', means: 'direct', live: true, config: false })
    const node =
      `{"driver":"raw","node-name":"qpair-nvme0","read-only":false,"discard":"unmap",` +
      `"file":{"driver":"file","filename":"${path}","discard":"unmap","read-only":false}}`
    const device = (bus: string): string =>
      `{"driver":"nvme","id":"qpair-nvme0","drive":"qpair-nvme0","serial":"g1-nvme0","bus":"${bus}","addr":"0x0"}`
    expect(virsh.changes).toEqual([
      `qemu-monitor-command g1 {"execute":"blockdev-add","arguments":${node}}`,
      `qemu-monitor-command g1 {"execute":"device_add","arguments":${device('pci.2')}}`,
      `qemu-monitor-command g1 {"execute":"device_add","arguments":${device('pci.1')}}`,
      "metadata g1 urn:qpair:monitor-disks:1 --live --key qpair --set <disks>\n  <nvme id='nvme0' serial='g1-nvme0' " +
        `type='file' source='${path}'/>\n</disks>\n`,
    ])
  })

  it('is taken from it again, with all that was made for it, when its next start cannot have it', async () => {
    virsh.refusals.set('define', 'XML error: no')
    virsh.lateNodes = 1
    const attach = guests().attach(undefined, request({ volume: 'm0', live: true, config: true }))
    await expect(attach).rejects.toThrow('libvirt: XML error: no')
    expect(virsh.changes.slice(-6).map(line => line.replace(/,"arguments.*/, ''))).toEqual([
      'define',
      'metadata g1 urn:qpair:monitor-disks:1 --live --remove',
      'qemu-monitor-command g1 {"execute":"device_del"',
      'qemu-monitor-command g1 {"execute":"qom-list"',
      'qemu-monitor-command g1 {"execute":"blockdev-del"',
      'qemu-monitor-command g1 {"execute":"blockdev-del"',
    ])
    expect(calls).toEqual(['nbd_export_start', 'nbd_export_stop'])
    expect(virsh.config).toBe(DOMAIN)
  })

  it('is refused where all ports are taken', async () => {
    virsh.live = DOMAIN.replace(/<controller type='pci' index='1'.*/, '')
    await expect(guests().attach(undefined, request({ live: true }))).rejects.toThrow(
      'has no free PCI Express port',
    )
    expect(virsh.changes.at(-1)).toContain('blockdev-del')
  })
})

describe('a disk that the host refuses', () => {
  const attach = (change: Partial<AttachRequest>): Promise<unknown> =>
    guests().attach(undefined, request({ config: true, ...change }))
  const rules = (): string =>
    readFileSync(join(directory, 'etc/apparmor.d/local/abstractions/libvirt-qemu'), 'utf8')

  it('is not attached, or the refusal is removed; what does not come leaves no rule', async () => {
    virsh.confinement = 'apparmor'
    await expect(attach({})).rejects.toMatchObject({
      code: 'EACCES',
      message: expect.stringMatching(/no rule for .* As root: echo .* --fix does that/),
    })
    expect(virsh.changes).toEqual([])
    virsh.refusals.set('define', 'XML error: no')
    await expect(attach({ fix: true })).rejects.toThrow('XML error: no')
    expect(rules()).toBe('')
    virsh.refusals.clear()
    await attach({ fix: true })
    expect(rules()).toBe(`  "${path}" rwk, # qpair\n`)
  })

  it('is attached where the domain is exempt from confinement', async () => {
    virsh.confinement = 'apparmor'
    virsh.config = DOMAIN.replace('<devices>', "<seclabel type='none'/><devices>")
    expect(await attach({})).toMatchObject({ means: 'direct' })
  })

  it('is told as without --fix where that cannot remove it', async () => {
    virsh.confinement = 'apparmor'
    writeFileSync(join(directory, 'etc'), '')
    await expect(attach({ fix: true })).rejects.toMatchObject({
      code: 'EACCES',
      message: expect.stringMatching(/As root: echo .* --fix could not do that: ENOTDIR/),
    })
  })
})

describe('a disk for the next start of a domain', () => {
  it('over vhost-user gives back memory and controller when libvirt refuses the disk', async () => {
    virsh.refusals.set('attach-device', 'no more room')
    const attach = guests().attach(
      undefined,
      request({ volume: 'm0', bus: 'virtio', means: 'vhost', config: true }),
    )
    await expect(attach).rejects.toThrow('libvirt: no more room')
    expect(virsh.changes).toEqual(['define', 'attach-device --file --config g1', 'define'])
    const left = DomainDocument.parse(virsh.config)
    expect(left.hasSharedMemory).toBe(false)
    expect(left.disks()).toHaveLength(1)
    expect(calls).toEqual(['vhost_create_blk_controller', 'vhost_delete_controller'])
  })

  it('is served, and has a name that the guest that runs has not either', async () => {
    virsh.live = DOMAIN.replace("dev='vda'", "dev='vdb'")
    const attached = await guests().attach(undefined, request({ volume: 'm0', bus: 'virtio', config: true }))
    expect(attached).toMatchObject({ target: 'vdc', means: 'nbd', source: 'g1-vdc' })
    expect(calls).toEqual(['nbd_export_start'])
  })

  it('is refused before anything is made where the target is taken', async () => {
    const attach = guests().attach(undefined, request({ bus: 'virtio', target: 'vda', config: true }))
    await expect(attach).rejects.toMatchObject({ code: 'EEXIST' })
    expect([calls, virsh.changes]).toEqual([[], []])
  })
})

describe('a disk that the domain has', () => {
  const withDisk = (name: string): string =>
    DOMAIN.replace(
      '</devices>',
      `<disk type='file' device='disk'><source file='${path}'/><target dev='${name}' bus='virtio'/></disk></devices>`,
    )
  const attach = (change: Partial<AttachRequest>): Promise<unknown> =>
    guests().attach(undefined, request({ bus: 'virtio', ...change }))

  it('is not attached to it once more, at the same time', async () => {
    virsh.config = withDisk('vdq')
    await expect(attach({ config: true })).rejects.toMatchObject({
      code: 'EEXIST',
      message: `domain g1 has ${path} already, as vdq: qpair vm disks g1 shows its disks`,
    })
    expect([calls, virsh.changes]).toEqual([[], []])
  })

  it('is attached now when it has it at its next start', async () => {
    virsh.config = withDisk('vdq')
    expect(await attach({ live: true })).toMatchObject({ live: true, config: false })
  })

  it('is attached once more to be read, and where it knows of that', async () => {
    virsh.config = withDisk('vdq')
    expect(await attach({ config: true, isReadOnly: true })).toMatchObject({ means: 'direct' })
    expect(await attach({ config: true, isShared: true })).toMatchObject({ means: 'direct' })
  })
})

describe('a disk that is taken away', () => {
  const VDB =
    "<disk type='file' device='disk'><source file='/b'/><target dev='vdb' bus='virtio'/></disk></devices>"
  const withDisk = DOMAIN.replace('</devices>', VDB)
  const detach = (disk: string): Promise<unknown> =>
    guests().detach(undefined, { domain: 'g1', disk, live: true, config: true })

  it('stays in the next start of the domain when the guest cannot let go of it', async () => {
    virsh.live = withDisk
    virsh.config = withDisk
    virsh.refusals.set('--live', 'device not found')
    await expect(detach('vdb')).rejects.toThrow('libvirt: device not found')
    expect(virsh.changes).toEqual([
      'detach-device --file --config g1',
      'detach-device --file --live g1',
      'define',
    ])
    expect(DomainDocument.parse(virsh.config).disks()).toHaveLength(2)
  })

  it('is found by what it is made of, where that is only one', async () => {
    virsh.live = withDisk
    virsh.config = withDisk.replace("file='/a'", "file='/b'")
    virsh.refusals.set('detach-device', 'no')
    await expect(detach('/a')).rejects.toThrow('libvirt: no')
    await expect(detach('/b')).rejects.toThrow('domain g1 has /b as vdb and vda: say which')
    await expect(detach('/c')).rejects.toThrow('domain g1 has no disk /c: there are vda (/a), vdb (/b)')
  })

  it('takes its rule of AppArmor along, once no guest has it any more', async () => {
    const rules = join(directory, 'etc/apparmor.d/local/abstractions/libvirt-qemu')
    mkdirSync(dirname(rules), { recursive: true })
    writeFileSync(rules, `  /other rwk,\n  "${path}" rwk, # qpair\n`)
    const document = DomainDocument.parse(DOMAIN)
    const source = { kind: 'file', path, format: 'raw' } as const
    document.addNvme({ id: 'nvme0', serial: '1', source, isReadOnly: false, slot: 30 })
    virsh.config = virsh.live = document.toString()
    const detachFromConfig = (): Promise<unknown> =>
      guests().detach(undefined, { domain: 'g1', disk: 'nvme0', live: false, config: true })
    await detachFromConfig()
    expect(readFileSync(rules, 'utf8')).toContain(path)

    virsh.config = document.toString()
    virsh.live = DOMAIN
    await detachFromConfig()
    expect(readFileSync(rules, 'utf8')).toBe('  /other rwk,\n')
  })

  it('is not when the guest has had it since its start, on a bus without hot-plug', async () => {
    const args = ['-drive', 'file=/n,id=D22', '-device', 'nvme,drive=D22,serial=1']
    const block = args.map(value => `<qemu:arg value='${value}'/>`).join('')
    virsh.live = DOMAIN.replace(
      '</domain>',
      `<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>${block}</qemu:commandline></domain>`,
    )
    await expect(detach('D22')).rejects.toThrow('--config takes it away from its next start')
    expect(virsh.changes).toEqual([])
  })
})

describe('libvirt', () => {
  it.each([
    [
      'error: failed to connect to the hypervisor\nerror: Failed to connect socket',
      'ECONNREFUSED',
      'See that it runs',
    ],
    ["error: failed to get domain 'g1'", 'ENODEV', 'virsh list --all'],
    ['error: internal error: No more available PCI slots', 'ENOSPC', 'pcie-root-port'],
    [
      "error: x\nerror: internal error: Could not open '/a': Permission denied",
      'EACCES',
      'Permission denied',
    ],
    ['error: something else', 'EIO', 'libvirt: something else'],
  ])('is quoted with what to do: %j', async (stderr, code, words) => {
    const run: RunProgram = async (program, args) => {
      throw new ProgramError(program, args, stderr, { exitCode: 1, stderr })
    }
    const refused = new LibvirtGuests({ run } as unknown as LibvirtGuestsParts).disks(undefined, 'g1')
    await expect(refused).rejects.toMatchObject({ code, message: expect.stringContaining(words) })
  })

  it('is missing without its client, and its package named', async () => {
    const run: RunProgram = async (program, args) => {
      throw new ProgramError(program, args, 'none', NONE)
    }
    const refused = new LibvirtGuests({ run } as unknown as LibvirtGuestsParts).disks(undefined, 'g1')
    await expect(refused).rejects.toThrow('install libvirt-clients (Debian), libvirt-client (Fedora, SUSE)')
  })
})
