/** `qpair vm console`: the serial port of a guest that qpair has started, on this terminal. */
import { RpcError, thereAre } from '../core/errors.ts'
import { attachConsole } from '../vm/console.ts'
import { type Terminal, writeHelp } from './output.ts'
import { UsageError } from './parse-args.ts'
import { type Connection, withClient } from './session.ts'

const HELP = `Usage: qpair vm console NAME

Puts the serial console of a guest that qpair has started (qpair vm run) on this terminal, which must be on the machine of the
daemon. What is typed goes to the guest, Ctrl-C too; Ctrl-] leaves it, and the guest goes on.
`

interface ListedGuest {
  readonly name: string
  readonly owner: string
  readonly console?: string
  readonly console_taken?: boolean
}

export async function runVmConsole(
  terminal: Terminal,
  connection: Connection,
  args: readonly string[],
): Promise<number> {
  if (args.includes('--help') || args.includes('-h')) {
    writeHelp(terminal, HELP)
    return 0
  }
  const [name, ...rest] = args
  if (name === undefined || rest.length > 0) {
    throw new UsageError('say which guest: qpair vm console NAME; qpair vm list shows them')
  }
  const guests = (await withClient(connection, client => client.request('vm_list'))) as ListedGuest[]
  const guest = guests.find(each => each.name === name)
  if (guest?.console === undefined) throw noConsole(name, guest, guests)
  if (guest.console_taken === true) {
    terminal.writeError(`Somebody else is at the console of ${name}: this one begins when that is left.\n`)
  }
  if (terminal.isTerminal) terminal.writeError(`The console of ${name}; Ctrl-] leaves it.\n`)
  const hasEnded = await attachConsole(guest.console, process.stdin, process.stdout)
  if (terminal.isTerminal) terminal.writeError(hasEnded ? `\nguest ${name} has ended\n` : '\n')
  return 0
}

function noConsole(name: string, guest: ListedGuest | undefined, guests: readonly ListedGuest[]): RpcError {
  if (guest !== undefined) {
    return new RpcError('EINVAL', `domain ${name} is libvirt's: virsh console ${name} is its console`)
  }
  const own = guests.filter(({ console }) => console !== undefined).map(each => each.name)
  return new RpcError('ENODEV', `there is no guest ${name} that qpair has started: ${thereAre(own)}`)
}
