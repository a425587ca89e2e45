/** The page about the results, from the results. */
import type { Failover } from './failover.ts'
import type { Footprint } from './footprint.ts'
import type { Row } from './series.ts'

export interface Results {
  readonly date: string
  readonly machine: string
  readonly seconds: number
  readonly rows: readonly Row[]
  /** Of one processor: a daemon with ten vhost-user front ends that do nothing. */
  readonly vhostIdleCpuPercent: number | null
  readonly failover: Failover | null
  readonly footprint: Footprint | null
}

export function renderPage(results: Results): string {
  const { date, machine, seconds, rows, failover, footprint, vhostIdleCpuPercent } = results
  const table = rows.map(row => {
    const cells = [
      row.work,
      row.subject,
      Math.round(row.iops).toLocaleString('en'),
      row.p99Us === null ? '' : row.p99Us.toFixed(0),
      row.p999Us === null ? '' : row.p999Us.toFixed(0),
      row.collectionsPerMillion === null ? '' : row.collectionsPerMillion.toFixed(2),
      typeof row.cpuUsPerIo === 'number' ? row.cpuUsPerIo.toFixed(0) : '',
      row.subject === 'qpair' ? '' : row.firstToThis.toFixed(2),
    ]
    return `| ${cells.join(' | ')} |`
  })
  return `# Benchmarks

<!-- Written by \`npm run bench\`: edit bench/page.ts, not this page. -->

Run on ${date}: ${machine}. Each figure is the median of ${rows[0]?.rounds ?? 0} rounds of ${seconds} s, the subjects of
one work taken in turn (A B A B) in the same minutes. The machine is shared and its speed changes, so **compare rows of
one work with each other, and ratios rather than figures**; do not compare works, or runs on different days.

| work | subject | IOPS | p99 µs | p99.9 µs | collections per million I/O | processor µs per I/O | qpair is so many times this |
|---|---|---:|---:|---:|---:|---:|---:|
${table.join('\n')}

- **NVMe/TCP.** One reactor on one processor serves a memory namespace over loopback; the load is qpair's own NVMe/TCP
  host on another processor, the same for both subjects, so what the host can drive bounds both. The *C loop* is
  \`bench/floor/nvme-tcp-floor.c\`: the least that any single-threaded program must do, without a block layer, checks or
  statistics. Latencies are the load's, to the length of one of its polling rounds.
- **File.** The file driver under the daemon's own workload, beside fio's io_uring engine on the same page-cached file.
- **NBD.** fio's NBD engine drives all servers over a Unix socket. QEMU's storage daemon serves its null device, which
  moves no data, since it has no memory device; nbdkit serves its memory plugin.
- **qcow2.** Copies of one image in the page cache, behind NBD, with fio as the client: ours, and QEMU's storage daemon with
  its two ways of file I/O. *New clusters*: each measurement begins with an empty image. The processor time per I/O is that of
  the whole server process.
- **vhost-user-blk.** One queue of one reactor on one processor, one front end on another: a small program in JavaScript
  (\`bench/vhost-front-end.ts\`) that does for all subjects what a guest's driver does, with indirect descriptors and the
  event index, and polls for what is used. Places are random, and each request in flight has a buffer of its own. QEMU's
  storage daemon serves its null device with \`read-zeroes=on\`, so that it fills the guest's buffers as ours does. It has no
  memory device: a file on tmpfs stands beside ours. Its file I/O is by io_uring or by threads, whichever was faster in this
  run; everything of it runs on the one processor that our reactor has. *Remote* is a namespace of another daemon on a
  third processor over two NVMe/TCP paths; beside it the same device under a load inside the daemon. *Both sides sleep*: no
  queue is polled, and each side is woken by an eventfd. Where the limit lies: over memory in copying 4 KiB that no cache
  holds (about half of the processor), over a file in the kernel's read, over null in the cache lines that travel between
  the two processors with each request; when these happen to share a cache, QEMU gains more from it than we do.
- **RBD.** One monitor and one OSD on a sparse file, on the same processors as everything else, so what a client takes
  of them the OSD lacks. Each subject has an image of its own in the same pool, written to the last block, and the
  same \`ceph.conf\` with \`rbd cache = false\`, so that librbd has the same threads and keeps nothing back. *fio*
  calls librbd from its own process: what no client that uses librbd can do much better. *rbd bench* is Ceph's own
  load; it tells its rate alone, and writes one buffer again and again, whose checksum Ceph's client remembers. *RBD*
  is the daemon's workload on its device, the driver and a reactor without a front end; *RBD, vhost-user-blk* is the
  way of a guest, with a front end in a process of its own, and both sides sleep. The **processor time per I/O** is
  that of all threads of the process, librbd's included, which are most of it; behind vhost-user that of both
  processes. Each measurement follows a second of the same work, in which fio connects and opens its image and
  JavaScript is compiled. At depth 1 an I/O takes hundreds of microseconds and every thread sleeps in between: the
  time includes their wake-ups.
- **Collections** are those of all threads of the daemon (\`--trace-gc\`).

## Failover

${
  failover === null
    ? ''
    : `A gateway is killed with SIGKILL under a mixed load of depth 32 over two paths. The longest time in which no I/O completed,
median of ${failover.rounds} rounds: **${failover.pauseMs.toFixed(1)} ms**; the worst: ${failover.worstMs.toFixed(1)} ms. No I/O failed. This is a socket that the
kernel closes; a path that goes silent is found by keep alive, within its time-out.`
}

## At rest

${
  footprint === null
    ? ''
    : `| what | figure |
|---|---:|
| start of the process to the end of the first read over NVMe/TCP | ${footprint.startToFirstIoMs.toFixed(0)} ms |
| resident memory with one export | ${footprint.residentMiBOneExport.toFixed(0)} MiB |
| resident memory with ten exports and a hundred connections | ${footprint.residentMiBHundredConnections.toFixed(0)} MiB |
| processor time with ten exports and a hundred connections, all idle | ${footprint.idleCpuPercent.toFixed(2)} % of one |
| processor time with ten vhost-user front ends, all idle | ${vhostIdleCpuPercent?.toFixed(2) ?? '–'} % of one |`
}
`
}
