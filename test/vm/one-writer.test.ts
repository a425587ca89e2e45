/** Who may have a disk, and what goes with it: with a daemon that keeps bdevs and exports as the real one does. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import { ProgramError } from '../../src/core/program.ts'
import type { RunProgram } from '../../src/libvirt/virsh.ts'
import { ServerImages } from '../../src/vm/disk/server-images.ts'
import type { AttachRequest } from '../../src/vm/libvirt/attach.ts'
import { LibvirtGuests, type LibvirtGuestsParts } from '../../src/vm/libvirt/guests.ts'
import { type DiskParts, type DiskRequest, prepareDisk } from '../../src/vm/run/disk-source.ts'
import type { DiskWord } from '../../src/vm/run/guest-disk.ts'
import type { RecordedDisk } from '../../src/vm/run/guest-record.ts'
import { releaseDisk } from '../../src/vm/run/release.ts'
import { withUndo } from '../../src/vm/undo.ts'
import { Turns } from '../../src/volume/turns.ts'
import { NONE } from './scripted-virsh.ts'

const { write } = logSettings
let directory: string
/** Exports by name, with their bdevs and the number of their clients. */
let exported: Map<string, { bdev: string; connectionCount: number }>
/** Bdevs by name, with the file that each has. */
let bdevs: Map<string, string>
/** Definitions of domains that do not run, by name. */
let domains: Map<string, string>
let dependents: string[]
let running: string
/** What Ceph knows of who has the image open. */
let clients: string[]

beforeEach(() => {
  logSettings.write = () => {}
  directory = mkdtempSync(join(tmpdir(), 'qpair-writer-'))
  exported = new Map()
  bdevs = new Map([['m0', '']])
  domains = new Map(['web', 'db', 'a b', 'a_b'].map(name => [name, domainOf(name, '')]))
  dependents = []
  running = ''
  clients = []
})
afterEach(() => {
  logSettings.write = write
  rmSync(directory, { recursive: true })
})

/** An image of Ceph that QEMU opens by itself. */
const IMAGE = {
  pool: {
    document: { type: 'rbd', source: { hosts: [{ name: 'mon' }] } },
    backend: {
      opening: () => {
        throw new RpcError('ENOTSUP', 'no bdev')
      },
    },
  },
  volume: { type: 'network', path: 'ceph/image', format: 'raw' },
}

const domainOf = (name: string, disks: string): string =>
  `<domain type='qemu'><name>${name}</name><os><type machine='q35'>hvm</type></os><devices>${disks}</devices></domain>`

