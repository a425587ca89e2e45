/**
 * A qcow2 image behind NBD, beside QEMU's storage daemon on a copy of the same image, with fio as the client of both. The images
 * are in the page cache, so what is measured is the format: tables, their cache, and new clusters.
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { writeWhole } from './file.ts'
import { cpuSeconds, Daemon, fio, hasProgram, Program } from './process.ts'
import { compare, type Row, type Sample, type Subject } from './series.ts'

const MEBIBYTES = 512
/** Of images that are empty when the writing begins: so large that none is full before it ends. */
const NEW_SIZE = '16G'
const SERVER_CPU = 1
const CLIENT_CPU = 2

/** In fio's words. */
interface Work {
  readonly name: string
  readonly rw: 'randread' | 'randwrite' | 'read' | 'write'
  readonly size: '4k' | '128k'
  readonly depth: number
}

const WORKS: readonly Work[] = [
  ...([1, 16] as const).flatMap((depth): Work[] => [
    { name: `4 KiB random read, depth ${depth}`, rw: 'randread', size: '4k', depth },
    { name: `4 KiB random write, depth ${depth}`, rw: 'randwrite', size: '4k', depth },
  ]),
  { name: '128 KiB sequential read, depth 4', rw: 'read', size: '128k', depth: 4 },
  { name: '128 KiB sequential write, depth 4', rw: 'write', size: '128k', depth: 4 },
]
const NEW_WORK: Work = {
  name: '4 KiB random write to new clusters, depth 16',
  rw: 'randwrite',
  size: '4k',
  depth: 16,
}

/** Serves an image until it is stopped. */
interface Server {
  readonly pid: number
  readonly uri: string
  /** Of a JavaScript program, so far. */
  collections?(): number
  stop(): Promise<void>
}

interface Party {
  readonly name: string
  /** `image`: nobody else has it. */
  serve(image: string): Promise<Server>
}

export async function benchQcow2(directory: string, seconds: number, rounds: number): Promise<Row[]> {
  const missing = ['fio', 'qemu-img', 'qemu-storage-daemon'].find(program => !hasProgram(program))
  if (missing !== undefined) {
    console.log(`no ${missing}: the qcow2 rows are left out`)
    return []
  }
  const parties = [ours(directory), qemu(directory, 'io_uring'), qemu(directory, 'threads')]
  return [
    ...(await writtenRows(directory, parties, seconds, rounds)),
    ...(await newRows(directory, parties, seconds, rounds)),
  ]
}

/** Every cluster has its place already. */
async function writtenRows(
  directory: string,
  parties: readonly Party[],
  seconds: number,
  rounds: number,
): Promise<Row[]> {
  const [raw, first] = [join(directory, 'whole.img'), join(directory, 'whole.qcow2')]
  writeWhole(raw, MEBIBYTES)
  execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, first])
  rmSync(raw)
  const servers: Server[] = []
  try {
    for (const [index, party] of parties.entries()) {
      const image = join(directory, `written-${index}.qcow2`)
      copyFileSync(first, image)
      servers.push(await party.serve(image))
    }
    const rows: Row[] = []
    for (const work of WORKS) {
      const subjects = parties.map(
        ({ name }, index): Subject => ({ name, measure: () => load(servers[index]!, work, seconds) }),
      )
      rows.push(...(await compare(`qcow2 over NBD, ${work.name}`, subjects, rounds)))
    }
    return rows
  } finally {
    for (const server of servers) await server.stop()
  }
}

/** Every measurement begins with an empty image. */
async function newRows(
  directory: string,
  parties: readonly Party[],
  seconds: number,
  rounds: number,
): Promise<Row[]> {
  const image = join(directory, 'new.qcow2')
  const subjects = parties.map(
    (party): Subject => ({
      name: party.name,
      async measure() {
        execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, NEW_SIZE])
        const server = await party.serve(image)
        try {
          return await load(server, NEW_WORK, seconds)
        } finally {
          await server.stop()
          rmSync(image)
        }
      },
    }),
  )
  return await compare(`qcow2 over NBD, ${NEW_WORK.name}`, subjects, rounds)
}

async function load(server: Server, { rw, size, depth }: Work, seconds: number): Promise<Sample> {
  const [cpuBefore, collectionsBefore] = [cpuSeconds(server.pid), server.collections?.()]
  const args = `--name=q --ioengine=nbd --rw=${rw} --bs=${size} --iodepth=${depth} --time_based --norandommap --runtime=${seconds}`
  const { iops, p99Us } = fio([...args.split(' '), `--uri=${server.uri}`], CLIENT_CPU)
  const count = iops * seconds
  const cpuUsPerIo = ((cpuSeconds(server.pid) - cpuBefore) * 1e6) / count
  if (collectionsBefore === undefined) return { iops, p99Us, cpuUsPerIo }
  // What the daemon has printed meanwhile is read.
  await delay(100)
  const collectionsPerMillion = ((server.collections!() - collectionsBefore) * 1e6) / count
  return { iops, p99Us, cpuUsPerIo, collectionsPerMillion }
}

function ours(directory: string): Party {
  let count = 0
  return {
    name: 'qpair',
    async serve(filename) {
      const name = `q${++count}`
      const socket = join(directory, `${name}.nbd`)
      const daemon = await Daemon.start(directory, name, ['-m', `0x${(1 << SERVER_CPU).toString(16)}`])
      await daemon.call('bdev_qcow2_create', { name, filename })
      await daemon.call('nbd_export_start', { bdev_name: name, name, unix: socket })
      return {
        pid: daemon.program.pid,
        uri: `nbd+unix:///${name}?socket=${socket}`,
        collections: () => daemon.collections,
        stop: () => daemon.stop(),
      }
    },
  }
}

function qemu(directory: string, aio: 'io_uring' | 'threads'): Party {
  let count = 0
  return {
    name: `qemu-storage-daemon (${aio})`,
    async serve(filename) {
      const socket = join(directory, `${aio}-${++count}.nbd`)
      const args = [
        `--blockdev driver=file,node-name=file,filename=${filename},aio=${aio}`,
        '--blockdev driver=qcow2,node-name=image,file=file',
        `--nbd-server addr.type=unix,addr.path=${socket}`,
        '--export type=nbd,id=e,node-name=image,name=image,writable=on',
      ].flatMap(text => text.split(' '))
      const program = new Program('qemu-storage-daemon', args, SERVER_CPU)
      await program.until(() => existsSync(socket))
      return { pid: program.pid, uri: `nbd+unix:///image?socket=${socket}`, stop: () => program.stop() }
    },
  }
}
