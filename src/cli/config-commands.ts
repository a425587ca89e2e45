/** The four commands about whole configurations, which SPDK's clients have beside the methods, with the same flags. */

import {
  loadConfig,
  loadSubsystemConfig,
  readConfig,
  saveConfig,
  saveSubsystemConfig,
} from './config-file.ts'
import { describe, spellings } from './help.ts'
import type { CliOption, CommandLine } from './options.ts'
import { align, type Terminal, toJson, writeHelp } from './output.ts'
import { parseArgs } from './parse-args.ts'
import { type Connection, withClient } from './session.ts'

const option = (
  path: string,
  kind: CliOption['kind'],
  letter: string,
  summary: string,
  required = false,
): CliOption => ({
  path,
  kind,
  summary,
  required,
  choices: [],
  default: undefined,
  numbers: false,
  texts: false,
  on: [letter, path.replaceAll('_', '-')],
  off: [],
  computed: undefined,
  dropped: false,
  unlisted: false,
})

const INDENT = option('indent', 'number', 'i', 'Spaces of each level; negative: all on one line (default 2)')
const SOURCE = option('json_conf', 'text', 'j', 'A file, or the JSON itself; standard input when absent')

const line = (...options: CliOption[]): CommandLine => ({
  positional: options.includes(SOURCE) ? [SOURCE] : [],
  options,
})

export const CONFIG_COMMANDS: ReadonlyMap<string, CommandLine> = new Map([
  ['save_config', line(INDENT, option('subsystems', 'list', 's', 'Only these, and what they depend on'))],
  [
    'load_config',
    line(SOURCE, option('include_aliases', 'switch', 'i', 'The file may call methods by older names')),
  ],
  ['save_subsystem_config', line(INDENT, option('name', 'text', 'n', 'The subsystem', true))],
  ['load_subsystem_config', line(SOURCE)],
])

interface Given {
  readonly indent?: number
  readonly subsystems?: string[]
  readonly name?: string
  readonly json_conf?: string
  readonly include_aliases?: boolean
}

export async function runConfigCommand(
  terminal: Terminal,
  connection: Connection,
  command: string,
  args: readonly string[],
): Promise<void> {
  const commandLine = CONFIG_COMMANDS.get(command)!
  if (args.includes('--help') || args.includes('-h')) {
    writeHelp(terminal, configHelp(command, commandLine))
    return
  }
  const given: Given = parseArgs(commandLine, args)
  if (command.startsWith('save')) {
    const saved = await withClient<unknown>(connection, client =>
      command === 'save_config'
        ? saveConfig(client, given.subsystems)
        : saveSubsystemConfig(client, given.name!),
    )
    const indent = given.indent ?? 2
    terminal.write(toJson(saved, Math.max(indent, 0)))
    return
  }
  const file = await readConfig(given.json_conf, terminal.readStdin)
  const skipped = await withClient(connection, client =>
    command === 'load_config'
      ? loadConfig(client, file, given.include_aliases)
      : loadSubsystemConfig(client, file),
  )
  if (skipped > 0) {
    terminal.writeError(
      `qpair: ${skipped} entries were skipped: the daemon does not take them in the state it is in\n`,
    )
  }
}

export function configHelp(command: string, { options }: CommandLine): string {
  const rows = align(options.map(each => [spellings(each), describe(each)]))
  return `Usage: qpair ${command} [OPTIONS]\n\nOptions\n${rows.map(row => `  ${row}\n`).join('')}`
}
