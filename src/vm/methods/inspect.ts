/** A look into the QEMU process of a guest. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { method } from '../../rpc/method.ts'
import { type InspectedGuest, inspect } from '../inspect/inspect.ts'
import { processOfUuid } from '../inspect/threads.ts'
import { disksOfOwn, fromLibvirt, ownGuest } from '../run/own-disks.ts'
import type { DiskContext } from './disks.ts'

const bytes = z.int().describe('In bytes')
const result = z.object({
  name: z.string(),
  pid: z.int(),
  threads: z.array(
    z.object({
      tid: z.int(),
      role: z.string(),
      name: z.string().describe('As the thread calls itself'),
      cpu: z.int().describe('Percent of one processor'),
    }),
  ),
  disks: z.array(z.object({ disk: z.string(), source: z.string(), served_by: z.string() })),
  memory: z
    .object({
      resident: bytes,
      proportional: bytes,
      transparent_huge: bytes,
      reserved_huge: bytes,
      locked: bytes,
      swapped: bytes,
    })
    .optional()
    .describe('Absent when the daemon may not look'),
})
type Result = z.output<typeof result>

const inspectGuest = method({
  name: 'vm_inspect',
  summary:
    'Shows what the QEMU process of a guest is made of: threads by role, their load, disks and who serves them, memory.',
  params: z.object({
    domain: z.string().min(1).describe("A guest of vm_run's, or else a domain that runs"),
    interval: z.number().min(0.01).max(60).default(1).describe('Seconds over which the load is measured'),
    uri: z
      .string()
      .min(1)
      .optional()
      .describe("Which libvirt, as for virsh -c; virsh's own choice when absent"),
  }),
  result,
  errors: {
    ENODEV: 'there is no such guest',
    EINVAL: 'the domain does not run',
    ENOENT: 'there is no virsh on this machine',
    ECONNREFUSED: 'libvirt does not answer',
    EAGAIN: 'the guest is being found again',
    EIO: 'libvirt or QEMU has refused it, for the reason given',
    ESRCH: 'the guest has ended meanwhile, or its process cannot be seen from here',
  },
  concurrent: true,
  cli: { positional: ['domain'], flags: { uri: 'c', interval: 'i' }, text: textOf },
  async run({ domain, interval, uri }, context: DiskContext) {
    const guest = await find(domain, uri, context)
    const { disks, memory, threads, ...rest } = await inspect(guest, { intervalMs: interval * 1000 })
    return {
      ...rest,
      threads: [...threads],
      disks: disks.map(({ servedBy, ...disk }) => ({ ...disk, served_by: servedBy })),
      ...(memory !== undefined && {
        memory: {
          ...{ resident: memory.resident, proportional: memory.proportional },
          ...{ transparent_huge: memory.transparentHuge, reserved_huge: memory.reservedHuge },
          ...{ locked: memory.locked, swapped: memory.swapped },
        },
      }),
    }
  },
})

async function find(
  domain: string,
  uri: string | undefined,
  { ownGuests, libvirtGuests }: DiskContext,
): Promise<InspectedGuest> {
  const own = ownGuest(ownGuests, domain, uri)
  if (own !== undefined) {
    return {
      ...{ name: domain, pid: own.record.process.pid, vhostDisks: vhostDisks(disksOfOwn(own)) },
      monitor: (command, args) => own.execute(command, args),
    }
  }
  const { name, uuid, monitor } = await fromLibvirt(domain, uri, libvirtGuests.running(uri, domain))
  const pid = uuid === undefined ? undefined : processOfUuid(uuid)
  if (pid === undefined) {
    throw new RpcError(
      'ESRCH',
      `no process of domain ${name} (${uuid ?? 'without a UUID'}) is seen here: the daemon must be on the machine where it runs`,
    )
  }
  return { name, pid, monitor, vhostDisks: vhostDisks(await libvirtGuests.disks(uri, domain)) }
}

const vhostDisks = (
  disks: readonly { type: string; target: string; source: string | undefined; bdev: string | undefined }[],
): InspectedGuest['vhostDisks'] =>
  disks
    .filter(({ type }) => type === 'vhostuser')
    .map(({ target, source = '', bdev }) => ({ target, source, bdev }))

function textOf({ name, pid, threads, disks, memory }: Result): string {
  const sizes =
    memory === undefined
      ? []
      : Object.entries(memory).map(([what, size]) => [what.replace('_', ' '), formatSize(size)])
  return [
    `guest ${name}, process ${pid}`,
    '',
    ...table([
      ['THREAD', 'CPU %', 'ROLE', 'NAME'],
      ...threads.map(({ tid, cpu, role, name: comm }) => [String(tid), String(cpu), role, comm]),
    ]),
    '',
    ...table([
      ['DISK', 'SERVED BY', 'SOURCE'],
      ...disks.map(each => [each.disk, each.served_by, each.source]),
    ]),
    '',
    ...(memory === undefined
      ? ['Its memory is not for this user to see.']
      : table([['MEMORY', 'SIZE'], ...sizes])),
    '',
  ].join('\n')
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map(row => row[column]!.length)))
  return rows.map(row =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  )
}

export const inspectMethods = [inspectGuest]
