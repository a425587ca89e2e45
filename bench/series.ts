/** Measurements taken in turn, A B A B, so that a machine that changes its speed changes it for both. */

export interface Sample {
  readonly iops: number
  /** Not of a subject that tells its rate alone. */
  readonly p99Us?: number
  readonly p999Us?: number
  /** Garbage collections for each million I/Os, where the subject is a JavaScript program. */
  readonly collectionsPerMillion?: number
  /** Processor time of the subject's process with all its threads. */
  readonly cpuUsPerIo?: number
}

export interface Subject {
  readonly name: string
  measure(): Promise<Sample>
}

export interface Row {
  readonly work: string
  readonly subject: string
  /** Medians over the rounds. */
  readonly iops: number
  readonly p99Us: number | null
  readonly p999Us: number | null
  readonly collectionsPerMillion: number | null
  readonly cpuUsPerIo?: number | null
  readonly rounds: number
  /** Of the first subject's IOPS to this one's, round by round: the median. 1 for the first itself. */
  readonly firstToThis: number
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** Measures every subject in each of `rounds` rounds. The first subject is the one in question. */
export async function compare(work: string, subjects: readonly Subject[], rounds: number): Promise<Row[]> {
  const samples = subjects.map((): Sample[] => [])
  for (let round = 0; round < rounds; round++) {
    for (const [index, subject] of subjects.entries()) samples[index]!.push(await subject.measure())
  }
  const first = samples[0]!
  const rows = subjects.map(({ name }, index): Row => {
    const own = samples[index]!
    const optional = (of: (sample: Sample) => number | undefined): number | null => {
      const values = own.map(of).filter(value => value !== undefined)
      return values.length === 0 ? null : median(values)
    }
    return {
      work,
      subject: name,
      iops: median(own.map(({ iops }) => iops)),
      p99Us: optional(({ p99Us }) => p99Us),
      p999Us: optional(({ p999Us }) => p999Us),
      collectionsPerMillion: optional(({ collectionsPerMillion }) => collectionsPerMillion),
      cpuUsPerIo: optional(({ cpuUsPerIo }) => cpuUsPerIo),
      rounds,
      firstToThis: median(own.map(({ iops }, round) => first[round]!.iops / iops)),
    }
  })
  for (const row of rows) print(row)
  return rows
}

function print(row: Row): void {
  const ratio = row.firstToThis === 1 ? '' : `  first is ${row.firstToThis.toFixed(2)} x this`
  const cpu = typeof row.cpuUsPerIo === 'number' ? `  CPU ${row.cpuUsPerIo.toFixed(0)} us an I/O` : ''
  const p99 = row.p99Us === null ? '' : `  p99 ${row.p99Us.toFixed(0).padStart(6)} us`
  console.log(
    `${row.work.padEnd(44)} ${row.subject.padEnd(24)} ${Math.round(row.iops).toLocaleString('en').padStart(10)} IOPS` +
      `${p99}${cpu}${ratio}`,
  )
}
