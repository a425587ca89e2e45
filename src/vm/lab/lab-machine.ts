/** The lab's QEMU: a child that ends with the lab, with NVMe disks of its own or two networks to two gateways. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Qmp, QmpClosed } from '../qmp.ts'
import { diskObjects } from '../run/guest-disk.ts'
import { type Accel, architecture, machineArguments } from '../run/machine.ts'
import { noQemu, startFailure } from '../run/qemu-failure.ts'
import type { LabImage } from './lab-image.ts'
import { findProgram, withParent } from './programs.ts'

export interface LabMachineOptions {
  readonly directory: string
  readonly image: LabImage
  readonly accel: Accel
  readonly cpus: number
  readonly memoryBytes: number
  /** Files that are its NVMe disks. */
  readonly disks: readonly string[]
  /** Networks over which it reaches this machine's loopback, as 10.0.(2+i).2. */
  readonly networks: number
  /** What its first program is told. */
  readonly environment: Readonly<Record<string, string>>
}

/** Its serial port, as Linux calls it. */
const CONSOLE_DEVICE = process.arch === 'arm64' ? 'ttyAMA0' : 'ttyS0'
/** A boot that nobody has to see; the clock and the mitigations cost an emulated one a third of its time. */
const KERNEL_ARGUMENTS = 'quiet panic=-1 mitigations=off no_timer_check tsc=reliable cryptomgr.notests'
const START_MS = 60_000

export class LabMachine {
  readonly qmp: Qmp
  readonly consolePath: string
  readonly #child: ChildProcess
  readonly #exited: Promise<unknown>

  private constructor(child: ChildProcess, exited: Promise<unknown>, qmp: Qmp, consolePath: string) {
    this.#child = child
    this.#exited = exited
    this.qmp = qmp
    this.consolePath = consolePath
  }

  /** Throws `RpcError` with QEMU's reason. */
  static async start(options: LabMachineOptions): Promise<LabMachine> {
    const { directory } = options
    const { program } = architecture()
    const qmpPath = join(directory, 'qmp')
    const consolePath = join(directory, 'console')
    const args = labArguments(options, qmpPath, consolePath)
    const qemu = findProgram(program)
    if (qemu === undefined) throw noQemu(program, undefined)
    const [first, ...rest] = withParent([qemu, ...args], 'KILL')
    const said: string[] = []
    const child = spawn(first!, rest, {
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    child.stderr!.setEncoding('utf8').on('data', text => said.push(String(text)))
    const exited = once(child, 'close')
    for (const deadlineMs = performance.now() + START_MS; ; ) {
      try {
        const qmp = await Qmp.connect(qmpPath, { timeoutMs: START_MS })
        return new LabMachine(child, exited, qmp, consolePath)
      } catch (error) {
        if (!(error instanceof QmpClosed)) throw error
        const hasExited = child.exitCode !== null || child.signalCode !== null
        if (hasExited || performance.now() > deadlineMs) {
          child.kill('SIGKILL')
          await exited
          throw startFailure('lab', said.join(''))
        }
        await delay(20)
      }
    }
  }

  /** Packets of a network vanish in both directions without a word, or no longer do. */
  async setLink(network: number, isUp: boolean): Promise<void> {
    await this.qmp.execute('set_link', { name: `uplink${network}`, up: isUp })
  }

  async stop(): Promise<void> {
    this.qmp.close()
    this.#child.kill('SIGKILL')
    await this.#exited
  }
}

function labArguments(options: LabMachineOptions, qmpPath: string, consolePath: string): string[] {
  const { image, disks, networks, environment } = options
  const variables = Object.entries({ ...environment, LAB_CONSOLE: CONSOLE_DEVICE })
  const { machine } = architecture()
  return machineArguments({
    ...{ name: 'lab', machine, version: [0, 0], accel: options.accel, hugePages: false },
    ...{ cpus: options.cpus, memoryBytes: options.memoryBytes, firmware: undefined, vnc: undefined },
    ...{ kernel: image.kernel, initrd: image.initrd, qmpPath, consolePath, needsHelper: false },
    append: [
      `console=${CONSOLE_DEVICE}`,
      KERNEL_ARGUMENTS,
      ...variables.map(([name, value]) => `${name}=${value}`),
    ].join(' '),
    ports: disks.length,
    disks: disks.map((path, index) =>
      diskObjects(
        {
          ...{ target: `nvme${index}`, bus: 'nvme', serial: `LAB${index}`, isReadOnly: false },
          source: { kind: 'file', path, format: 'raw' },
        },
        { bus: `port${index}` },
      ),
    ),
    network: Array.from({ length: networks }, (_, index) => networkArguments(index)).flat(),
  })
}

/**
 * A network card behind a hub. Cutting the hub's port towards the outside loses packets and nothing else; cutting the card's
 * own link would tell the guest's kernel at once.
 */
function networkArguments(index: number): string[] {
  const net = `10.0.${2 + index}`
  return [
    ...['-netdev', `user,id=net${index},ipv6=off,net=${net}.0/24,host=${net}.2,dhcpstart=${net}.15`],
    ...['-netdev', `hubport,id=uplink${index},hubid=${index},netdev=net${index}`],
    ...['-netdev', `hubport,id=card-port${index},hubid=${index}`],
    ...['-device', `virtio-net-pci,id=card${index},netdev=card-port${index},romfile=`],
  ]
}
