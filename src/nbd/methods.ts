/** The RPC methods of the NBD server. SPDK has none like these: its `nbd_start_disk` attaches the kernel's client. */
import { isIP } from 'node:net'
import { z } from 'zod'
import { RpcError } from '../core/errors.ts'
import type { SocketAddress } from '../reactor/network.ts'
import { method } from '../rpc/method.ts'
import { done, uint16, uint32 } from '../rpc/params.ts'
import { NBD_PORT, STRING_SIZE_MAX } from '../spec/nbd.ts'
import type { NbdExport, NbdExports } from './exports.ts'
import { GUEST_DEVICES, nbdQemuArgs } from './qemu-args.ts'

/** What the methods find in the application. */
export interface NbdContext {
  readonly nbd: NbdExports
}

/** A string of the protocol. */
const text = z
  .string()
  .refine(value => Buffer.byteLength(value) <= STRING_SIZE_MAX, `at most ${STRING_SIZE_MAX} bytes`)

const exportRow = z.object({
  name: z.string(),
  bdev_name: z.string(),
  uri: z.string(),
  read_only: z.boolean(),
  description: z.string(),
  max_connections: z.int(),
  connections: z.int(),
})

const row = (found: NbdExport): z.input<typeof exportRow> => ({
  name: found.name,
  bdev_name: found.bdev,
  uri: found.uri,
  read_only: found.readOnly,
  description: found.description,
  max_connections: found.connectionsMax,
  connections: found.connectionCount,
})

export const nbdExportStart = method({
  name: 'nbd_export_start',
  summary: 'Serves a bdev to NBD clients and answers with the URI that they use.',
  params: z.object({
    bdev_name: z.string().describe('The bdev to serve'),
    name: text.min(1).optional().describe("What clients ask for; the bdev's name when absent"),
    unix: z
      .string()
      .min(1)
      .optional()
      .describe('Path of the Unix socket to listen on, instead of host and port'),
    host: z.string().optional().describe('IPv4 or IPv6 address to listen on; 127.0.0.1 when absent'),
    port: uint16
      .optional()
      .describe(`TCP port to listen on; ${NBD_PORT} when absent, 0 for any that is free`),
    read_only: z.boolean().default(false).describe('Refuse writes'),
    description: text.default('').describe('Shown to clients that ask'),
    max_connections: uint32.default(0).describe('Most clients at once; 0 for no limit'),
    socket_mode: z
      .string()
      .optional()
      .describe(
        'Who may connect to the Unix socket, as for chmod: 0660; as the daemon makes files when absent',
      ),
    socket_owner: z
      .string()
      .optional()
      .describe("Whose the Unix socket is, as for chown: libvirt-qemu:kvm; the daemon's when absent"),
  }),
  result: exportRow,
  errors: {
    ENODEV: 'no bdev has that name',
    EPERM: 'another user has the bdev for itself, or the daemon may not give the socket away',
    EEXIST: 'an export has that name, or a file that is no socket is at the path',
    EADDRINUSE: 'another process listens there',
    EADDRNOTAVAIL: 'the address is none of this machine',
    EACCES: 'this process may not listen there',
    ENOENT: 'the directory of the path does not exist',
    EINVAL: 'the address is not one to listen on',
  },
  saves: true,
  cli: {
    positional: ['bdev_name', 'name'],
    flags: { unix: ['u'], host: ['a'], port: ['p'], read_only: ['r'] },
  },
  async run(params, { nbd }: NbdContext) {
    const started = await nbd.start({
      bdev: params.bdev_name,
      name: params.name,
      address: addressOf(params),
      readOnly: params.read_only,
      description: params.description,
      connectionsMax: params.max_connections,
      access: { mode: params.socket_mode, owner: params.socket_owner },
    })
    return row(started)
  },
})

export const nbdExportStop = method({
  name: 'nbd_export_stop',
  summary: 'Ends an NBD export: what its clients have in flight is answered, then they are cut off.',
  params: z.object({ name: z.string().describe('The export') }),
  result: done,
  errors: { ENOENT: 'no export has that name' },
  saves: true,
  cli: { positional: ['name'] },
  async run({ name }, { nbd }: NbdContext) {
    await nbd.stop(name)
    return true as const
  },
})

export const nbdExportList = method({
  name: 'nbd_export_list',
  summary: 'Lists the NBD exports, or one of them.',
  params: z.object({ name: z.string().optional().describe('Only this export') }),
  result: z.array(exportRow),
  errors: { ENOENT: 'no export has that name' },
  cli: {
    positional: ['name'],
    columns: ['name', 'bdev_name', 'uri', 'read_only', 'connections'],
  },
  run({ name }, { nbd }: NbdContext) {
    return (name === undefined ? nbd.list() : [nbd.get(name)]).map(row)
  },
})

export const nbdGuestArgs = method({
  name: 'nbd_qemu_args',
  summary: "Prints the arguments that give a QEMU guest an export as a disk, over QEMU's own NBD client.",
  params: z.object({
    name: z.string().describe('The export'),
    device: z
      .enum(GUEST_DEVICES)
      .default('nvme')
      .describe('What the guest sees: nvme is /dev/nvme0n1, virtio-blk /dev/vda, scsi /dev/sda'),
    reconnect_delay: uint32
      .default(60)
      .describe('Seconds that requests wait for a daemon that has gone, before they fail'),
    bootindex: uint32.optional().describe('Where it comes when the guest looks for something to boot'),
  }),
  result: z.string(),
  concurrent: true,
  errors: { ENOENT: 'no export has that name', EINVAL: 'a shell would tear the path or the name apart' },
  cli: { positional: ['name'], flags: { device: 'd' } },
  run: ({ name, device, reconnect_delay: reconnectDelay, bootindex: bootIndex }, { nbd }: NbdContext) =>
    nbdQemuArgs(nbd.get(name), { device, reconnectDelay, bootIndex }),
})

export const nbdMethods = [nbdExportStart, nbdExportStop, nbdExportList, nbdGuestArgs]

interface AddressParams {
  readonly unix?: string | undefined
  readonly host?: string | undefined
  readonly port?: number | undefined
  readonly socket_mode?: string | undefined
  readonly socket_owner?: string | undefined
}

function addressOf({ unix, host, port, socket_mode, socket_owner }: AddressParams): SocketAddress {
  if (unix === undefined) {
    if (socket_mode !== undefined || socket_owner !== undefined) {
      throw new RpcError('EINVAL', 'a mode or an owner is given without a Unix socket: TCP ports have none')
    }
    const address = { host: host ?? '127.0.0.1', port: port ?? NBD_PORT }
    if (isIP(address.host) !== 0) return address
    throw new RpcError('EINVAL', `"${address.host}" is no IPv4 or IPv6 address: names are not looked up here`)
  }
  if (host !== undefined || port !== undefined) {
    throw new RpcError('EINVAL', `both a Unix socket (${unix}) and a host or port are given: choose one`)
  }
  if (!unix.startsWith('/')) {
    throw new RpcError('EINVAL', `the socket path ${unix} is relative: give one that begins with /`)
  }
  return { host: unix, port: 0 }
}
