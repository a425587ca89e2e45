/**
 * Completion for bash, zsh and fish. The scripts only hand the words of the command line to `qpair complete`, so that
 * a new method is completed without a new script.
 */
import { SERVE_OPTIONS } from '../app/options.ts'
import { LAB_OPTIONS } from '../vm/lab/options.ts'
import { commandsOfNoun, findMethod, findTyped, nounsOf, singleCommands } from './commands.ts'
import { CONFIG_COMMANDS } from './config-commands.ts'
import { NO_WAIT, OWN_COMMANDS } from './help.ts'
import { findIn, type MethodLists } from './method-lists.ts'
import { type CommandLine, commandLine } from './options.ts'
import { UsageError } from './parse-args.ts'

const SCRIPTS: Readonly<Record<string, string>> = {
  bash: `_qpair() {
  local IFS=$'\\n'
  COMPREPLY=($(qpair complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
  [[ \${#COMPREPLY[@]} -gt 0 ]] || compopt -o default
}
complete -F _qpair qpair
`,
  zsh: `#compdef qpair
_qpair() {
  local -a candidates
  candidates=(\${(f)"$(qpair complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)"})
  if (( \${#candidates} )); then compadd -a candidates; else _files; fi
}
compdef _qpair qpair
`,
  fish: `function __qpair_complete
  set -l words (commandline -opc) (commandline -ct)
  qpair complete -- $words[2..-1] 2>/dev/null
end
complete -c qpair -f -a '(__qpair_complete)'
`,
}

export const COMPLETION_HELP = `Usage: qpair completion SHELL

Prints a completion script for bash, zsh or fish. It calls qpair, which must be in the PATH.

  bash  source <(qpair completion bash)       in ~/.bashrc
  zsh   source <(qpair completion zsh)        in ~/.zshrc, after compinit
  fish  qpair completion fish | source        in ~/.config/fish/config.fish
`

export function completionScript(shell: string | undefined): string {
  const script = SCRIPTS[shell ?? '']
  if (script !== undefined) return script
  const shells = Object.keys(SCRIPTS).join(', ')
  throw new UsageError(
    shell === undefined
      ? `say for which shell: ${shells}; see qpair completion --help`
      : `completion is for ${shells}, not ${shell}`,
  )
}

/** What may stand where the last of these words is being typed. */
export async function complete(methods: MethodLists, words: readonly string[]): Promise<string[]> {
  const typed = words.at(-1) ?? ''
  const all = await candidates(methods, afterGlobals(words.slice(0, -1)))
  return all.filter(candidate => candidate.startsWith(typed))
}

/** The words behind the options that stand before the command. */
function afterGlobals(words: readonly string[]): readonly string[] {
  const at = words.findIndex(
    (word, i) => !word.startsWith('-') && !GLOBALS_WITH_VALUE.includes(words[i - 1] ?? ''),
  )
  return at === -1 ? [] : words.slice(at)
}

const GLOBALS_WITH_VALUE = ['-r', '--rpc-socket', '--timeout']

/** The flags of commands that are no methods, which have no table of parameters. */
const OWN_FLAGS: Readonly<Record<string, readonly string[]>> = {
  serve: Object.keys(SERVE_OPTIONS).map(name => `--${name}`),
  demo: ['--seconds', '--help'],
  doctor: ['--json', '--help'],
  'host validate': ['--json', '--help'],
  'vm lab': Object.keys(LAB_OPTIONS).map(name => `--${name}`),
  'vm console': ['--help'],
}

async function candidates(methods: MethodLists, before: readonly string[]): Promise<string[]> {
  const [first, second] = before
  if (first === undefined) {
    const table = await methods.all()
    const own = OWN_COMMANDS.map(([usage]) => usage.split(' ')[0]!)
    return [...new Set([...own, ...singleCommands(table).map(({ words }) => words[0]!), ...nounsOf(table)])]
  }
  if (first === 'help') return candidates(methods, before.slice(1))
  if (first === 'completion') return Object.keys(SCRIPTS)
  const flags = OWN_FLAGS[first] ?? OWN_FLAGS[`${first} ${second}`]
  if (flags !== undefined) return [...flags]
  const config = CONFIG_COMMANDS.get(first)
  if (config !== undefined) return flagsAndValues(config, before)
  if (first === 'rpc') {
    if (second === undefined) {
      return [...(await methods.all()).map(({ name }) => name), ...CONFIG_COMMANDS.keys()]
    }
    const method = await findIn(methods, second, table => findMethod(table, second))
    return method === undefined ? [] : flagsAndValues(commandLine(method), before)
  }
  const typed = await findIn(methods, before.join('-'), table => findTyped(table, first, before.slice(1)))
  if (typed !== undefined) {
    const { method } = typed.command
    const found = flagsAndValues(commandLine(method), before)
    return method.cli.job === undefined ? found : [...found, NO_WAIT]
  }
  const verbs = commandsOfNoun(await methods.all(), first).map(({ words }) => words[1]!)
  if (second !== undefined) {
    // `volume snapshot` is the beginning of several, whose next word is missing.
    const begun = `${before.slice(1).join('-')}-`
    return verbs.flatMap(verb => (verb.startsWith(begun) ? [verb.slice(begun.length)] : []))
  }
  const own = OWN_COMMANDS.flatMap(([usage]) => (usage.startsWith(`${first} `) ? [usage.split(' ')[1]!] : []))
  return [...own, ...verbs]
}

/** The values that the flag before takes, if it takes one; else the flags. */
function flagsAndValues(line: CommandLine, before: readonly string[]): string[] {
  const last = before.at(-1)!.replace(/^--?/, '')
  const flag = before.at(-1)!.startsWith('-')
    ? line.options.find(({ on, kind }) => kind !== 'switch' && on.includes(last))
    : undefined
  if (flag !== undefined) return [...flag.choices]
  const shown = line.options.filter(({ unlisted }) => !unlisted)
  return shown.flatMap(({ on, off }) =>
    [...on, ...off].filter(name => name.length > 1).map(name => `--${name}`),
  )
}
