/**
 * A virtual machine with Debian's kernel, as a client nobody here wrote: the Linux NVMe host, its multipath, and the
 * programs that drive them. It is emulated (TCG), so that it runs where there is no hardware virtualisation.
 *
 *   test ── Unix socket ── virtio serial port ── agent        commands, exit codes, output
 *   test ── Unix socket ── QMP                                reset, links, hot-plug
 *   NIC i ── hub ── QEMU user network 10.0.(2+i).0/24         10.0.(2+i).2 is this machine's 127.0.0.1
 */
import { randomUUID } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { cpio, directory, file } from '../../../src/vm/lab/cpio.ts'
import { Agent, type CommandResult } from './agent.ts'
import { Child } from './child.ts'
import { bootFiles } from './image.ts'
import { findProgram } from './packages.ts'
import { Qmp, type QmpEvent } from './qmp.ts'
import { isSilent, SILENCE_MS } from './silence.ts'

export interface GuestOptions {
  /** Default 512. */
  readonly memoryMiB?: number
  /** Memory that can be plugged in later, in up to 4 pieces. Default 0. */
  readonly spareMemoryMiB?: number
  /** Default 2. */
  readonly cpus?: number
  /** Kernel modules to load at boot, dependencies included; others can be loaded later with `modprobe`. */
  readonly modules?: readonly string[]
  /** Network interfaces: eth0 in 10.0.2.0/24, eth1 in 10.0.3.0/24 and so on. Default 1. */
  readonly nics?: number
  /** Files to put into the guest before it boots: absolute path to content. All are executable. */
  readonly files?: Readonly<Record<string, string | Uint8Array>>
  /** Guest memory in a shared file, which vhost-user devices need. Default false. */
  readonly sharedMemory?: boolean
  /** After how long without a word on its console a guest that boots is reset, once. Default 45 s. */
  readonly silenceMs?: number
  /** More arguments for QEMU, for example `-device` with its parts. */
  readonly extraArgs?: readonly string[]
}

/** What QEMU answers to query-migrate. */
interface MigrationStatus {
  readonly status: string
  readonly 'error-desc'?: string
}

export interface RunOptions {
  /** Whether an exit code other than 0 is an error. Default true. */
  readonly check?: boolean
  /** After which time the command counts as hung, and is killed. Default 120 s. */
  readonly timeoutMs?: number
}

/** A command that runs in the background. */
export interface GuestJob {
  /** Its result; rejects as `run` does. */
  readonly done: Promise<CommandResult>
  /** Sends a signal, TERM unless told otherwise, to the command and all that it started. */
  kill(signal?: string): Promise<void>
}

const TIMEOUT_MS = 120_000

/** How much of the console a failure shows: a panic with its traces of the stack is longer than a screen. */
const CONSOLE_LINES = 80

/** The address under which the guest reaches 127.0.0.1 of this machine through its interface eth0, eth1 … */
export const hostAddress = (nic = 0): string => `10.0.${2 + nic}.2`

/** Starts a guest and waits until it takes commands. The caller must `stop` it. */
export async function bootGuest(options: GuestOptions = {}): Promise<Guest> {
  const guest = await Guest.start(options)
  try {
    await guest.booted()
  } catch (error) {
    await guest.stop()
    throw error
  }
  return guest
}

export class Guest {
  /** Time from the start of QEMU until the first command could run. */
  bootMs = 0
  /** The machine protocol, for what has no method here. */
  readonly qmp: Qmp
  readonly #agent: Agent
  readonly #machine: Child
  readonly #home: string
  readonly #silenceMs: number
  /** It was reset before it had ever booted. */
  #wasSilent = false
  readonly #startMs = performance.now()