const virsh: RunProgram = async (program, args, { input = '' } = {}) => {
  if (program !== 'virsh') throw new ProgramError(program, args, 'none', NONE)
  const [verb] = args.filter(word => !word.startsWith('--'))
  const name = args.at(-1)!
  if (verb === 'capabilities') return '<capabilities/>'
  if (verb === 'list') return [...domains.keys()].join('\n')
  const document = domains.get(name)
  if (document === undefined) {
    throw new ProgramError(program, args, '', {
      exitCode: 1,
      stderr: `error: failed to get domain '${name}'`,
    })
  }
  if (verb === 'dominfo')
    return `State:          ${running === name ? 'running' : 'shut off'}\nPersistent:     yes`
  if (verb === 'dumpxml') return document
  const disks = /<devices>([\s\S]*)<\/devices>/.exec(document)![1]!
  const target = /<target dev=["'](\w+)/.exec(input)![1]!
  const others = disks.split(/(?=<disk)/).filter(disk => !disk.includes(`dev='${target}'`))
  domains.set(name, domainOf(name, [...others, verb === 'attach-device' ? input : ''].join('')))
  return ''
}

async function call(method: string, params: unknown): Promise<unknown> {
  const { name, bdev_name, filename, unix } = params as Record<string, string>
  if (method === 'nbd_export_start') {
    exported.set(name!, { bdev: bdev_name!, connectionCount: 0 })
    writeFileSync(unix!, '')
  } else if (method === 'nbd_export_stop') exported.delete(name!)
  else if (method === 'bdev_uring_create') bdevs.set(name!, filename!)
  else bdevs.delete(name!)
  return true
}

const owners = (bdev: string): string =>
  [...exported].flatMap(([name, each]) => (each.bdev === bdev ? [`NBD export "${name}"`] : [])).join(', ')

function parts(images = new ServerImages()): LibvirtGuestsParts & DiskParts {
  const parts = {
    bdevs: {
      find: (name: string) =>
        bdevs.has(name)
          ? { name, driver: 'uring', driverSpecific: { uring: { filename: bdevs.get(name) } } }
          : undefined,
      get: () => ({ driver: 'uring' }),
      ownersOf: owners,
    },
    volumes: {
      find: (name: string) => {
        if (name === 'ceph/image') return IMAGE
        throw new RpcError('ENOENT', `there is no volume ${name}`)
      },
      useOf: async () => ({ bdevs: [], programs: [], others: [], dependents: [] }),
      useAnywhere: async () => ({ bdevs: [], programs: [], others: clients, dependents: [] }),
      useOfMedium: async ({ path }: { path: string }) => ({
        bdevs: [...bdevs].flatMap(([name, file]) => (file === path ? [{ name, readOnly: false }] : [])),
        programs: [],
        others: [],
        dependents: dependents.map(name => ({ name })),
      }),
    },
    vhost: { list: () => [] },
    nbd: {
      list: () =>
        [...exported].map(([name, each]) => ({
          ...{ name, ...each },
          address: { host: join(directory, `${name}.nbd`) },
        })),
    },
    ...{ socketDirectory: directory, turns: new Turns(), run: virsh, root: directory, call },
    ...{ images, access: { run: virsh, root: directory } },
  }
  return parts as unknown as LibvirtGuestsParts & DiskParts
}

const guests = (): LibvirtGuests => new LibvirtGuests(parts())

const diskOf = (volume: string, means: 'direct'): DiskWord => ({
  ...{
    volume,
    bus: 'virtio',
    means,
    format: undefined,
    serial: undefined,
    isReadOnly: false,
    isShared: false,
  },
})

const request = (change: Partial<AttachRequest>): AttachRequest => ({
  ...{ domain: 'web', volume: 'm0', pool: undefined, bus: 'virtio', target: undefined, serial: undefined },
  ...{ isReadOnly: false, isShared: false, means: 'nbd', format: undefined, fix: false },
  ...{ live: false, config: true },
  ...change,
})

const image = (): string => {
  const path = join(directory, 'disk.raw')
  writeFileSync(path, '')
  return path
}

describe('a disk that a guest writes to', () => {
  it('is given to one of two that ask at the same time', async () => {
    const both = guests()
    const results = await Promise.allSettled([
      both.attach(undefined, request({})),
      both.attach(undefined, request({ domain: 'db' })),
    ])
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected'])
    expect((results[1] as PromiseRejectedResult).reason).toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining(
        'm0 is in use by NBD export "web-vda", and two writers would destroy it',
      ),
    })
    expect([...exported.keys()]).toEqual(['web-vda'])
    expect(domains.get('db')).not.toContain('<disk')
  })

  it('is given to another one that only reads, or when it is said that they know of each other', async () => {
    const all = guests()
    await all.attach(undefined, request({}))
    await all.attach(undefined, request({ domain: 'db', isReadOnly: true }))
    await all.attach(undefined, request({ domain: 'db', isShared: true }))
    expect([...exported.keys()]).toEqual(['web-vda', 'db-vda', 'db-vdb'])
  })

  it('is found open behind its path, too', async () => {
    const volume = image()
    bdevs.set('b0', volume)
    const direct = guests().attach(undefined, request({ volume, means: 'direct' }))
    await expect(direct).rejects.toThrow('the daemon has it open, and two writers would destroy it')
    exported.set('other', { bdev: 'b0', connectionCount: 1 })
    await expect(guests().attach(undefined, request({ volume }))).rejects.toThrow(
      'in use by NBD export "other"',
    )
  })

  it('is on a server, and only the other domains tell who has it', async () => {
    const all = guests()
    const image = { volume: 'ceph/image', means: 'direct' } as const
    await all.attach(undefined, request({ ...image, domain: 'db' }))
    expect((await all.attach(undefined, request(image))).notes).toContain(
      'domain db has it too, at its next start: only one of the two may run',
    )
    running = 'db'
    await expect(all.attach(undefined, request({ ...image, domain: 'a_b' }))).rejects.toThrow(
      'ceph/image is in use by domain db, which runs, and two writers would destroy it: qpair vm detach db vda first',
    )
    await all.attach(undefined, request({ ...image, domain: 'a_b', isShared: true }))
  })

  it('is on a server, and is given to one of two domains that ask at the same time', async () => {
    const all = guests()
    const image = { volume: 'ceph/image', means: 'direct' } as const
    const results = await Promise.allSettled([
      all.attach(undefined, request(image)),
      all.attach(undefined, request({ ...image, domain: 'db' })),
    ])
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected'])
    expect((results[1] as PromiseRejectedResult).reason.message).toContain(
      'ceph/image is in use by domain web, disk vda, and two writers would destroy it',
    )
  })

  it('is on a server, and is a guest of ours until that lets go of it, by whichever means others ask', async () => {
    const all = parts()
    const wanted = { ...diskOf('ceph/image', 'direct'), pool: undefined, target: undefined }
    const take = (name: string, change: Partial<DiskRequest> = {}): Promise<Omit<RecordedDisk, 'port'>> =>
      withUndo(undo => prepareDisk({ ...wanted, ...change }, { name, targets: [] }, undo, all))
    const disk = await take('web')
    const refused = 'ceph/image is in use by guest web, disk vda, and two writers would destroy it'
    await expect(take('db')).rejects.toThrow(refused)
    await expect(take('db', { means: 'nbd' })).rejects.toThrow(refused)
    expect(all.images.writersOf({ type: 'network', path: 'ceph/image' })).toEqual(['guest web, disk vda'])
    const domain = new LibvirtGuests(all)
    const asked = request({ volume: 'ceph/image', means: 'direct' })
    await expect(domain.attach(undefined, asked)).rejects.toThrow(refused)
    await take('db', { isReadOnly: true })
    await releaseDisk('web', disk, all)
    await domain.attach(undefined, asked)
  })

  it('is on a server, and a guest that could not be made has not got it', async () => {
    const all = parts()
    const wanted = { ...diskOf('ceph/image', 'direct'), pool: undefined, target: undefined }
    const failed = withUndo(async undo => {
      await prepareDisk(wanted, { name: 'web', targets: [] }, undo, all)
      throw new RpcError('EIO', 'QEMU has not started')
    })
    await expect(failed).rejects.toThrow('QEMU has not started')
    await withUndo(undo => prepareDisk(wanted, { name: 'db', targets: [] }, undo, all))
  })

  it('is on a server that has a client on another machine', async () => {
    clients = ['the client of Ceph at 192.0.2.7']
    const refused =
      'ceph/image is open for writing by the client of Ceph at 192.0.2.7, and two writers would destroy it'
    const image = { volume: 'ceph/image', means: 'direct' } as const
    await expect(guests().attach(undefined, request(image))).rejects.toThrow(refused)
    const wanted = { ...diskOf('ceph/image', 'direct'), pool: undefined, target: undefined }
    const taken = withUndo(undo => prepareDisk(wanted, { name: 'db', targets: [] }, undo, parts()))
    await expect(taken).rejects.toThrow(refused)
    await guests().attach(undefined, request({ ...image, isShared: true }))
  })

  it('is nothing that volumes are made of', async () => {
    dependents = ['overlay']
    const attach = guests().attach(undefined, request({ volume: image() }))
    await expect(attach).rejects.toThrow('is the backing store of overlay, which writes to it would destroy')
    await guests().attach(undefined, request({ volume: image(), isReadOnly: true }))
  })
})

