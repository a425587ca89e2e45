/**
 * An image behind two gateways, and our own host as their client, set up by the commands that guides to SPDK give, typed
 * through `qpair rpc`. Everything is on this machine: no guest.
 *
 *   fio, nbdcopy, qemu-img ── NBD ── client: Nvme0n1 ─┬─ gateway A ─┬─ image
 *                                                     └─ gateway B ─┘
 */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { Gateway } from './lab/gateway.ts'
import { eventually } from './lab/linux-host.ts'
import { NbdFio } from './lab/nbd-fio.ts'
import { findProgram, type Program } from './lab/packages.ts'

const QPAIR = fileURLToPath(new URL('../../bin/qpair.js', import.meta.url))
const NQN = 'nqn.2021-06.io.spdk:ctc_rbd0'
const PROGRAMS = ['setpriv', 'fio', 'nbdcopy', 'nbdinfo', 'qemu-img'] as const
const SIZE = 64 << 20
/** As the guides write them: the same NQN and serial number, ranges of controller identifiers that do not overlap. */
const RANGES = ['-i 1 -I 32760', '-i 32761 -I 65519']

const execute = promisify(execFile)

/** Types a command of SPDK's rpc.py for a daemon, and returns what it prints. */
async function rpc(daemon: Daemon, command: string): Promise<string> {
  const args = [QPAIR, 'rpc', '-s', daemon.socket, ...command.split(' ')]
  return (await execute(process.execPath, args)).stdout.trim()
}

async function run(program: Program, ...args: string[]): Promise<string> {
  return (await execute(findProgram(program)!, args, { maxBuffer: 1 << 26 })).stdout
}

interface NvmeController {
  readonly name: string
  readonly ctrlrs: readonly {
    readonly state: string
    readonly cntlid: number
    readonly trid: { readonly trsvcid: string }
  }[]
}

await describeWith(PROGRAMS, 'two gateways and our own host', () => {
  const gateways: Gateway[] = []
  const ports: string[] = []
  let client: Daemon
  let uri: string
  const path = (name: string): string => join(client.directory, name)

  const controllers = async (): Promise<NvmeController> =>
    JSON.parse(await rpc(client, 'bdev_nvme_get_controllers -n Nvme0'))[0]
  const states = async (): Promise<string[]> => (await controllers()).ctrlrs.map(({ state }) => state)

  beforeAll(async () => {
    client = await startDaemon()
    writeFileSync(path('test-image'), randomBytes(SIZE))
    for (const range of RANGES) {
      const daemon = await startDaemon()
      gateways.push(new Gateway(daemon))
      for (const command of [
        'nvmf_create_transport -t TCP -m 64',
        `bdev_uring_create ${path('test-image')} rbd0 4096`,
        `nvmf_create_subsystem ${NQN} -a -s SPDK_BDEV_0 ${range}`,
        `nvmf_subsystem_add_ns ${NQN} rbd0`,
        `nvmf_subsystem_add_listener ${NQN} -t tcp -a 127.0.0.1 -s 0`,
      ]) {
        await rpc(daemon, command)
      }
      const [subsystem] = JSON.parse(await rpc(daemon, `nvmf_get_subsystems ${NQN}`))
      ports.push(subsystem.listen_addresses[0].trsvcid)
    }
    for (const port of ports) {
      const address = `-t tcp -f ipv4 -a 127.0.0.1 -s ${port} -n ${NQN}`
      // The guides retry each 20 s (-o 20), which is more than the patience of a test.
      const multipath = '-x multipath -l -1 -o 1'
      // The names of new devices: the second path adds none.
      const names = port === ports[0] ? 'Nvme0n1' : ''
      expect(await rpc(client, `bdev_nvme_attach_controller -b Nvme0 ${address} ${multipath}`)).toBe(names)
    }
    const exported = await client.rpc<{ uri: string }>('nbd_export_start', {
      bdev_name: 'Nvme0n1',
      unix: path('nbd.sock'),
    })
    uri = exported.uri
  })
  afterAll(async () => {
    // The image is in the client's directory.
    for (const { daemon } of gateways) await daemon.stop()
    await client?.stop()
  })
  beforeEach(() => eventually(states).toEqual(['enabled', 'enabled']))

  it('shows both paths, and the namespace as one device', async () => {
    const { ctrlrs } = await controllers()
    expect(ctrlrs.map(({ trid }) => trid.trsvcid)).toEqual(ports)
    expect(ctrlrs.map(({ cntlid }) => cntlid)).toEqual([1, 32761])
    const [bdev] = JSON.parse(await rpc(client, 'bdev_get_bdevs -b Nvme0n1'))
    expect(bdev).toMatchObject({ block_size: 4096, num_blocks: SIZE / 4096 })
    const shown = await Promise.all(
      gateways.map(async ({ daemon }) => JSON.parse(await rpc(daemon, `nvmf_get_subsystems ${NQN}`))[0]),
    )
    expect(shown[0].namespaces).toEqual(shown[1].namespaces)
    expect(shown[0].namespaces[0].uuid).toBe(bdev.uuid)
  })

  it('reads and writes the image through both paths as nbdcopy and qemu-img see it', async () => {
    const image = path('test-image')
    expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', image, uri)).toContain('identical')
    await run('nbdcopy', '--connections=4', uri, path('copy'))
    expect(readFileSync(path('copy')).equals(readFileSync(image))).toBe(true)
    writeFileSync(path('new'), randomBytes(SIZE))
    await run('nbdcopy', '--connections=4', '--flush', path('new'), uri)
    expect(readFileSync(path('new')).equals(readFileSync(image))).toBe(true)
    expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', path('new'), uri)).toContain(
      'identical',
    )
  })

  it.each(['SIGKILL', 'SIGTERM'] as const)(
    'loses nothing when a gateway ends by %s under fio',
    async signal => {
      const fio = await NbdFio.start(client, 'Nvme0n1', uri, '--offset=16m --iodepth=16')
      await fio.progress(500)
      // First the path that is in reserve, then the one in use.
      for (const index of [1, 0]) {
        const { daemon } = gateways[index]!
        await daemon.kill(signal)
        await fio.progress(500)
        await daemon.start()
        await fio.progress(500)
        await eventually(states).toEqual(['enabled', 'enabled'])
        await fio.progress(500)
      }
      await fio.stop()
    },
  )
})
