/** Disks of guests: as virsh's attach-disk, detach-disk and domblklist. */
import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { BUSES, MEANS } from '../disk/means.ts'
import { busFor } from '../disk/target.ts'
import type { LibvirtGuests } from '../libvirt/guests.ts'
import { attachToOwn, detachFromOwn, disksOfOwn, fromLibvirt, ownGuest } from '../run/own-disks.ts'
import type { OwnGuests } from '../run/own-guests.ts'

export interface DiskContext {
  readonly libvirtGuests: LibvirtGuests
  readonly ownGuests: OwnGuests
}

const domain = z
  .string()
  .min(1)
  .describe("A guest of vm_run's, or else a domain: its name, its UUID, or its number while it runs")
const uri = z
  .string()
  .min(1)
  .optional()
  .describe('Which libvirt, as for virsh -c: qemu:///system; what virsh takes by itself when absent')
const live = z.boolean().default(false).describe('The guest that runs; without this and --config, if it runs')
const config = z
  .boolean()
  .default(false)
  .describe('Its next start; without this and --live, if it does not run')

const LIBVIRT_ERRORS = {
  ECONNREFUSED: 'libvirt does not answer',
  EIO: 'libvirt or QEMU has refused it, for the reason given',
  EINVAL: 'the domain does not run, is transient, or cannot have such a disk',
} as const

const attach = method({
  name: 'vm_attach',
  summary:
    'Gives a guest a disk from a volume, a bdev or a path, by the best means there is, or changes nothing.',
  params: z.object({
    domain,
    volume: z.string().min(1).describe('A volume (POOL/NAME), else a bdev, else an absolute path'),
    pool: z.string().min(1).optional().describe('The pool of the volume, if its name alone is not enough'),
    bus: z
      .enum(BUSES)
      .optional()
      .describe(
        'What the guest sees: virtio is /dev/vda, nvme /dev/nvme0n1, scsi and sata /dev/sda; when absent, what the target is ' +
          'a name of (sdb: scsi), and virtio without one',
      ),
    live,
    config,
    target: z
      .string()
      .regex(/^[a-zA-Z][\w-]{0,30}$/, 'a letter, then letters, digits, - or _')
      .optional()
      .describe('What the domain calls it: vdb, sdb, nvme0; the first that is free when absent'),
    serial: z
      .string()
      .regex(/^[\w.-]{1,20}$/, 'at most 20 letters, digits, -, . or _')
      .optional()
      .describe('Its serial number in the guest'),
    read_only: z.boolean().default(false).describe('The guest may not write'),
    shared: z
      .boolean()
      .default(false)
      .describe(
        'Although others write to it: for guests that know of each other, as of a cluster file system',
      ),
    means: z
      .enum(MEANS)
      .optional()
      .describe(
        'vhost: the daemon serves it over vhost-user; nbd: over NBD; direct: QEMU opens it by itself. The best that ' +
          'goes when absent',
      ),
    format: z
      .enum(['raw', 'qcow2', 'iso'])
      .optional()
      .describe('Of a path that is in no pool; raw when absent'),
    fix: z
      .boolean()
      .default(false)
      .describe("Remove what the host has against it: an owner, AppArmor's profile, SELinux's label"),
    uri,
  }),
  result: z.object({
    domain: z.string(),
    target: z.string(),
    bus: z.enum(BUSES),
    means: z.enum(MEANS),
    source: z.string(),
    live: z.boolean(),
    config: z.boolean(),
    notes: z.array(z.string()).describe('What else has changed, and what is to be known'),
  }),
  errors: {
    ...LIBVIRT_ERRORS,
    ENOENT: 'there is no such volume, bdev or path, or no virsh on this machine',
    ENODEV: 'there is no such domain',
    EEXIST: 'the domain has a disk of that target, or has it as another',
    EBUSY: 'another guest, another program or a host has it, or volumes are made of it',
    EACCES:
      'the host would not let the guest open it: the cause and the remedy are given, and --fix applies it',
    ENOSPC: 'the guest has no free slot for another device',
    EPERM: 'another user of the daemon has the bdev for itself',
  },
  // It waits for libvirt, and calls methods that take their turn.
  concurrent: true,
  cli: {
    positional: ['domain', 'volume', 'target'],
    flags: { uri: 'c', read_only: 'r' },
    text: ({ domain: name, target, means, source, notes, ...scope }) => {
      const when = scope.live ? (scope.config ? 'now and at its next start' : 'now') : 'at its next start'
      return [`${name} has ${target} ${when}, ${WORDS[means]} ${source}`, ...notes, ''].join('\n')
    },
  },
  run(
    { uri: connection, read_only: isReadOnly, shared: isShared, ...rest },
    { libvirtGuests, ownGuests }: DiskContext,
  ) {
    const request = {
      ...{ pool: undefined, target: undefined, serial: undefined, means: undefined, format: undefined },
      ...rest,
      ...{ isReadOnly, isShared, bus: busFor(rest.target, rest.bus) },
    }
    const own = ownGuest(ownGuests, request.domain, connection)
    if (own !== undefined) return attachToOwn(own, request)
    return fromLibvirt(request.domain, connection, libvirtGuests.attach(connection, request))
  },
})

