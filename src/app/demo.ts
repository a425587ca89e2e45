/**
 * `qpair demo`: what multipath is for, on real I/O. Three processes on this machine:
 *
 *   host: Nvme0n1, two paths --- NVMe/TCP ---> gateway A ---+
 *                            --- NVMe/TCP ---> gateway B ---+--- one thin image
 *
 * The host writes and reads with every block stamped and judged while each gateway in turn is killed with SIGKILL and
 * started again; at the end all that was acknowledged is read back.
 */
import { mkdtemp, open, rm } from 'node:fs/promises'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs, styleText } from 'node:util'
import { foldLines } from '../core/fold-lines.ts'
import type { RpcClient } from '../rpc/client.ts'
import { DaemonProcess, freePort, LOOPBACK, openGateway } from '../vm/lab/daemon-process.ts'
import type { methods } from './methods.ts'

const HELP = `Usage: qpair demo [--seconds N]

Runs two gateways and a host on loopback, kills each gateway in turn under verified I/O, and tells how long I/O paused
and whether anything was lost. Everything it makes lies in a temporary directory and is removed. N is the length of each
phase (default 3).
`

const NQN = 'nqn.2026-11.io.qpair:demo'
const IMAGE_BYTES = 256 << 20

type Client = RpcClient<typeof methods>
type Daemon = DaemonProcess<Client>

interface Gateway {
  readonly name: string
  readonly port: number
  daemon: Daemon
}

/** Resolves with the exit code: 0 when nothing was lost. */
export async function demo(argv: readonly string[]): Promise<number> {
  let seconds: number
  try {
    const { values } = parseArgs({
      args: [...argv],
      options: { seconds: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
    })
    if (values.help === true) {
      process.stdout.write(foldLines(HELP, process.stdout.columns))
      return 0
    }
    seconds = Number(values.seconds ?? '3')
    if (!(seconds > 0)) throw new Error(`--seconds ${values.seconds}: give a number above 0`)
  } catch (error) {
    process.stderr.write(`qpair demo: ${(error as Error).message}\n`)
    return 2
  }
  const directory = await mkdtemp(join(tmpdir(), 'qpair-demo-'))
  const daemons: Daemon[] = []
  const stopAll = (): Promise<unknown> => Promise.all(daemons.map(daemon => daemon.stop()))
  const played = play(directory, seconds, daemons)
  try {
    return await Promise.race([played, interrupted()])
  } finally {
    await stopAll()
    // A play that was interrupted fails, now that its daemons are gone; until then it may have started one more.
    await played.catch(() => undefined)
    await stopAll()
    await rm(directory, { recursive: true })
  }
}

/** Resolves at Ctrl-C with the exit code that shells expect. A second one ends the process at once. */
function interrupted(): Promise<number> {
  return new Promise(resolve => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      process.once(signal, () => resolve(128 + constants.signals[signal]))
    }
  })
}

async function play(directory: string, seconds: number, daemons: Daemon[]): Promise<number> {
  const image = join(directory, 'disk.img')
  const file = await open(image, 'w')
  await file.truncate(IMAGE_BYTES)
  await file.close()
  say('image', `${image}, ${IMAGE_BYTES >> 20} MiB, thin`)

  const start = async (name: string): Promise<Daemon> => {
    const daemon = await DaemonProcess.start<Client>(join(directory, `${name}.sock`), join(directory, name))
    daemons.push(daemon)
    return daemon
  }
  const gateways: Gateway[] = []
  for (const [index, name] of ['A', 'B'].entries()) {
    const daemon = await start(name)
    const gateway = { name, port: await freePort(), daemon }
    await openGateway(daemon.client, {
      ...{ nqn: NQN, serialNumber: 'QPAIRDEMO', images: [image], port: gateway.port, index },
    })
    gateways.push(gateway)
    say(`gateway ${name}`, `process ${daemon.pid}, ${LOOPBACK}:${gateway.port}`)
  }
  const host = await start('host')
  for (const gateway of gateways) await attachPath(host.client, gateway.port)
  say('host', `process ${host.pid}, Nvme0n1 over ${gateways.length} paths`)

  const id = await host.client.call('workload_start', {
    bdev_name: 'Nvme0n1',
    queue_depth: 16,
    read_percent: 50,
    verify: true,
  })
  say('load', '4 KiB, half reads, half writes, depth 16, every block stamped and judged')
  await watch(host.client, seconds)
  const pauses: number[] = []
  for (const gateway of gateways) {
    await host.client.call('workload_forget_pause', { id })
    gateway.daemon.kill('SIGKILL')
    say(`gateway ${gateway.name}`, styleText('red', 'killed with SIGKILL'))
    const pauseUs = await watch(host.client, seconds)
    pauses.push(pauseUs)
    say('', styleText('bold', `  I/O paused for ${milliseconds(pauseUs)} and went on over the other path`))
    gateway.daemon = await start(gateway.name)
    await openPaths(host.client, gateways.length)
    say(
      `gateway ${gateway.name}`,
      `started again, process ${gateway.daemon.pid}: its state came back, and so did the path`,
    )
    await watch(host.client, seconds)
  }
  const report = await host.client.call('workload_stop', { id })
  return conclude(report, pauses)
}

