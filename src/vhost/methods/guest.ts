/** What a guest has to be told, ready to be pasted. */
import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { uint32 } from '../../rpc/params.ts'
import type { VhostController } from '../controller.ts'
import { libvirtXml } from '../libvirt-xml.ts'
import { type GuestDisk, qemuArgs } from '../qemu-args.ts'
import { ctrlr, UNKNOWN, type VhostContext } from './context.ts'

const queues = z.int().min(1).max(256)
const disk_only = z.boolean().default(false)
const qemu = z
  .string()
  .regex(/^\d+\.\d+/, 'a version such as 9.2')
  .default('8.2')
  .describe("QEMU's version, where it is before 8.2 or from 9.2 on: how it reconnects has changed")

const guestQemuArgs = method({
  name: 'vhost_qemu_args',
  summary: 'Prints the arguments that give a QEMU guest the disks of a controller.',
  params: z.object({
    ctrlr,
    memory: z
      .string()
      .regex(/^[1-9]\d*[KMGT]$/i, 'a size with its unit, such as 4G')
      .default('1G')
      .describe("The guest's memory"),
    queues: queues
      .optional()
      .describe("Virtqueues for requests; one for each of the guest's processors when absent"),
    bootindex: uint32.optional().describe('Where it comes when the guest looks for something to boot'),
    qemu,
    disk_only: disk_only.describe('Without the memory: for the second disk of a guest'),
  }),
  result: z.string(),
  concurrent: true,
  errors: { ENODEV: UNKNOWN, EINVAL: 'a shell would tear the path of the socket apart' },
  cli: { positional: ['ctrlr'], flags: { memory: 'm', queues: 'q' } },
  run(
    { ctrlr: name, memory, queues: count, bootindex, qemu: version, disk_only: isDiskOnly },
    { vhost }: VhostContext,
  ) {
    return qemuArgs(guestDisk(vhost.get(name)), {
      memory: isDiskOnly ? undefined : memory,
      queues: count,
      bootIndex: bootindex,
      version: versionOf(version),
    })
  },
})

const guestLibvirtXml = method({
  name: 'vhost_libvirt_xml',
  summary: 'Prints the elements that give a libvirt domain the disks of a controller.',
  params: z.object({
    ctrlr,
    target: z.string().default('vda').describe('What the domain calls the disk (not for SCSI controllers)'),
    queues: queues
      .optional()
      .describe("Virtqueues for requests; one for each of the guest's processors when absent"),
    slot: z
      .int()
      .min(1)
      .max(30)
      .default(30)
      .describe('The PCI slot of a SCSI controller, another for each: libvirt does not choose it'),
    qemu: qemu.describe("QEMU's version, for SCSI controllers: see vhost_qemu_args"),
    disk_only: disk_only.describe(
      'Without the memory: for `virsh attach-device`, and the second disk of a domain',
    ),
  }),
  result: z.string(),
  concurrent: true,
  errors: { ENODEV: UNKNOWN, EINVAL: "the path of the socket cannot be among QEMU's arguments" },
  cli: { positional: ['ctrlr'], flags: { target: 't', queues: 'q' } },
  run: (
    { ctrlr: name, target, queues: count, slot, qemu: version, disk_only: diskOnly },
    { vhost }: VhostContext,
  ) =>
    libvirtXml(guestDisk(vhost.get(name)), {
      target,
      queues: count,
      diskOnly,
      slot,
      version: versionOf(version),
    }),
})

const versionOf = (text: string): readonly [number, number] => {
  const [major, minor] = text.split('.').map(Number)
  return [major!, minor!]
}

const guestDisk = ({ name, backing, socketPath, offersPacked }: VhostController): GuestDisk => ({
  name,
  kind: backing.kind,
  socketPath,
  // SCSI controllers always offer packed rings, which is no reason to use them.
  isPacked: backing.kind === 'blk' && offersPacked,
})

export const guestMethods = [guestQemuArgs, guestLibvirtXml]
