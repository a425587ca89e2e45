/**
 * `npm run bench [-- --seconds N] [--rounds N] [--only nvme-tcp,file,nbd,qcow2,vhost,rbd,failover,footprint] [--merge]`
 *
 * Everything is measured in turn with what it is compared to, and medians are kept: ratios are what counts, since the
 * machine's own speed changes from minute to minute. A complete run writes `bench/results/latest.json` and
 * `docs/benchmarks.md`; one of some groups does with `--merge`, and leaves the other groups as they are published.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, release, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { benchFailover } from './failover.ts'
import { benchFile } from './file.ts'
import { benchFootprint } from './footprint.ts'
import { benchNbd } from './nbd.ts'
import { benchNvmeTcp } from './nvme-tcp.ts'
import { type Results, renderPage } from './page.ts'
import { ROOT } from './process.ts'
import { benchQcow2 } from './qcow2.ts'
import { benchRbd } from './rbd.ts'
import { benchVhost } from './vhost.ts'

const RESULTS = join(ROOT, 'bench/results/latest.json')
const PAGE = join(ROOT, 'docs/benchmarks.md')
const GROUPS = ['nvme-tcp', 'file', 'nbd', 'qcow2', 'vhost', 'rbd', 'failover', 'footprint'] as const

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '5' },
    only: { type: 'string', default: GROUPS.join(',') },
    merge: { type: 'boolean', default: false },
  },
})
const seconds = Number(values.seconds)
const rounds = Number(values.rounds)
const wanted = values.only.split(',')
const unknown = wanted.find(group => !GROUPS.some(known => known === group))
if (!(seconds > 0 && rounds >= 1) || unknown !== undefined) {
  console.error(`${unknown ?? 'the arguments'}: --seconds N --rounds N --only ${GROUPS.join(',')}`)
  process.exit(2)
}
const isComplete = wanted.length === GROUPS.length
const published: Results | null =
  values.merge && !isComplete ? JSON.parse(readFileSync(RESULTS, 'utf8')) : null
if (published !== null && published.seconds !== seconds) {
  console.error(
    `the published rows are of ${published.seconds} s each: give --seconds ${published.seconds} to merge with them`,
  )
  process.exit(2)
}

const directory = mkdtempSync(join(tmpdir(), 'qpair-bench-'))
try {
  const has = (group: (typeof GROUPS)[number]): boolean => wanted.includes(group)
  const vhost = has('vhost') ? await benchVhost(directory, seconds, rounds) : null
  const results: Results = {
    date: new Date().toISOString().slice(0, 10),
    machine: `${cpus().length} x ${cpus()[0]!.model}, Linux ${release()}, Node ${process.version}`,
    seconds,
    rows: [
      ...(has('nvme-tcp') ? await benchNvmeTcp(directory, seconds, rounds) : []),
      ...(has('file') ? await benchFile(directory, seconds, rounds) : []),
      ...(has('nbd') ? await benchNbd(directory, seconds, rounds) : []),
      ...(has('qcow2') ? await benchQcow2(directory, seconds, rounds) : []),
      ...(vhost?.rows ?? []),
      ...(has('rbd') ? await benchRbd(directory, seconds, rounds) : []),
    ],
    vhostIdleCpuPercent: vhost?.idleCpuPercent ?? null,
    failover: has('failover') ? await benchFailover(directory, rounds) : null,
    footprint: has('footprint') ? await benchFootprint(directory) : null,
  }
  const { failover, footprint, vhostIdleCpuPercent } = results
  console.log(JSON.stringify({ failover, footprint, vhostIdleCpuPercent }, null, 2))
  if (isComplete || published !== null) {
    const all = published === null ? results : merge(published, results)
    mkdirSync(join(ROOT, 'bench/results'), { recursive: true })
    writeFileSync(RESULTS, `${JSON.stringify(all, null, 2)}\n`)
    writeFileSync(PAGE, renderPage(all))
    console.log(`written: ${RESULTS} and ${PAGE}`)
  }
} finally {
  rmSync(directory, { recursive: true })
}

/** What is new replaces what it measures again. */
function merge(old: Results, fresh: Results): Results {
  const isKept = ({ work }: Results['rows'][number]): boolean => !fresh.rows.some(row => row.work === work)
  return {
    ...old,
    rows: [...old.rows.filter(isKept), ...fresh.rows],
    vhostIdleCpuPercent: fresh.vhostIdleCpuPercent ?? old.vhostIdleCpuPercent,
    failover: fresh.failover ?? old.failover,
    footprint: fresh.footprint ?? old.footprint,
  }
}