async function attachPath(client: Client, port: number): Promise<void> {
  await client.call('bdev_nvme_attach_controller', {
    name: 'Nvme0',
    trtype: 'TCP',
    adrfam: 'IPv4',
    traddr: LOOPBACK,
    trsvcid: String(port),
    subnqn: NQN,
    multipath: 'multipath',
    ctrlr_loss_timeout_sec: -1,
    reconnect_delay_sec: 1,
  })
}

/** Waits until so many paths are connected. */
async function openPaths(client: Client, count: number): Promise<void> {
  for (;;) {
    const [controller] = await client.call('bdev_nvme_get_controllers', { name: 'Nvme0' })
    const open = controller?.ctrlrs.filter(({ state }) => state === 'enabled').length ?? 0
    if (open >= count) return
    await sleep(50)
  }
}

/** Shows for a while how the load goes, and tells the longest pause, in microseconds. */
async function watch(client: Client, seconds: number): Promise<number> {
  const end = performance.now() + seconds * 1000
  let before = (await client.call('workload_get'))[0]!
  while (performance.now() < end) {
    await sleep(Math.min(500, Math.max(1, end - performance.now())))
    const now = (await client.call('workload_get'))[0]!
    const done = now.reads + now.writes - before.reads - before.writes
    const iops = Math.round((done * 1e6) / (now.elapsed_us - before.elapsed_us))
    say(
      '',
      `${(now.elapsed_us / 1e6).toFixed(1).padStart(5)} s  ${iops.toLocaleString('en').padStart(9)} IOPS   ` +
        `errors ${now.errors}   wrong blocks ${now.miscompares}`,
    )
    before = now
  }
  return before.longest_pause_us
}

type Report = Awaited<ReturnType<typeof stopOf>>
const stopOf = (client: Client) => client.call('workload_stop', { id: 0 })

function conclude(report: Report, pausesUs: readonly number[]): number {
  const { reads, writes, read_backs, errors, miscompares } = report
  const isWhole = errors === 0 && miscompares === 0
  process.stdout.write(
    `\n  ${(reads + writes).toLocaleString('en')} I/Os while each gateway was killed once; ` +
      `I/O paused for ${pausesUs.map(milliseconds).join(' and ')}.\n` +
      `  ${read_backs.toLocaleString('en')} blocks were read back at the end: ` +
      `${errors} errors, ${miscompares} wrong blocks.\n\n  ${
        isWhole ? styleText('green', 'Nothing was lost.') : styleText('red', 'DATA WAS LOST OR FAILED:')
      }\n`,
  )
  for (const text of report.first_errors) process.stdout.write(`    ${text}\n`)
  return isWhole ? 0 : 1
}

const milliseconds = (us: number): string => `${(us / 1000).toFixed(1)} ms`

function say(who: string, what: string): void {
  process.stdout.write(`  ${who.padEnd(10)} ${what}\n`)
}
