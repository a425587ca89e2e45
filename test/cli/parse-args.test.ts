import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { commandLine } from '../../src/cli/options.ts'
import { parseArgs, UsageError } from '../../src/cli/parse-args.ts'
import { method } from '../../src/rpc/method.ts'
import { int32, uint16, uint32, uint64 } from '../../src/rpc/params.ts'

const address = z.strictObject({
  trtype: z.string(),
  adrfam: z.string().optional(),
  traddr: z.string(),
  trsvcid: z.string().optional(),
})

const attach = method({
  name: 'bdev_nvme_attach_controller',
  summary: '',
  params: z.object({
    name: z.string(),
    trtype: z.string(),
    traddr: z.string(),
    adrfam: z.string().optional(),
    trsvcid: z.string().optional(),
    subnqn: z.string().optional(),
    multipath: z.enum(['failover', 'multipath', 'disable']).optional(),
    num_io_queues: uint32.optional(),
    ctrlr_loss_timeout_sec: int32.default(0),
    reconnect_delay_sec: uint32.default(0),
    hdgst: z.boolean().optional(),
    ddgst: z.boolean().optional(),
  }),
  result: z.array(z.string()),
  cli: {
    flags: {
      name: 'b',
      trtype: 't',
      traddr: 'a',
      adrfam: 'f',
      trsvcid: 's',
      subnqn: 'n',
      multipath: 'x',
      ctrlr_loss_timeout_sec: 'l',
      reconnect_delay_sec: 'o',
      hdgst: 'e',
      ddgst: 'd',
    },
  },
  run: () => [],
})

const subsystem = method({
  name: 'nvmf_create_subsystem',
  summary: '',
  params: z.object({
    nqn: z.string(),
    serial_number: z.string().optional(),
    allow_any_host: z.boolean().optional(),
    min_cntlid: uint16.optional(),
    max_cntlid: uint16.optional(),
  }),
  result: z.literal(true),
  cli: {
    positional: ['nqn'],
    flags: { serial_number: 's', allow_any_host: 'a', min_cntlid: 'i', max_cntlid: 'I' },
  },
  run: () => true as const,
})

const listener = method({
  name: 'nvmf_subsystem_add_listener',
  summary: '',
  params: z.object({
    nqn: z.string(),
    listen_address: address,
    secure_channel: z.boolean().optional(),
    namespace: z
      .strictObject({ bdev_name: z.string(), nsid: uint32.optional(), traddr: z.string() })
      .optional(),
  }),
  result: z.literal(true),
  cli: {
    positional: ['nqn', 'namespace.bdev_name'],
    flags: {
      'listen_address.trtype': 't',
      'listen_address.traddr': 'a',
      'listen_address.adrfam': 'f',
      'listen_address.trsvcid': 's',
    },
  },
  run: () => true as const,
})

const register = method({
  name: 'bdev_rbd_register_cluster',
  summary: '',
  params: z.object({
    name: z.string(),
    user_id: z.string().optional(),
    config_param: z.record(z.string(), z.string()).nullish(),
    config_file: z.string().optional(),
    read_only: z.boolean().optional(),
  }),
  result: z.string(),
  cli: { positional: ['name'], flags: { user_id: 'user', read_only: 'r' } },
  run: () => '',
})

const plugin = method({
  name: 'bdev_plugin_create',
  summary: '',
  params: z.object({ filename: z.string(), options: z.record(z.string(), z.unknown()).optional() }),
  result: z.string(),
  cli: { positional: ['filename'] },
  run: () => '',
})

const transport = method({
  name: 'nvmf_create_transport',
  summary: '',
  params: z.object({
    trtype: z.string(),
    c2h_success: z.boolean().default(true),
    max_io_qpairs_per_ctrlr: uint16.optional(),
    dhchap_digests: z.array(z.enum(['sha256', 'sha384'])).optional(),
    borders: z.array(uint64).optional(),
    mappings: z.array(z.strictObject({ a: z.int() })).optional(),
  }),
  result: z.literal(true),
  cli: {
    flags: { trtype: 't', max_io_qpairs_per_ctrlr: 'm', c2h_success: { off: ['o', 'c2h-success'] } },
  },
  run: () => true as const,
})

