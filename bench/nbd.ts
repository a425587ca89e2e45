/** The NBD export beside QEMU's storage daemon and nbdkit, with fio as the client of all. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Daemon, fio, hasProgram, Program } from './process.ts'
import { compare, type Row, type Subject } from './series.ts'

const MEBIBYTES = 256
const SERVER_CPU = 1
const CLIENT_CPU = 2

export async function benchNbd(directory: string, seconds: number, rounds: number): Promise<Row[]> {
  if (!hasProgram('fio')) {
    console.log('no fio: the NBD rows are left out')
    return []
  }
  const daemon = await Daemon.start(directory, 'nbd', ['-m', `0x${(1 << SERVER_CPU).toString(16)}`])
  const peers: Program[] = []
  try {
    const ours = join(directory, 'ours.nbd')
    await daemon.call('bdev_malloc_create', { name: 'memory', num_blocks: MEBIBYTES * 2048, block_size: 512 })
    await daemon.call('nbd_export_start', { bdev_name: 'memory', name: 'memory', unix: ours })
    const servers: { name: string; uri: string }[] = [
      { name: 'qpair', uri: `nbd+unix:///memory?socket=${ours}` },
    ]
    for (const peer of [storageDaemon(directory), nbdkit(directory)]) {
      if (peer === undefined) continue
      peers.push(peer.program)
      await peer.program.until(() => existsSync(peer.socket))
      servers.push(peer)
    }
    const rows: Row[] = []
    for (const rw of ['randread', 'randwrite']) {
      for (const depth of [1, 32]) {
        const subjects = servers.map(({ name, uri }): Subject => {
          const args = `--name=n --ioengine=nbd --rw=${rw} --bs=4k --iodepth=${depth} --time_based --norandommap --runtime=${seconds}`
          return { name, measure: async () => fio([...args.split(' '), `--uri=${uri}`], CLIENT_CPU) }
        })
        const what = rw === 'randread' ? 'read' : 'write'
        rows.push(...(await compare(`NBD, memory, 4 KiB random ${what}, depth ${depth}`, subjects, rounds)))
      }
    }
    return rows
  } finally {
    await daemon.stop()
    for (const peer of peers) await peer.stop('SIGKILL')
  }
}

interface Peer {
  readonly name: string
  readonly program: Program
  readonly socket: string
  readonly uri: string
}

/** QEMU has no memory device that keeps what is written: its null device does less than ours, and so flatters it. */
function storageDaemon(directory: string): Peer | undefined {
  if (!hasProgram('qemu-storage-daemon')) return undefined
  const socket = join(directory, 'qsd.nbd')
  const args = [
    `--blockdev driver=null-co,node-name=memory,size=${MEBIBYTES << 20},read-zeroes=on`,
    `--nbd-server addr.type=unix,addr.path=${socket}`,
    '--export type=nbd,id=e,node-name=memory,name=memory,writable=on',
  ].flatMap(text => text.split(' '))
  const program = new Program('qemu-storage-daemon', args, SERVER_CPU)
  return { name: 'qemu-storage-daemon (null)', program, socket, uri: `nbd+unix:///memory?socket=${socket}` }
}

function nbdkit(directory: string): Peer | undefined {
  if (!hasProgram('nbdkit')) return undefined
  const socket = join(directory, 'nbdkit.nbd')
  const args = ['-f', '-U', socket, '-e', 'memory', 'memory', `${MEBIBYTES}M`]
  const program = new Program('nbdkit', args, SERVER_CPU)
  return { name: 'nbdkit (memory)', program, socket, uri: `nbd+unix:///memory?socket=${socket}` }
}
