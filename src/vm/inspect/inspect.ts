/** What a guest's QEMU process is made of: from its monitor and from /proc. */
import { dirname } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError } from '../../core/errors.ts'
import { isRecord, textOf } from '../untrusted.ts'
import {
  cpuPercent,
  type KnownThreads,
  type MemoryReading,
  readMemory,
  readThreads,
  roleOf,
} from './threads.ts'

/** A command of QEMU's monitor. Rejects with `RpcError`. */
export type Monitor = (command: string, args: Record<string, unknown>) => Promise<unknown>

export interface InspectedGuest {
  readonly name: string
  readonly pid: number
  readonly monitor: Monitor
  /** Disks that a daemon serves over vhost-user, which QEMU has no part in. */
  readonly vhostDisks: readonly {
    readonly target: string
    readonly source: string
    readonly bdev: string | undefined
  }[]
}

export interface Inspection {
  readonly name: string
  readonly pid: number
  readonly threads: readonly {
    readonly tid: number
    readonly role: string
    readonly name: string
    readonly cpu: number
  }[]
  readonly disks: readonly { readonly disk: string; readonly source: string; readonly servedBy: string }[]
  readonly memory: MemoryReading | undefined
}

export interface InspectOptions {
  /** Between the two readings of what each thread has used. */
  readonly intervalMs: number
  readonly proc?: string
}

export async function inspect(
  guest: InspectedGuest,
  { intervalMs, proc }: InspectOptions,
): Promise<Inspection> {
  const { name, pid, monitor } = guest
  const known = await knownThreads(pid, monitor)
  const disks = await disksOf(guest)
  const before = unlessGone(name, () => readThreads(pid, proc))
  const startMs = performance.now()
  await delay(intervalMs)
  const elapsedMs = performance.now() - startMs
  const threads = unlessGone(name, () => readThreads(pid, proc)).map(reading => ({
    tid: reading.tid,
    role: roleOf(reading, known),
    name: reading.comm,
    cpu: cpuPercent(before, reading, elapsedMs),
  }))
  threads.sort((a, b) => rank(a.role) - rank(b.role) || a.tid - b.tid)
  return { name, pid, threads, disks, memory: unlessGone(name, () => readMemory(pid, proc)) }
}

const ORDER = ['main loop', 'vCPU', 'I/O thread', 'worker', 'io_uring']
const rank = (role: string): number => {
  const index = ORDER.findIndex(first => role.startsWith(first))
  return index < 0 ? ORDER.length : index
}

function unlessGone<Result>(name: string, read: () => Result): Result {
  try {
    return read()
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause
    throw new RpcError('ESRCH', `guest ${name} has ended while it was looked at`, { cause })
  }
}

async function knownThreads(pid: number, monitor: Monitor): Promise<KnownThreads> {
  const vcpus = records(await monitor('query-cpus-fast', {}))
  const iothreads = records(await monitor('query-iothreads', {}))
  return {
    pid,
    vcpus: new Map(vcpus.map(each => [Number(each['thread-id']), Number(each['cpu-index'])])),
    iothreads: new Map(iothreads.map(each => [Number(each['thread-id']), textOf(each['id'])])),
  }
}

async function disksOf({ monitor, vhostDisks }: InspectedGuest): Promise<Inspection['disks']> {
  const disks: { disk: string; source: string; servedBy: string }[] = []
  for (const block of records(await monitor('query-block', {}))) {
    const { qdev, device, inserted } = block
    const path = devicePath(textOf(qdev, ''))
    const iothread = path === '' ? undefined : await iothreadOf(path, monitor)
    disks.push({
      disk: nameOf(path) || textOf(device),
      source: isRecord(inserted) ? textOf(inserted['file']) : 'empty',
      servedBy: iothread === undefined ? 'main loop' : `I/O thread ${iothread}`,
    })
  }
  const served = vhostDisks.map(({ target, source, bdev }) => ({
    ...{ disk: target, source },
    servedBy:
      bdev === undefined ? 'another process, over vhost-user' : `qpair, bdev ${bdev}, over vhost-user`,
  }))
  return [...disks, ...served]
}

/** A device that has an id is known by that, others by their path among QEMU's objects. */
const devicePath = (qdev: string): string =>
  qdev === '' || qdev.startsWith('/') ? qdev : `/machine/peripheral/${qdev}`

/** The device's id, without what is inside of it, nor what this daemon's own ids begin with. */
const nameOf = (path: string): string =>
  path.replace(/^\/machine\/peripheral(?:-anon)?\/(?:disk-)?/, '').split('/')[0] ?? ''

/** Of the device itself, of the virtio device inside of it, or of the controller that its bus belongs to. */
async function iothreadOf(path: string, monitor: Monitor): Promise<string | undefined> {
  const get = async (object: string, property: string): Promise<string> => {
    try {
      return textOf(await monitor('qom-get', { path: object, property }), '')
    } catch (error) {
      // It has no such property: not every device can have a thread.
      if (error instanceof RpcError) return ''
      throw error
    }
  }
  const bus = await get(path, 'parent_bus')
  for (const object of [path, `${path}/virtio-backend`, ...(bus === '' ? [] : [dirname(bus)])]) {
    const iothread = await get(object, 'iothread')
    if (iothread !== '') return iothread.split('/').at(-1)
  }
  return undefined
}

const records = (answer: unknown): Record<string, unknown>[] =>
  Array.isArray(answer) ? answer.filter(isRecord) : []
