/** The command line of reports about this machine: `--json`, `--help`, exit codes. They need no daemon. */
import { parseArgs } from 'node:util'
import { foldLines } from '../core/fold-lines.ts'
import { type Finding, renderFindings } from './finding.ts'
import { Host } from './host.ts'

/** Prints the findings. The exit code: 0; 1 when one is a failure; 2 when the command line is wrong. */
export async function runReport(
  command: string,
  help: string,
  argv: readonly string[],
  find: (host: Host) => Promise<readonly Finding[]>,
): Promise<number> {
  const { stdout, stderr } = process
  let values: { readonly json?: boolean; readonly help?: boolean }
  try {
    const options = { json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } as const
    values = parseArgs({ args: [...argv], options }).values
  } catch (error) {
    stderr.write(`qpair ${command}: ${(error as Error).message}\n`)
    return 2
  }
  if (values.help === true) {
    stdout.write(foldLines(help, stdout.columns))
    return 0
  }
  const findings = await find(new Host())
  stdout.write(
    values.json === true
      ? `${JSON.stringify(findings, null, 2)}\n`
      : renderFindings(findings, { isTerminal: stdout.isTTY, columns: stdout.columns }),
  )
  return findings.some(({ level }) => level === 'fail') ? 1 : 0
}
