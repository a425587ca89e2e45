/**
 * `iscsi`: a target that the kernel's initiator is logged in to; its units are the volumes, which the target's owner makes.
 *
 * Pools log in through interface records of open-iscsi that are ours (`iscsiadm -m iface`), one for each initiator name, so that
 * several can log in as different initiators. By its interface a session tells that it is a pool's and not an administrator's,
 * also after the daemon's own restart. The interface stays when a pool stops: another pool of the same initiator may have it.
 */
import { createHash } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import { ProgramError } from '../../core/program.ts'
import type { PoolDocument } from '../../libvirt/pool-xml.ts'
import { fullOf, settleDevices } from '../block-devices.ts'
import { fileOpening } from '../file-volumes.ts'
import { recordPassword } from '../iscsi-records.ts'
import { credentialsOf, type IscsiTarget, targetOf } from '../iscsi-target.ts'
import { refuseUsedByHost } from '../kernel-use.ts'
import type { PoolBackend, PoolBackendType, PoolContents, PoolServices } from '../pool.ts'
import { hasAllDisks, type IscsiSession, iscsiSessions, scsiUnits, unitVolumes } from '../scsi-units.ts'
import { runTool, type ToolOptions } from '../tools.ts'
import { DeviceVolumes } from './device-volumes.ts'

const log = logger('volume')

export const iscsiPool: PoolBackendType = {
  type: 'iscsi',
  summary: "A target of an iSCSI server, by the kernel's initiator; its units are the volumes.",
  create: (document, services) => new IscsiPool(document, services),
}

/** A server that does not answer is told after this time. */
const LOGIN_TIMEOUT_MS = 130_000
/** How long the kernel has to look at the disks of a target. */
const DISK_LOOKS = 50
const DISK_LOOK_MS = 100
/** Of iscsiadm(8). */
const SESSION_EXISTS = 15

/** What `interfaceFor` answers. */
const OF_POOLS = /^qpair(-[0-9a-f]{8})?$/

/** How the interface record of pools is called that log in as this initiator; undefined: as the machine's own. */
function interfaceFor(initiator: string | undefined): string {
  if (initiator === undefined) return 'qpair'
  const digest = createHash('sha256').update(initiator).digest('hex')
  return `qpair-${digest.slice(0, 8)}`
}

class IscsiPool implements PoolBackend {
  readonly volumes = new DeviceVolumes('they are made where the target is')
  readonly opening = fileOpening
  readonly #document: PoolDocument
  readonly #secrets: PoolServices['secrets']
  readonly #target: IscsiTarget
  /** The record of its interface. */
  readonly #interface: string

  constructor(document: PoolDocument, { secrets }: PoolServices) {
    this.#document = document
    this.#secrets = secrets
    this.#target = targetOf(document)
    this.#interface = interfaceFor(this.#target.initiator)
  }

