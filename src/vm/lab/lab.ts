/**
 * `qpair vm lab`: a small Linux guest with virtual NVMe disks, its console on this terminal. With --multipath its disks are
 * those of two gateways:
 *
 *   guest: /dev/nvme0n1 ─┬─ eth0 ── NVMe/TCP ── gateway A ─┬─ images
 *                        └─ eth1 ── NVMe/TCP ── gateway B ─┘
 */
import { constants } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import { foldLines } from '../../core/fold-lines.ts'
import { formatSize } from '../../core/format-size.ts'
import { kvmWorks } from '../../host/checks/kvm.ts'
import { Host } from '../../host/host.ts'
import { Console, ESCAPE, type Input, type Output } from '../console.ts'
import type { Accel } from '../run/machine.ts'
import { isKvmFailure } from '../run/qemu-failure.ts'
import { GatewayPair, LAB_NQN } from './gateway-pair.ts'
import { READY } from './guest-files.ts'
import { LabDirectory, removeLeftLabs, withReason } from './lab-directory.ts'
import { defaultCache, labImage } from './lab-image.ts'
import { LabMachine } from './lab-machine.ts'
import { LabMenu } from './lab-menu.ts'
import { LAB_HELP, type LabRequest, parseRequest } from './options.ts'

export interface LabTerminal {
  readonly input: Input
  readonly output: Output & { readonly columns?: number; readonly rows?: number }
}

/** A guest under KVM that has not said a word by then never will: some machines offer KVM that hangs. */
const SILENCE_MS = 20_000

/** Resolves with the exit code. Throws `RpcError` for what cannot be. */
export async function vmLab(
  argv: readonly string[],
  terminal: LabTerminal = { input: process.stdin, output: process.stdout },
): Promise<number> {
  const request = parseRequest(argv)
  if (request === 'help') {
    terminal.output.write(foldLines(LAB_HELP, terminal.output.columns))
    return 0
  }
  const directory = await LabDirectory.make()
  const lab = new Lab(request, directory, terminal)
  const played = lab.run()
  try {
    return await Promise.race([played, interrupted()])
  } finally {
    await lab.stop()
    // A lab that was interrupted while it started may have started one thing more.
    await played.catch(() => undefined)
    await lab.stop()
    await directory.remove()
  }
}

/** Resolves with the exit code that shells expect, at a signal from elsewhere: Ctrl-C goes to the guest. */
function interrupted(): Promise<number> {
  return new Promise(resolve => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.once(signal, () => resolve(128 + constants.signals[signal]))
    }
  })
}