describe('what serves a disk', () => {
  it('goes with that disk, and not with another whose guest and target make the same name', async () => {
    const all = guests()
    await all.attach(undefined, request({ domain: 'a_b' }))
    await all.attach(undefined, request({ domain: 'a b', volume: image(), means: 'direct' }))
    const detached = await all.detach(undefined, { domain: 'a b', disk: 'vda', live: false, config: true })
    expect(detached.released).toEqual([])
    expect([...exported.keys()]).toEqual(['a_b-vda'])
  })

  it('is found by the path that was attached, and goes with its bdev', async () => {
    const volume = image()
    await guests().attach(undefined, request({ volume }))
    const detached = await guests().detach(undefined, {
      domain: 'web',
      disk: volume,
      live: false,
      config: true,
    })
    expect(detached.released).toEqual(['NBD export web-vda', 'bdev web-vda'])
    expect([...bdevs.keys()]).toEqual(['m0'])
  })

  it('is taken up by the same command again when the daemon was killed before the domain had it', async () => {
    exported.set('web-vda', { bdev: 'm0', connectionCount: 0 })
    expect(await guests().attach(undefined, request({}))).toMatchObject({ target: 'vda', source: 'web-vda' })
    expect([...exported.keys()]).toEqual(['web-vda'])
  })

  it.each(['web', 'gone'])('is taken away when nobody has it any more: %s', async domain => {
    exported.set(`${domain}-vdc`, { bdev: 'm0', connectionCount: 0 })
    const detach = (disk: string): Promise<object> =>
      guests().detach(undefined, { domain, disk, live: false, config: false })
    expect(await detach('vdc')).toMatchObject({ released: [`NBD export ${domain}-vdc`] })
    await expect(detach('vdc')).rejects.toMatchObject({ code: 'ENODEV' })
  })

  it('stays while somebody is connected to it', async () => {
    exported.set('gone-vdc', { bdev: 'm0', connectionCount: 1 })
    const detach = guests().detach(undefined, { domain: 'gone', disk: 'vdc', live: false, config: false })
    await expect(detach).rejects.toMatchObject({ code: 'ENODEV' })
    expect([...exported.keys()]).toEqual(['gone-vdc'])
  })
})