  async isStarted(): Promise<boolean> {
    return (await this.#session()) !== undefined
  }

  async start(): Promise<void> {
    if (await this.isStarted()) return
    const { portal } = this.#target
    await this.#makeInterface()
    const discovered = ['-m', 'discovery', '-t', 'sendtargets', '-p', portal, ...this.#ofInterface()]
    await this.#run('ask for its targets', [...discovered, '-o', 'new'])
    await this.#keepFromBoot()
    await this.#authenticate()
    try {
      await this.#run('log in', [...this.#node(), '--login'], { timeoutMs: LOGIN_TIMEOUT_MS })
    } catch (error) {
      const { cause } = error as Error
      if (!(cause instanceof ProgramError && cause.exitCode === SESSION_EXISTS)) throw error
    }
    await this.#awaitDisks()
  }

  /** Disks that the kernel cannot read keep nobody waiting for long. */
  async #awaitDisks(): Promise<void> {
    const session = await this.#session()
    for (let looks = 0; session !== undefined && looks < DISK_LOOKS; looks++) {
      if (await hasAllDisks(session.host)) break
      await delay(DISK_LOOK_MS)
    }
    await settleDevices()
  }

  async stop(): Promise<void> {
    const session = await this.#session()
    if (session === undefined) return
    const { name } = this.#document
    const target = this.#target.name
    if (session.interface !== this.#interface) {
      log.notice(
        `pool ${name}: somebody else has logged in to ${target} (interface ${session.interface}), which stays so: ` +
          `iscsiadm -m node -T ${target} --logout ends it`,
      )
      return
    }
    for (const { device } of await scsiUnits(session.host)) {
      // They would be taken away from under it.
      await refuseUsedByHost(`pool ${name} cannot be stopped`, `/dev/${device}`)
    }
    await this.#run('log out', [...this.#node(), '--logout'], {
      remedy: said => (/busy|in use/.test(said) ? 'Somebody has a unit open: lsblk says which' : undefined),
    })
    await this.#run('forget its record', [...this.#node(), '-o', 'delete'])
  }

  async refresh(): Promise<PoolContents> {
    const session = await this.#session()
    if (session === undefined) {
      throw new RpcError(
        'ENOTCONN',
        `pool ${this.#document.name} is logged out of ${this.#target.name}: stop it and start it again`,
      )
    }
    return fullOf(await unitVolumes(session.host, this.#document.target!.path))
  }

  /** Its own, or else one that an administrator has logged in to. What other pools have is what other initiators see. */
  async #session(): Promise<IscsiSession | undefined> {
    const { name, initiator } = this.#target
    const sessions = (await iscsiSessions()).filter(({ target }) => target === name)
    return (
      sessions.find(each => each.interface === this.#interface) ??
      sessions.find(
        each => !OF_POOLS.test(each.interface) && (initiator === undefined || each.initiator === initiator),
      )
    )
  }

  async #makeInterface(): Promise<void> {
    const name = this.#interface
    const { initiator } = this.#target
    const record = ['-m', 'iface', '-I', name]
    const said = await runTool(`pool ${this.#document.name}`, 'iscsiadm', ['-m', 'iface'])
    if (!said.split('\n').some(line => line.startsWith(`${name} `))) {
      await this.#run('make its interface', [...record, '-o', 'new'])
    }
    if (initiator === undefined) return
    const set = [...record, '-o', 'update', '-n', 'iface.initiatorname', '-v', initiator]
    await this.#run('set its initiator', set)
  }

  /** Of what has been found, other targets of that server too: where the usual is to log in, the machine would at its start. */
  async #keepFromBoot(): Promise<void> {
    const update = ['-o', 'update', '-n', 'node.startup', '-v', 'manual']
    await this.#run('set node.startup', ['-m', 'node', ...this.#ofInterface(), ...update])
  }

  async #authenticate(): Promise<void> {
    const credentials = await credentialsOf(this.#document, this.#secrets)
    if (credentials === undefined) return
    await this.#set('node.session.auth.authmethod', 'CHAP')
    await this.#set('node.session.auth.username', credentials.user)
    const shown = await this.#run('read its record', this.#node())
    await recordPassword(this.#target.name, shown, credentials.password)
  }

  async #set(name: string, value: string): Promise<void> {
    await this.#run(`set ${name}`, [...this.#node(), '-o', 'update', '-n', name, '-v', value])
  }

  #node(): string[] {
    return ['-m', 'node', '-T', this.#target.name, '-p', this.#target.portal, ...this.#ofInterface()]
  }

  #ofInterface(): string[] {
    return ['-I', this.#interface]
  }

  #run(doing: string, args: readonly string[], options?: ToolOptions): Promise<string> {
    return runTool(
      `pool ${this.#document.name} cannot ${doing} (${this.#target.name} at ${this.#target.portal})`,
      'iscsiadm',
      args,
      {
        ...options,
        remedy: said => options?.remedy?.(said) ?? remedyOf(said),
      },
    )
  }
}

function remedyOf(said: string): string | undefined {
  if (/iscsid is not running|can ?not connect to iSCSI daemon|Could not connect to iscsid/i.test(said)) {
    return 'systemctl start iscsid'
  }
  if (/authorization failure|initiator reported error \(24/.test(said)) {
    return 'The target does not let this initiator in: compare <initiator> and <auth> with what is set there'
  }
  if (/cannot make connection|connection (?:login )?(?:timed out|refused)/i.test(said)) {
    return 'Does the server listen at that address?'
  }
  return undefined
}
