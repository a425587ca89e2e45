/** The file driver beside fio's io_uring engine on the same page-cached file. */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { runWorkload } from './nvme-tcp.ts'
import { Daemon, fio, hasProgram } from './process.ts'
import { compare, type Row, type Subject } from './series.ts'

const MEBIBYTES = 512
const CPU = 1

export async function benchFile(directory: string, seconds: number, rounds: number): Promise<Row[]> {
  const image = join(directory, 'file.img')
  writeWhole(image, MEBIBYTES)
  const daemon = await Daemon.start(directory, 'file', ['-m', `0x${(1 << CPU).toString(16)}`])
  try {
    await daemon.call('bdev_uring_create', { name: 'file', filename: image, block_size: 512 })
    const rows: Row[] = []
    for (const depth of [1, 32, 128]) {
      const ours: Subject = {
        name: 'qpair',
        async measure() {
          const work = { ioSize: 4096, depth, readPercent: 100 }
          const { iops, latency_us } = await runWorkload(daemon, 'file', work, seconds)
          return { iops, p99Us: latency_us.p99, p999Us: latency_us.p999 }
        },
      }
      const peer: Subject = {
        name: 'fio io_uring',
        measure: async () =>
          fio(
            [
              `--name=f --filename=${image} --rw=randread --bs=4k --iodepth=${depth} --ioengine=io_uring`,
              `--runtime=${seconds} --time_based --norandommap --direct=0 --invalidate=0`,
            ].flatMap(text => text.split(' ')),
            CPU,
          ),
      }
      const subjects = hasProgram('fio') ? [ours, peer] : [ours]
      rows.push(...(await compare(`page-cached file, 4 KiB random read, depth ${depth}`, subjects, rounds)))
    }
    return rows
  } finally {
    await daemon.stop()
  }
}

/** A file without holes, all of it in the page cache. */
export function writeWhole(path: string, mebibytes: number): void {
  const file = openSync(path, 'w')
  const chunk = Buffer.alloc(1 << 20, 0x5a)
  for (let i = 0; i < mebibytes; i++) writeSync(file, chunk)
  ftruncateSync(file, mebibytes << 20)
  closeSync(file)
}