class Lab {
  readonly #request: LabRequest
  readonly #directory: LabDirectory
  readonly #terminal: LabTerminal
  #gateways: GatewayPair | undefined
  #machine: LabMachine | undefined
  #console: Console | undefined
  #menu: LabMenu | undefined
  #isChoosing = false
  #leave = (): void => {}
  readonly #left = new Promise<void>(resolve => {
    this.#leave = resolve
  })

  constructor(request: LabRequest, directory: LabDirectory, terminal: LabTerminal) {
    this.#request = request
    this.#directory = directory
    this.#terminal = terminal
  }

  async run(): Promise<number> {
    const { sizes, isMultipath, accel } = this.#request
    for (const path of await removeLeftLabs()) this.#say(`${path} is removed: its lab was killed`)
    const images = await this.#directory.makeImages(sizes)
    this.#say(`${sizes.map(formatSize).join(' and ')} of virtual NVMe, thin, in ${this.#directory.path}`)
    if (isMultipath) {
      this.#gateways = await GatewayPair.start(this.#directory.path, images)
      this.#say(`gateways A and B serve them on 127.0.0.1, ports ${this.#gateways.ports.join(' and ')}`)
    }
    const chosen = accel === 'auto' ? await bestAccel() : accel
    if (!(await this.#boots(chosen, images))) {
      this.#say('KVM is offered here and does not work: once more, emulated')
      this.#console?.close()
      await this.#machine?.stop()
      await this.#boot('tcg', images, false)
    }
    return await this.#play()
  }

  /** False when KVM was this program's own choice, and a bad one. */
  async #boots(accel: Accel, images: readonly string[]): Promise<boolean> {
    const isInDoubt = this.#request.accel === 'auto'
    try {
      return await this.#boot(accel, images, isInDoubt)
    } catch (error) {
      if (isInDoubt && isKvmFailure(error)) return false
      throw error
    }
  }

  async stop(): Promise<void> {
    this.#leave()
    this.#console?.close()
    await this.#machine?.stop()
    await this.#gateways?.stop()
  }

  /** Answers whether the guest has said anything, when that is in doubt. */
  async #boot(accel: Accel, images: readonly string[], isInDoubt: boolean): Promise<boolean> {
    const { kernel, cpus, memoryBytes, isMultipath } = this.#request
    const { rows = 24, columns = 80 } = this.#terminal.output
    const directory = this.#directory.path
    const image = await withReason(directory, () =>
      labImage({
        ...{ kernel, isEmulated: accel === 'tcg', directory, cache: defaultCache() },
        say: text => this.#say(text),
      }),
    )
    this.#say(`a guest starts, ${accel === 'kvm' ? 'with KVM' : 'emulated: this takes some seconds'}`)
    this.#machine = await LabMachine.start({
      ...{ directory, image, accel, cpus, memoryBytes },
      ...{ disks: isMultipath ? [] : images, networks: isMultipath ? 2 : 0 },
      environment: {
        ...{ LAB_DISKS: String(images.length), LAB_ROWS: String(rows), LAB_COLUMNS: String(columns) },
        ...{ LAB_HINT: isMultipath ? 'opens_the_menu' : 'does_too' },
        ...(isMultipath && { LAB_NQN, LAB_PORTS: this.#gateways!.ports.join(',') }),
      },
    })
    let hear = (): void => {}
    const heard = new Promise<boolean>(resolve => {
      hear = () => resolve(true)
    })
    this.#console = await this.#openConsole(this.#machine, () => hear())
    if (!isInDoubt || accel === 'tcg') return true
    const left = this.#left.then(() => true)
    return Promise.race([heard, left, delay(SILENCE_MS, false, { ref: false })])
  }

  /** What is typed before the shell is there would be lost in the serial port: the console listens from its greeting on. */
  #openConsole(machine: LabMachine, onOutput: () => void): Promise<Console> {
    let text = ''
    let isReady = false
    const { input, output } = this.#terminal
    const { takesKey } = this
    return Console.open(machine.consolePath, {
      ...{ input, output, takesKey },
      onOutput: piece => {
        onOutput()
        if (isReady) return
        text = (text + piece).slice(-200)
        if (!text.includes(READY)) return
        isReady = true
        this.#console!.listen()
      },
    })
  }

  /** Until the guest has ended, or the user leaves. */
  async #play(): Promise<number> {
    const machine = this.#machine!
    const gateways = this.#gateways
    if (gateways !== undefined) {
      this.#menu = new LabMenu({
        ...{ gateways, machine, end: () => this.#leave() },
        type: text => this.#console!.send(text),
        say: text => this.#say(text),
      })
    }
    await Promise.race([this.#console!.closed, this.#left])
    this.#terminal.output.write('\r\n')
    return 0
  }

  /** Ctrl-], and behind it the key that says what for. */
  readonly takesKey = (key: number): boolean => {
    if (this.#isChoosing) {
      this.#isChoosing = false
      void this.#menu!.choose(String.fromCharCode(key))
      return true
    }
    if (key !== ESCAPE) return false
    if (this.#menu === undefined) this.#leave()
    else {
      this.#isChoosing = true
      this.#menu.show()
    }
    return true
  }

  /** In raw mode a terminal wants both ends of a line. */
  #say(text: string): void {
    this.#terminal.output.write(`${text.replaceAll('\n', '\r\n')}\r\n`)
  }
}

async function bestAccel(): Promise<Accel> {
  return (await kvmWorks(new Host())).level === 'pass' ? 'kvm' : 'tcg'
}