const allow = method({
  name: 'nvmf_subsystem_allow_any_host',
  summary: '',
  params: z.object({ nqn: z.string(), allow_any_host: z.boolean() }),
  result: z.literal(true),
  cli: {
    positional: ['nqn'],
    flags: { allow_any_host: { on: ['e', 'enable'], off: ['d', 'disable'] } },
  },
  run: () => true as const,
})

const malloc = method({
  name: 'bdev_malloc_create',
  summary: '',
  params: z.object({ name: z.string().optional(), num_blocks: uint64, block_size: uint32 }),
  result: z.string(),
  cli: {
    positional: ['total_size', 'block_size'],
    flags: { name: 'b' },
    computed: {
      total_size: {
        summary: 'MiB',
        param: 'num_blocks',
        compute: (mib, { block_size }) => (mib * 1024 * 1024) / Number(block_size),
      },
    },
  },
  run: () => '',
})

const METHODS = { attach, subsystem, listener, register, plugin, transport, allow, malloc }
type Name = keyof typeof METHODS

/** Words as a shell splits them; no quotes are needed here. */
const parse = (name: Name, line: string): unknown =>
  parseArgs(commandLine(METHODS[name]), line === '' ? [] : line.split(' '))

describe('parseArgs', () => {
  it('names files where it is typed by their whole paths', () => {
    expect(parse('register', 'c --config-file ./a/../ceph.conf')).toEqual({
      ...{ name: 'c', config_file: join(process.cwd(), 'ceph.conf') },
    })
    expect(parse('register', '../c --config-file ceph.conf')).toEqual({
      ...{ name: join(process.cwd(), '../c'), config_file: 'ceph.conf' },
    })
  })

  it.each<[Name, string, object]>([
    [
      'attach',
      '-b Nvme0 -t rdma -f ipv4 -a 55.243.92.20 -s 4420 -n nqn.2021-06.io.spdk:ctc_rbd0 -x multipath -l -1 -o 20',
      {
        name: 'Nvme0',
        trtype: 'rdma',
        adrfam: 'ipv4',
        traddr: '55.243.92.20',
        trsvcid: '4420',
        subnqn: 'nqn.2021-06.io.spdk:ctc_rbd0',
        multipath: 'multipath',
        ctrlr_loss_timeout_sec: -1,
        reconnect_delay_sec: 20,
      },
    ],
    [
      'subsystem',
      'nqn.2021-06.io.spdk:ctc_rbd0 -a -s SPDK_BDEV_0 -i 1 -I 32760',
      {
        nqn: 'nqn.2021-06.io.spdk:ctc_rbd0',
        allow_any_host: true,
        serial_number: 'SPDK_BDEV_0',
        min_cntlid: 1,
        max_cntlid: 32760,
      },
    ],
    [
      'subsystem',
      '--min_cntlid 0x10 --max-cntlid=20 nqn.a',
      { nqn: 'nqn.a', min_cntlid: 16, max_cntlid: 20 },
    ],
    [
      'listener',
      'nqn.a -t rdma -a 55.243.92.20 -s 4420',
      { nqn: 'nqn.a', listen_address: { trtype: 'rdma', traddr: '55.243.92.20', trsvcid: '4420' } },
    ],
    [
      'listener',
      'discovery -t tcp -a ::1',
      { nqn: 'nqn.2014-08.org.nvmexpress.discovery', listen_address: { trtype: 'tcp', traddr: '::1' } },
    ],
    [
      'listener',
      'nqn.a rbd0 -t tcp --listen-address-traddr 1.2.3.4 --namespace-traddr x --nsid 3',
      {
        nqn: 'nqn.a',
        listen_address: { trtype: 'tcp', traddr: '1.2.3.4' },
        namespace: { bdev_name: 'rbd0', nsid: 3, traddr: 'x' },
      },
    ],
    [
      'register',
      '--user cinder --config-param keyring=/etc/ceph_ssd/ceph.client.cinder.keyring --config-param a=b=c --config-file /etc/ceph_ssd/ceph.conf ceph_ssd_cluster',
      {
        name: 'ceph_ssd_cluster',
        user_id: 'cinder',
        config_param: { keyring: '/etc/ceph_ssd/ceph.client.cinder.keyring', a: 'b=c' },
        config_file: '/etc/ceph_ssd/ceph.conf',
      },
    ],
    ['register', 'c --config-param n=1', { name: 'c', config_param: { n: '1' } }],
    [
      'plugin',
      'a.js --options size=8 --options fast=true --options url=http://x/?a=1 --options id=007',
      { filename: 'a.js', options: { size: 8, fast: true, url: 'http://x/?a=1', id: '007' } },
    ],
    ['register', 'c --config-param {"a":"b"}', { name: 'c', config_param: { a: 'b' } }],
    ['transport', '-t RDMA -m 64', { trtype: 'RDMA', max_io_qpairs_per_ctrlr: 64 }],
    ['transport', '-tTCP -o', { trtype: 'TCP', c2h_success: false }],
    ['transport', '-t TCP --c2h-success', { trtype: 'TCP', c2h_success: false }],
    [
      'transport',
      '-t TCP --dhchap-digests sha256,sha384',
      { trtype: 'TCP', dhchap_digests: ['sha256', 'sha384'] },
    ],
    ['transport', '-t TCP --borders 1 --borders 2', { trtype: 'TCP', borders: [1, 2] }],
    ['transport', '-t TCP --mappings [{"a":1}]', { trtype: 'TCP', mappings: [{ a: 1 }] }],
    ['allow', 'nqn.a -e', { nqn: 'nqn.a', allow_any_host: true }],
    ['allow', '--disable nqn.a', { nqn: 'nqn.a', allow_any_host: false }],
    ['allow', 'nqn.a --no-allow-any-host', { nqn: 'nqn.a', allow_any_host: false }],
    ['malloc', '-b Malloc0 64 512', { name: 'Malloc0', num_blocks: 131072, block_size: 512 }],
    ['malloc', '0.5 512', { num_blocks: 1024, block_size: 512 }],
    ['malloc', '--num-blocks 8 --block-size 512', { num_blocks: 8, block_size: 512 }],
    ['attach', '-ed -b N -t tcp -a x', { name: 'N', trtype: 'tcp', traddr: 'x', hdgst: true, ddgst: true }],
    ['attach', '-edbN -t tcp -a x', { name: 'N', trtype: 'tcp', traddr: 'x', hdgst: true, ddgst: true }],
    [
      'attach',
      '-b N -t tcp -a x --ctrlr 5',
      { name: 'N', trtype: 'tcp', traddr: 'x', ctrlr_loss_timeout_sec: 5 },
    ],
    ['subsystem', '-- -odd', { nqn: '-odd' }],
  ])('reads %s %s', (name, line, params) => {
    expect(parse(name, line)).toEqual(params)
  })

  it.each<[Name, string, string]>([
    ['attach', '-b N', '--trtype, --traddr are required'],
    ['subsystem', '', 'NQN is required'],
    ['malloc', '', 'TOTAL_SIZE, BLOCK_SIZE are required'],
    ['allow', 'nqn.a', '--enable is required'],
    ['subsystem', 'a b', 'there is no place for the word "b"'],
    ['subsystem', 'a --serail-number x', 'there is no option --serail-number; did you mean --serial-number?'],
    ['subsystem', 'a -Z', 'there is no option -Z'],
    ['subsystem', 'a -i', '-i needs a value'],
    ['subsystem', 'a -s -a', '-s needs a value, and -a looks like an option; if it is the value: -s=-a'],
    ['subsystem', 'a -i one', '-i is a number, not one'],
    ['subsystem', 'a -a=1', 'there is no option -='],
    ['subsystem', 'a --allow-any-host=1', '--allow-any-host takes no value'],
    ['attach', '-x quick', '-x is one of failover, multipath, disable, not quick'],
    ['attach', '--tr x', '--tr may be --trtype or --traddr or --trsvcid'],
    ['register', 'c --config-param x', '--config-param is KEY=VALUE, not x'],
  ])('refuses %s %s', (name, line, message) => {
    const act = (): unknown => parse(name, line)
    expect(act).toThrow(UsageError)
    expect(act).toThrow(message)
  })
})
