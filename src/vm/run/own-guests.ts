/** The guests that this daemon has started: made, found again after the daemon's own restart, ended. */
import { existsSync, rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError, thereAre } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import { ProgramError, runProgram } from '../../core/program.ts'
import { kvmWorks } from '../../host/checks/kvm.ts'
import { Host } from '../../host/host.ts'
import type { RunProgram } from '../../libvirt/virsh.ts'
import { diskOf } from '../disk/server-images.ts'
import { Qmp, QmpClosed } from '../qmp.ts'
import { type Undo, withUndo } from '../undo.ts'
import { type DiskParts, type DiskRequest, prepareCdrom, prepareDisk } from './disk-source.ts'
import { type Firmware, findFirmware, makeVariables } from './firmware.ts'
import { Guest, type StopHow } from './guest.ts'
import { diskObjects, type Version } from './guest-disk.ts'
import { reportEvent } from './guest-events.ts'
import {
  type GuestPaths,
  type GuestRecord,
  keeping,
  pathsOf,
  type RecordedDisk,
  readRecord,
  recordedGuests,
  writeRecord,
} from './guest-record.ts'
import type { NetParts } from './interfaces.ts'
import { type Accel, architecture, hasPorts, machineArguments, portName, qmpOption } from './machine.ts'
import { movedSockets } from './moved-sockets.ts'
import { closeDescriptor, closeNet, type GuestNet, macAddressOf, type OpenNet, openNet } from './network.ts'
import { isKvmFailure, noQemu, startFailure } from './qemu-failure.ts'
import {
  findProcess,
  hasEnded,
  isRunning,
  kill,
  processOf,
  type QemuProcess,
  startQemu,
} from './qemu-process.ts'
import { untilDisconnected } from './release.ts'
import { type OpenScreen, openScreen, passwordFor, type Screen, screenOption } from './screen.ts'

const log = logger('vm')

/** Disks that fit into a guest over PCI, those of its start and those plugged in. */
const PORTS = 16
/** A machine with much memory and many disks takes its time before it answers. */
const START_MS = 120_000
const POLL_MS = 50

export interface RunRequest {
  readonly name: string
  readonly cpus: number
  readonly memoryBytes: number
  readonly hugePages: boolean
  readonly machine: string | undefined
  readonly accel: Accel | 'auto'
  readonly disks: readonly DiskRequest[]
  readonly cdrom: string | undefined
  readonly kernel: string | undefined
  readonly initrd: string | undefined
  readonly append: string | undefined
  readonly firmware: string | undefined
  readonly net: GuestNet
  /** As the operator wrote it. */
  readonly network: string
  readonly screen: Screen | undefined
  readonly passwordFile: string | undefined
}

export interface OwnGuestsParts extends Omit<DiskParts, 'access'> {
  /** Where guests are kept; undefined when the daemon has no state directory. */
  readonly directory: string | undefined
  readonly run?: RunProgram
  readonly host?: Host
}

/** A guest that has been started. */
export interface Started {
  readonly guest: Guest
  readonly screen: OpenScreen | undefined
  readonly firmware: Firmware | undefined
  /** What is to be known of it. */
  readonly notes: readonly string[]
}

/** A start: what must be undone if it fails, and what it knows so far. */
interface Start {
  readonly request: RunRequest
  readonly paths: GuestPaths
  readonly undo: Undo
}

export class OwnGuests {
  readonly #parts: DiskParts
  readonly #directory: string | undefined
  readonly #run: RunProgram
  readonly #host: Host
  readonly #guests = new Map<string, Guest>()
  /** Names of guests that are being started. */
  readonly #starting = new Set<string>()

  constructor({ directory, run = runProgram, host = new Host(), ...parts }: OwnGuestsParts) {
    this.#directory = directory
    this.#run = run
    this.#host = host
    this.#parts = { ...parts, access: { run, root: '/' } }
  }

