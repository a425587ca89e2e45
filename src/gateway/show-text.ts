/** `gateway show` on a terminal. */

interface ShownMember {
  readonly name: string
  readonly state: string
  readonly is_self: boolean
  readonly address: string
  readonly silent_ms: number
  readonly gone_since?: string | undefined
  readonly config_version: number
  readonly ana_groups: readonly { readonly nqn: string; readonly anagrpid: number }[]
  readonly unable: readonly string[]
}

interface Shown {
  readonly group: string
  readonly pool: string
  readonly cluster_name: string
  readonly name: string
  readonly state: string
  readonly problem: string
  readonly lease_ms: number
  readonly lease_left_ms: number
  readonly config_version: number
  readonly members: readonly ShownMember[]
}

const TITLES = ['MEMBER', 'STATE', 'ADDRESS', 'HEARD OF', 'SERVES']

/** What the members are, and under each what it cannot do; the ANA groups of a subsystem behind its name. */
export function showText(shown: Shown): string {
  const { group, pool, cluster_name, name, state, problem, lease_ms, lease_left_ms, config_version } = shown
  const lease = lease_ms === 0 ? '' : `, ${seconds(lease_left_ms)} left of its lease of ${seconds(lease_ms)}`
  const rows = [TITLES, ...shown.members.map(cellsOf)]
  const widths = TITLES.map((_, column) => Math.max(...rows.map(row => row[column]!.length)))
  const [head, ...lines] = rows.map(row =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  )
  return [
    `Group ${group}, in the pool ${pool} of cluster ${cluster_name}; configuration ${config_version}`,
    `This member, ${name}, is ${state}${lease}`,
    ...(problem === '' ? [] : [`Problem: ${problem}`]),
    ...(lines.length === 0 ? [] : ['', head!]),
    ...shown.members.flatMap((member, row) => [lines[row]!, ...notesOf(member, config_version)]),
  ]
    .map(line => `${line}\n`)
    .join('')
}

function cellsOf({ name, state, is_self, address, silent_ms, ana_groups }: ShownMember): string[] {
  const groups = new Map<string, number[]>()
  for (const { nqn, anagrpid } of ana_groups) groups.set(nqn, [...(groups.get(nqn) ?? []), anagrpid])
  const serves = [...groups].map(
    ([nqn, ids]) => `${nqn} (ANA group${ids.length === 1 ? '' : 's'} ${ids.join(', ')})`,
  )
  return [
    is_self ? `${name} (this)` : name,
    state,
    address,
    `${seconds(silent_ms)} ago`,
    serves.length === 0 ? '-' : serves.join('; '),
  ]
}

function notesOf({ config_version, gone_since, unable }: ShownMember, newest: number): string[] {
  return [
    ...(gone_since === undefined ? [] : [`  gone since ${gone_since}`]),
    ...(gone_since !== undefined || config_version >= newest
      ? []
      : [`  still has configuration ${config_version}`]),
    ...unable.map(what => `  cannot serve ${what}`),
  ]
}

const seconds = (ms: number): string =>
  ms < 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`
