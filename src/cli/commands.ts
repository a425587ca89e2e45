/**
 * Commands derived from method names: the first word is the noun, the rest the verb, with dashes:
 * `bdev_nvme_attach_controller` is `qpair bdev nvme-attach-controller`. Declared shorter names come beside it.
 */
import type { AnyMethod, Declarations } from '../rpc/method.ts'

export type Declared = AnyMethod<never>

export interface Command {
  /** One word, or noun and verb. */
  readonly words: readonly string[]
  readonly method: Declared
}

/** What each noun is about, in the order of the overview. Nouns not listed here follow by name. */
export const NOUNS: Readonly<Record<string, string>> = {
  bdev: 'block devices',
  subsystem: 'what hosts connect to, and the devices in it',
  namespace: 'a device in a subsystem',
  listener: 'an address where a subsystem is found, and its ANA state',
  host: 'who may connect to subsystems; validate: whether this machine can run guests',
  nvmf: 'everything about the NVMe-oF target',
  gateway: 'groups of gateways over one Ceph cluster',
  nvme: 'disks of other targets, with multipath',
  rbd: 'images of Ceph clusters: opening, snapshots, clones, their cache explained',
  vhost: 'disks for guests, over vhost-user',
  virtio: 'disks of other processes, over vhost-user',
  nbd: 'export over NBD',
  pool: 'storage that has volumes: directories, file systems, volume groups, Ceph pools',
  volume: 'disks in pools: making, copying, snapshots, export',
  secret: 'what pools prove with who they are: keys of Ceph, passwords of iSCSI',
  vm: 'guests, of libvirt and without: running them, their disks, what they are made of',
  net: 'networks that guests can have',
  job: 'what takes long, and how far it is',
  workload: 'load for measurements',
  framework: 'the daemon itself',
  config: 'saved calls that failed at start',
  log: 'what the daemon logs',
  notify: 'events',
  thread: 'reactors and their load',
  spdk: 'version, signals',
}

/** Every name of a method's command, the shortest first. */
export function commandsOf(method: Declared): Command[] {
  const derived = method.name.replace('.', '_').split('_')
  const noun = derived[0]!
  const verb = derived.slice(1).join('-')
  const names = [...(method.cli.commands ?? []).map(command => command.split(' '))]
  // `qpair rpc` is the other way to call methods, so methods about methods need names of their own.
  if (noun !== 'rpc') names.push(verb === '' ? [noun] : [noun, verb])
  return names.map(words => ({ words, method }))
}

export const allCommands = (methods: Declarations): Command[] => methods.flatMap(commandsOf)

/** Nouns that have verbs, in the order of the overview. */
export function nounsOf(methods: Declarations): string[] {
  const nouns = new Set(allCommands(methods).flatMap(({ words }) => (words.length > 1 ? [words[0]!] : [])))
  const listed = Object.keys(NOUNS)
  const rank = (noun: string): number => (listed.includes(noun) ? listed.indexOf(noun) : listed.length)
  return [...nouns].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b))
}

/** The commands of one noun, each method once, by the shortest name. */
export function commandsOfNoun(methods: Declarations, noun: string): Command[] {
  return methods.flatMap(
    method => commandsOf(method).find(({ words }) => words.length > 1 && words[0] === noun) ?? [],
  )
}

/** Commands of a single word, such as `qpair version`. */
export const singleCommands = (methods: Declarations): Command[] =>
  allCommands(methods).filter(({ words }) => words.length === 1)

export function findCommand(methods: Declarations, words: readonly string[]): Command | undefined {
  return allCommands(methods).find(command => command.words.join(' ') === words.join(' '))
}

/** Words of a verb are joined by dashes or typed as they are: `rbd snapshot-create` and `rbd snapshot create`. */
const VERB_WORDS_MAX = 3

export interface Typed {
  readonly command: Command
  /** The words behind it. */
  readonly behind: readonly string[]
}

/** The command that begins with these words, the longest one. */
export function findTyped(table: Declarations, noun: string, args: readonly string[]): Typed | undefined {
  for (let count = Math.min(args.length, VERB_WORDS_MAX); count > 0; count--) {
    const command = findCommand(table, [noun, args.slice(0, count).join('-')])
    if (command !== undefined) return { command, behind: args.slice(count) }
  }
  const command = findCommand(table, [noun])
  return command && { command, behind: args }
}

/** A method by its name or one of its older names. */
export function findMethod(methods: Declarations, name: string): Declared | undefined {
  return methods.find(method => method.name === name || method.aliases.includes(name))
}