  list(): Guest[] {
    return [...this.#guests.values()].sort((a, b) => a.record.name.localeCompare(b.record.name))
  }

  find(name: string): Guest | undefined {
    return this.#guests.get(name)
  }

  /** Throws `RpcError` ENODEV. */
  get(name: string): Guest {
    const guest = this.find(name)
    if (guest !== undefined) return guest
    throw new RpcError(
      'ENODEV',
      `there is no guest ${name} that qpair has started: ${thereAre(this.#guests.keys())}; libvirt's domains are virsh's to start and stop`,
    )
  }

  /** Finds again those that were started before this daemon was, once their disks are served again. */
  adopt(): void {
    const directory = this.#directory
    if (directory === undefined) return
    for (const name of recordedGuests(directory)) {
      try {
        this.#adopt(name, pathsOf(directory, name))
      } catch (error) {
        log.error(
          `guest ${name} in ${directory} is not understood and left as it is: ${(error as Error).message}`,
        )
      }
    }
  }

  #adopt(name: string, paths: GuestPaths): void {
    const record = readRecord(paths)
    if (record === undefined) {
      rmSync(paths.directory, { recursive: true, force: true })
      return
    }
    const process = record.process.pid === 0 ? unrecorded(paths) : record.process
    const { pid } = process
    if (isRunning(process)) {
      log.notice(`guest ${name} runs on as process ${pid}`)
      for (const what of movedSockets(record.disks, this.#parts.vhost.list())) {
        log.error(`guest ${name}: ${what}`)
      }
    } else log.warning(`guest ${name} (process ${pid}) has ended while the daemon was away`)
    for (const { target, source, isReadOnly } of record.disks) {
      if (!isReadOnly) this.#parts.images.hold(diskOf('guest', name, target), source)
    }
    this.#add({ ...record, process }, paths)
  }

  /** Lets all of them run on without the daemon. */
  leave(): void {
    for (const guest of this.list()) guest.leave()
  }

  /** Starts a guest. When it fails nothing of it remains. */
  async start(request: RunRequest): Promise<Started> {
    const { name } = request
    const directory = this.#directory
    if (directory === undefined) {
      throw new RpcError(
        'EINVAL',
        `guest ${name} would outlive the daemon, which keeps nothing: start it with a state directory, qpair serve --state DIR`,
      )
    }
    const paths = pathsOf(directory, name)
    if (this.#guests.has(name) || this.#starting.has(name)) {
      throw new RpcError('EEXIST', `there is a guest ${name} already: qpair vm stop ${name} ends it`)
    }
    if (existsSync(paths.record)) {
      throw new RpcError(
        'EEXIST',
        `${paths.directory} has a guest ${name} that is not understood, and may still run: end it and remove that directory, or ` +
          'choose another name',
      )
    }
    this.#starting.add(name)
    try {
      return await withUndo(undo => this.#start({ request, paths, undo }))
    } catch (error) {
      if (request.accel !== 'auto' || !isKvmFailure(error)) throw error
      log.warning(error.message)
      const emulated = { ...request, accel: 'tcg' } as const
      const started = await withUndo(undo => this.#start({ request: emulated, paths, undo }))
      const note = `it is emulated, many times slower than with KVM, which was tried first: ${error.message}`
      return { ...started, notes: [note, ...started.notes] }
    } finally {
      this.#starting.delete(name)
    }
  }

  async stop(
    name: string,
    options: { readonly force: boolean; readonly timeoutMs: number },
  ): Promise<{ how: StopHow; released: readonly string[] }> {
    const guest = this.get(name)
    const how = await guest.stop(options)
    return { how, released: await guest.ended }
  }

  async #start(start: Start): Promise<Started> {
    const { request, paths, undo } = start
    const { name, screen } = request
    const { program, machine: ownMachine } = architecture()
    const machine = request.machine ?? ownMachine
    const version = await this.#version(program)
    const { accel, note } = await this.#accel(request.accel)
    const password = screen && (await passwordFor(screen, request.passwordFile))
    const disks = await this.#disks(start, machine)
    const firmware = await this.#firmware(start, machine)
    undo.add(`directory ${paths.directory}`, async () =>
      rmSync(paths.directory, { recursive: true, force: true }),
    )
    const rest = {
      ...{ name, version, accel, machine, disks, program, ports: PORTS, network: request.network },
      ...{ cpus: request.cpus, memoryBytes: request.memoryBytes },
    }
    const net = await openNet(request.net, { name, macAddress: macAddressOf(name) }, this.#netParts)
    if (net.interface !== undefined) {
      undo.add(`interface ${net.interface}`, () => closeNet(net, this.#netParts))
    }
    const args = machineArguments({
      ...request,
      ...rest,
      ...{ firmware, network: net.arguments, needsHelper: net.needsHelper },
      ...{ qmpPath: paths.qmp, consolePath: paths.console, vnc: screen && screenOption(screen, paths.vnc) },
      // A kernel is the first and only thing to start; QEMU gives that place to it.
      disks: disks.map((disk, index) =>
        diskObjects(disk, {
          bus: disk.port ?? 'pci.0',
          ...(request.kernel === undefined && { bootIndex: index }),
        }),
      ),
    })
    // The directory must be there before QEMU makes its sockets; a record without a process is one that never started.
    const recordOf = (process: QemuProcess, vnc?: string): GuestRecord => ({
      ...rest,
      ...{ process, interface: net.interface, vnc, arguments: args },
    })
    await writeRecord(paths, recordOf({ pid: 0, startTicks: 0 }))
    const qemu = await launch({ program, args, net, paths })
    undo.add(`process ${qemu.pid}`, () => this.#end(qemu, name, disks))
    await writeRecord(paths, recordOf(qemu))
    const qmp = await greeted(name, qemu, paths)
    const opened = screen && (await openScreen(qmp, password))
    const record = recordOf(qemu, opened?.address)
    await writeRecord(paths, record)
    const guest = this.#add(record, paths, qmp)
    log.notice(`guest ${name} runs as process ${qemu.pid} (${accel})`)
    return { guest, firmware, screen: opened, notes: [...(note === undefined ? [] : [note]), ...net.notes] }
  }

  get #netParts(): NetParts {
    return { run: this.#run, host: this.#host }
  }

  async #end(qemu: QemuProcess, name: string, disks: readonly RecordedDisk[]): Promise<void> {
    kill(qemu)
    await hasEnded(qemu, START_MS)
    const targets = disks.map(({ target }) => target)
    await untilDisconnected(name, targets, this.#parts)
  }

  /** With the guest's own variables. */
  async #firmware({ request, paths, undo }: Start, machine: string): Promise<Firmware | undefined> {
    if (request.firmware === undefined) return undefined
    const { variables } = paths
    const firmware = findFirmware(request.firmware, { machine, variables, host: this.#host })
    if (firmware.kind !== 'flash') return firmware
    if (await keeping(variables, () => makeVariables(firmware.variables))) {
      undo.add(`firmware variables ${variables}`, async () => rmSync(variables, { force: true }))
    }
    return firmware
  }

  #add(record: GuestRecord, paths: GuestPaths, qmp?: Qmp): Guest {
    const parts = { ...this.#parts, host: this.#host }
    const guest = new Guest(record, paths, parts, qmp)
    this.#guests.set(record.name, guest)
    void guest.ended.then(() => this.#guests.delete(record.name))
    return guest
  }

  /** Each in its place: those on PCI in ports of their own. */
  async #disks({ request, undo }: Start, machine: string): Promise<RecordedDisk[]> {
    const { name } = request
    const prepared: Omit<RecordedDisk, 'port'>[] = []
    for (const disk of request.disks) {
      const targets = prepared.map(({ target }) => target)
      prepared.push(await prepareDisk(disk, { name, targets }, undo, this.#parts))
    }
    // The last to be booted from: an empty disk is passed over, and one with a system is what was wanted.
    if (request.cdrom !== undefined) prepared.push(await prepareCdrom(request.cdrom, this.#parts))
    let ports = 0
    return prepared.map(disk => {
      const isOnPort = hasPorts(machine) && (disk.bus === 'virtio' || disk.bus === 'nvme')
      if (!isOnPort) return { ...disk, port: undefined }
      if (ports === PORTS) {
        throw new RpcError(
          'ENOSPC',
          `guest ${name} has room for ${PORTS} virtio and NVMe disks: put others on bus=scsi`,
        )
      }
      return { ...disk, port: portName(ports++) }
    })
  }

  async #accel(wanted: Accel | 'auto'): Promise<{ accel: Accel; note?: string }> {
    if (wanted !== 'auto') return { accel: wanted }
    const { level, found } = await kvmWorks(this.#host)
    if (level === 'pass') return { accel: 'kvm' }
    return {
      accel: 'tcg',
      note: `it is emulated, many times slower than with KVM, which ${found}: qpair host validate tells what to do`,
    }
  }

  async #version(program: string): Promise<Version> {
    try {
      const text = await this.#run(program, ['--version'])
      const [, major, minor] = /version (\d+)\.(\d+)/.exec(text) ?? []
      return [Number(major ?? 0), Number(minor ?? 0)]
    } catch (error) {
      if (error instanceof ProgramError && error.isMissing) throw noQemu(program, error)
      throw error
    }
  }
}

/** The daemon was killed between the start of a QEMU and the record of its number. */
const unrecorded = ({ qmp }: GuestPaths): QemuProcess =>
  processOf(findProcess(words => words.some(word => word.startsWith(`${qmpOption(qmp)},`))) ?? 0)

async function launch({
  program,
  args,
  net,
  paths,
}: {
  readonly program: string
  readonly args: readonly string[]
  readonly net: OpenNet
  readonly paths: GuestPaths
}): Promise<QemuProcess> {
  try {
    const descriptors = net.descriptor === undefined ? [] : [net.descriptor]
    return await startQemu({ program, args, logPath: paths.log, descriptors })
  } finally {
    closeDescriptor(net)
  }
}

/** Waits until QEMU has made its machine, which is when it greets. Throws why it has not. */
async function greeted(name: string, qemu: QemuProcess, paths: GuestPaths): Promise<Qmp> {
  const deadlineMs = performance.now() + START_MS
  for (;;) {
    try {
      return await Qmp.connect(paths.qmp, { timeoutMs: START_MS, onEvent: event => reportEvent(name, event) })
    } catch (error) {
      if (!(error instanceof QmpClosed)) throw error
      if (!isRunning(qemu)) throw startFailure(name, await readFile(paths.log, 'utf8'))
      if (performance.now() > deadlineMs) {
        throw new RpcError(
          'ETIMEDOUT',
          `guest ${name}: ${error.message}, ${START_MS / 1000} s after its start`,
        )
      }
      await delay(POLL_MS)
    }
  }
}