const WORDS = { vhost: 'over vhost-user at', nbd: 'over NBD as', direct: 'straight from' } as const

const detach = method({
  name: 'vm_detach',
  summary: 'Takes a disk from a guest, waits until the guest has let go, and closes what served it.',
  params: z.object({
    domain,
    disk: z.string().min(1).describe('Its target (vdb), or what it is made of: a volume, a bdev, a path'),
    live,
    config,
    uri,
  }),
  result: z.object({
    domain: z.string(),
    target: z.string(),
    live: z.boolean(),
    config: z.boolean(),
    released: z.array(z.string()).describe('What served it'),
  }),
  errors: {
    ...LIBVIRT_ERRORS,
    ENODEV: 'there is no such domain, or it has no such disk',
    ENOENT: 'there is no virsh on this machine',
    ETIMEDOUT: 'the guest has not let go of it',
  },
  concurrent: true,
  cli: {
    positional: ['domain', 'disk'],
    flags: { uri: 'c' },
    text: ({ domain: name, target, released }) =>
      [`${name} no longer has ${target}`, ...released.map(each => `closed: ${each}`), ''].join('\n'),
  },
  run({ uri: connection, ...rest }, { libvirtGuests, ownGuests }: DiskContext) {
    const own = ownGuest(ownGuests, rest.domain, connection)
    if (own !== undefined) return detachFromOwn(own, rest)
    return fromLibvirt(rest.domain, connection, libvirtGuests.detach(connection, rest))
  },
})

const diskRow = z.object({
  type: z.string(),
  device: z.string(),
  target: z.string(),
  source: z.string().optional(),
  bus: z.string(),
  protocol: z.string().optional(),
  serial: z.string().optional(),
  read_only: z.boolean(),
  live: z.boolean().describe('The guest that runs has it'),
  config: z.boolean().describe('It will be there at its next start'),
  bdev: z.string().optional().describe('The bdev of this daemon that it is served from'),
})
type DiskRow = z.output<typeof diskRow>

const list = method({
  name: 'vm_disks',
  summary: 'Lists the disks of a guest, in libvirt the NVMe disks too that libvirt itself knows nothing of.',
  params: z.object({ domain, uri }),
  // virsh's word; they are shown anyway.
  ignored: ['details'],
  result: z.array(diskRow),
  errors: {
    ...LIBVIRT_ERRORS,
    ENODEV: 'there is no such domain',
    ENOENT: 'there is no virsh on this machine',
  },
  concurrent: true,
  cli: {
    positional: ['domain'],
    flags: { uri: 'c', details: { on: 'details' } },
    // The first four as virsh's domblklist --details has them.
    columns: [
      { title: 'Type', value: (row: DiskRow) => row.type },
      { title: 'Device', value: (row: DiskRow) => row.device },
      { title: 'Target', value: (row: DiskRow) => row.target },
      { title: 'Source', value: (row: DiskRow) => row.source ?? '-' },
      { title: 'Bus', value: (row: DiskRow) => row.bus },
      { title: 'When', value: whenOf },
      { title: 'Bdev', value: (row: DiskRow) => row.bdev ?? '-' },
    ],
  },
  async run({ domain: name, uri: connection }, { libvirtGuests, ownGuests }: DiskContext) {
    const own = ownGuest(ownGuests, name, connection)
    const disks =
      own === undefined
        ? await fromLibvirt(name, connection, libvirtGuests.disks(connection, name))
        : disksOfOwn(own)
    return disks.map(({ isReadOnly, ...disk }) => ({ ...disk, read_only: isReadOnly }))
  },
})

function whenOf({ live: isNow, config: isNext }: DiskRow): string {
  if (isNow && isNext) return 'now, next start'
  return isNow ? 'now' : 'next start'
}

export const diskMethods = [attach, detach, list]