  private constructor(home: string, agent: Agent, qmp: Qmp, machine: Child, silenceMs: number) {
    this.#home = home
    this.#silenceMs = silenceMs
    this.#agent = agent
    this.qmp = qmp
    this.#machine = machine
    void machine.exited.then(() => this.#closeAll(this.#failure(`QEMU ended: ${machine.output}`)))
  }

  /** Starts a guest without waiting for it. */
  static async start(options: GuestOptions): Promise<Guest> {
    const { kernel, initramfs, disk } = await bootFiles()
    const home = mkdtempSync(join(tmpdir(), 'qpair-guest-'))
    const initrd = join(home, 'initramfs')
    writeFileSync(initrd, Buffer.concat([readFileSync(initramfs), extraFiles(options.files ?? {})]))
    const agent = await Agent.listen(join(home, 'agent'))
    // Events come only after QEMU has started, and the guest below with it.
    const qmp = await Qmp.listen(join(home, 'qmp'), event => guest.#onEvent(event))
    const args = machineArgs(options, home, { kernel, initrd, disk })
    const machine = await Child.start(findProgram('qemu-system-x86_64')!, args)
    const guest: Guest = new Guest(home, agent, qmp, machine, options.silenceMs ?? SILENCE_MS)
    await qmp.execute('qmp_capabilities')
    return guest
  }

  get pid(): number {
    return this.#machine.pid
  }

  /** What the guest's kernel has printed so far. */
  get console(): string {
    return readFileSync(join(this.#home, 'console'), 'utf8').replaceAll('\r', '')
  }

  /**
   * Waits until the guest takes commands. One that hangs without a word (silence.ts) is reset, once, and the output of the
   * tests says so.
   */
  async booted(): Promise<void> {
    if (await isSilent(join(this.#home, 'console'), this.#agent.booted, this.#silenceMs)) {
      const lines = this.console.split('\n')
      console.warn(
        `guest ${this.pid}: nothing on its console for ${this.#silenceMs} ms while it boots; it is reset, once. It said:\n` +
          lines.slice(-CONSOLE_LINES).join('\n'),
      )
      this.#wasSilent = true
      this.#agent.rebooting(new Error('the guest was reset, because it was silent'))
      await this.#within(this.qmp.execute('system_reset'), TIMEOUT_MS, 'system_reset')
    }
    await this.#within(this.#agent.booted, TIMEOUT_MS, 'boot')
    this.bootMs ||= performance.now() - this.#startMs
  }

  /** Runs a shell command and waits for its end. */
  async run(
    command: string,
    { check = true, timeoutMs = TIMEOUT_MS }: RunOptions = {},
  ): Promise<CommandResult> {
    const job = this.start(command, { check })
    try {
      return await this.#within(job.done, timeoutMs, command)
    } catch (error) {
      // One that ended needs no signal, and one that hangs in the kernel gets none: no answer is waited for.
      void job.kill('KILL').catch(() => {})
      throw error
    }
  }

  /** Starts a shell command in the background, for as long as it takes. */
  start(command: string, { check = true }: Pick<RunOptions, 'check'> = {}): GuestJob {
    const { id, done } = this.#agent.start(command)
    const checked = done.then(result => {
      if (!check || result.code === 0) return result
      throw this.#failure(`${command}\nended with code ${result.code}\n${result.stdout}${result.stderr}`)
    })
    // A job may be killed and forgotten; whoever awaits it still hears how it ended.
    checked.catch(() => {})
    const kill = async (signal = 'TERM'): Promise<void> => {
      // The process id is there a moment after the command has started, and gone once it has ended.
      const job = `/run/lab/${id}`
      const wait = `while [ -d ${job} ] && ! [ -s ${job}/pid ]; do sleep 0.01; done`
      await this.#agent.start(`${wait}; kill -${signal} "-$(cat ${job}/pid)"`).done
    }
    return { done: checked, kill }
  }

  /** Waits until a shell condition holds in the guest. */
  async waitFor(condition: string, timeoutMs = TIMEOUT_MS): Promise<void> {
    await this.run(`until ${condition}; do sleep 0.05; done`, { timeoutMs })
  }

  /**
   * Cuts or restores a network. While it is cut, packets vanish in both directions without a word: no interface goes
   * down, no connection is closed.
   */
  async setLink(nic: number, up: boolean): Promise<void> {
    await this.qmp.execute('set_link', { name: `port${nic}`, up })
  }

  /** Makes a port of the guest reachable through one of its interfaces, at a port of 127.0.0.1 that QEMU picks. */
  async forward(port: number, nic = 0): Promise<number> {
    const monitor = (line: string): Promise<string> =>
      this.qmp.execute<string>('human-monitor-command', { 'command-line': line })
    const address = `10.0.${2 + nic}.15`
    const refusal = await monitor(`hostfwd_add net${nic} tcp:127.0.0.1:0-${address}:${port}`)
    const networks = await monitor('info usernet')
    const row = new RegExp(`HOST_FORWARD\\] +\\d+ +127\\.0\\.0\\.1 +(\\d+) +${address} +${port} `).exec(
      networks,
    )
    if (row === null) throw this.#failure(`port ${port} is not forwarded: ${refusal}${networks}`)
    return Number(row[1])
  }

  /** Resets the machine as its reset button would, and waits until it has booted again. */
  async reset(): Promise<void> {
    this.#agent.rebooting(new Error('the guest was reset'))
    await this.qmp.execute('system_reset')
    await this.booted()
  }

  /**
   * Moves the running machine to another QEMU, which was started with the same options and `-incoming defer`, as live
   * migration does. Its commands go on there, and this guest is of no more use.
   */
  async migrateTo(destination: Guest): Promise<void> {
    const uri = `unix:${join(destination.#home, 'migration')}`
    await destination.qmp.execute('migrate-incoming', { uri })
    destination.#agent.adopt(this.#agent)
    // Slow enough that the guest works on meanwhile; and one that is busy writing to its memory must get to an end.
    const limits = { 'max-bandwidth': 64 << 20, 'downtime-limit': 2000 }
    await this.qmp.execute('migrate-set-parameters', limits)
    await this.qmp.execute('migrate', { uri })
    const status = async (): Promise<string> => {
      const answer = await this.qmp.execute<MigrationStatus>('query-migrate')
      if (answer.status === 'failed')
        throw this.#failure(`migration failed: ${answer['error-desc'] ?? destination.#machine.output}`)
      return answer.status
    }
    const deadlineMs = Date.now() + TIMEOUT_MS
    while ((await status()) !== 'completed') {
      if (Date.now() > deadlineMs) throw this.#failure(`migration has not ended within ${TIMEOUT_MS} ms`)
      await delay(20)
    }
    this.#agent.release()
  }

  /** Ends the machine and removes its files. */
  async stop(): Promise<void> {
    await this.#machine.end('SIGKILL')
    rmSync(this.#home, { recursive: true, force: true })
  }

  #onEvent({ event, data }: QmpEvent): void {
    if (event !== 'RESET' || data['guest'] !== true) return
    // The kernel resets the machine when it panics. While it starts again the firmware may do so once more, which
    // means nothing; at the first start it has no reason to.
    if (this.#agent.isBooted || (this.bootMs === 0 && !this.#wasSilent)) {
      this.#agent.rebooting(this.#failure('the guest has reset itself'))
    }
  }

  async #within<T>(work: Promise<T>, timeoutMs: number, what: string): Promise<T> {
    const timer = new AbortController()
    const late = delay(timeoutMs, undefined, { signal: timer.signal }).then(() => {
      throw this.#failure(`${what}\nhas not ended within ${timeoutMs} ms`)
    })
    try {
      return await Promise.race([work, late])
    } finally {
      late.catch(() => {})
      timer.abort()
    }
  }

  #closeAll(reason: Error): void {
    this.#agent.close(reason)
    this.qmp.close(reason)
  }

  #failure(message: string): Error {
    const lines = this.console.split('\n')
    return new Error(
      `${message.trimEnd()}\nThe guest's console, last lines:\n${lines.slice(-CONSOLE_LINES).join('\n')}`,
    )
  }
}

/** An archive that the first program of the guest copies over its root. */
function extraFiles(files: Readonly<Record<string, string | Uint8Array>>): Buffer {
  const names = Object.keys(files).map(path => join('files', path))
  const directories = new Set(names.flatMap(parents))
  const contents = Object.values(files).map((content, index) => file(names[index]!, content))
  return cpio([...[...directories].map(directory), ...contents])
}

/** The directories above a relative path, outermost first. */
function parents(path: string): string[] {
  const parent = dirname(path)
  return parent === '.' ? [] : [...parents(parent), parent]
}

function machineArgs(
  options: GuestOptions,
  home: string,
  boot: { readonly kernel: string; readonly initrd: string; readonly disk: string },
): string[] {
  const { memoryMiB = 512, spareMemoryMiB = 0, cpus = 2, nics = 1, modules = [] } = options
  const { sharedMemory = false, extraArgs = [] } = options
  // Without init_on_alloc the kernel does not write to each page before a device does, which would hide what the device
  // fails to log during a migration.
  const commandLine = [
    'init_on_alloc=0',
    'console=ttyS0 panic=-1 oops=panic mitigations=off no_timer_check tsc=reliable cryptomgr.notests',
    `LAB_UUID=${randomUUID()} LAB_MODULES=${modules.join(',')}`,
  ]
  return [
    ...['-no-user-config', '-nodefaults', '-display', 'none', '-accel', 'tcg,thread=multi'],
    ...['-machine', sharedMemory ? 'q35,memory-backend=memory' : 'q35', '-cpu', 'max'],
    ...['-smp', `${cpus}`, '-m', memory(memoryMiB, spareMemoryMiB)],
    ...(sharedMemory ? ['-object', `memory-backend-memfd,id=memory,size=${memoryMiB}M,share=on`] : []),
    ...['-kernel', boot.kernel, '-initrd', boot.initrd, '-append', commandLine.join(' ')],
    ...['-drive', `if=none,id=disk,format=raw,readonly=on,file=${boot.disk}`],
    ...['-device', 'virtio-blk-pci,drive=disk,serial=lab'],
    ...['-serial', `file:${join(home, 'console')}`],
    ...['-device', 'virtio-serial-pci'],
    ...['-chardev', `socket,id=agent,path=${join(home, 'agent')}`],
    ...['-device', 'virtserialport,chardev=agent,name=lab'],
    ...['-chardev', `socket,id=qmp,path=${join(home, 'qmp')}`],
    ...['-mon', 'chardev=qmp,mode=control'],
    ...Array.from({ length: nics }, (_, nic) => nicArgs(nic)).flat(),
    ...extraArgs,
  ]
}

const memory = (sizeMiB: number, spareMiB: number): string =>
  spareMiB === 0 ? `${sizeMiB}` : `${sizeMiB}M,slots=4,maxmem=${sizeMiB + spareMiB}M`

/**
 * A network interface behind a hub. Cutting the hub's port towards the outside loses packets and nothing else;
 * cutting the interface's own link would tell the guest's kernel at once.
 */
function nicArgs(nic: number): string[] {
  const net = `10.0.${2 + nic}`
  return [
    ...['-netdev', `user,id=net${nic},ipv6=off,net=${net}.0/24,host=${net}.2,dhcpstart=${net}.15`],
    ...['-netdev', `hubport,id=port${nic},hubid=${nic},netdev=net${nic}`],
    ...['-netdev', `hubport,id=nic-port${nic},hubid=${nic}`],
    // Without its boot program, which comes in a package of its own.
    ...['-device', `virtio-net-pci,id=nic${nic},netdev=nic-port${nic},romfile=`],
  ]
}
