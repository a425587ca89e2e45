/** libvirt through its own client: everything that changes a domain is asked of libvirt, which checks it. */
import { statSync } from 'node:fs'
import { RpcError } from '../core/errors.ts'
import { ProgramError, type ProgramOptions, runProgram } from '../core/program.ts'
import { DomainDocument } from './domain-xml.ts'
import { type NetworkDocument, parseNetwork } from './network-xml.ts'
import { attributeOf, elementAt, elementIn, elementsIn, parseXml, textOf } from './xml.ts'

export type RunProgram = (
  program: string,
  args: readonly string[],
  options?: ProgramOptions,
) => Promise<string>

/** Which of a domain's two documents: the one of the guest that runs, or the one of its next start. */
export interface Scope {
  readonly live: boolean
  readonly config: boolean
}

/** How the host confines QEMU (capabilities). */
export interface Confinement {
  /** `apparmor`, `selinux`, `dac`; empty where libvirt runs without rights of its own. */
  readonly models: readonly string[]
  /** As whom QEMU runs; undefined where libvirt does not say: as libvirt itself. */
  readonly user: { readonly uid: number; readonly gid: number } | undefined
  /** SELinux's label that guests' labels are made of; undefined without SELinux. */
  readonly selinuxLabel: string | undefined
}

export interface VirtualNetwork {
  readonly document: NetworkDocument
  readonly isActive: boolean
  /** Whether it starts with libvirt. */
  readonly isAutostart: boolean
}

/** A storage pool as libvirt has it. */
export interface LibvirtPool {
  readonly name: string
  readonly xml: string
  readonly isActive: boolean
  /** Whether it starts with libvirt. */
  readonly isAutostart: boolean
}

export interface LibvirtSecret {
  readonly uuid: string
  readonly xml: string
  /** In base64; undefined for one that is private, or has none. */
  readonly value: string | undefined
}

/** A guest may take its time to let go of a disk. */
const TIMEOUT_MS = 120_000

export class Virsh {
  /** As `virsh -c` takes it; undefined: what virsh takes by itself. */
  readonly uri: string | undefined
  readonly #run: RunProgram

  constructor(uri: string | undefined, run: RunProgram = runProgram) {
    this.uri = uri
    this.#run = run
  }

  /** One document of a domain, with the passwords in it: without them they would be lost when it is defined again. */
  async domain(name: string, which: 'live' | 'config'): Promise<DomainDocument> {
    const flags = which === 'config' ? ['--inactive', '--security-info'] : ['--security-info']
    return DomainDocument.parse(await this.#virsh(['dumpxml', ...flags, '--', name]))
  }

  /** What `virsh dominfo` says of a domain by its own titles: `Name`, `State`, `CPU(s)`, `Max memory`, `Persistent`. */
  async facts(domain: string): Promise<ReadonlyMap<string, string>> {
    const lines = (await this.#virsh(['dominfo', '--', domain])).split('\n')
    return new Map(lines.map(line => line.split(/:\s+(.*)/, 2) as [string, string]))
  }

  /** Every domain, running or not. Not by its name: that may be the number of another one. */
  async uuids(): Promise<string[]> {
    return namesOf(await this.#virsh(['list', '--all', '--uuid']))
  }

  async define(domainXml: string): Promise<void> {
    await this.#virsh(['define', '/dev/stdin'], domainXml)
  }

  async attachDevice(domain: string, deviceXml: string, scope: Scope): Promise<void> {
    await this.#virsh(['attach-device', '--file', '/dev/stdin', ...flagsOf(scope), '--', domain], deviceXml)
  }

  /** Asks for it: the guest lets go of a disk when it likes. */
  async detachDevice(domain: string, deviceXml: string, scope: Scope): Promise<void> {
    await this.#virsh(['detach-device', '--file', '/dev/stdin', ...flagsOf(scope), '--', domain], deviceXml)
  }

  /**
   * A command of QEMU's monitor, around libvirt, which marks the domain as tainted. Throws `RpcError` EIO with QEMU's
   * reason.
   */
  async monitor(domain: string, command: string, parameters: Record<string, unknown>): Promise<unknown> {
    const request = JSON.stringify({ execute: command, arguments: parameters })
    const text = await this.#virsh(['qemu-monitor-command', '--', domain, request])
    const answer = JSON.parse(text) as { return?: unknown; error?: { desc: string } }
    if (answer.error === undefined) return answer.return
    throw failure(`QEMU's ${command}: ${answer.error.desc}`)
  }

  /** Keeps an element with the guest that runs, for as long as it runs; undefined takes it away. */
  async setLiveMetadata(
    domain: string,
    namespace: { readonly uri: string; readonly key: string },
    xml: string | undefined,
  ): Promise<void> {
    const change = xml === undefined ? ['--remove'] : ['--key', namespace.key, '--set', xml]
    await this.#virsh(['metadata', domain, namespace.uri, '--live', ...change])
  }

  /** Its virtual networks: those that are defined or running, in no particular order. */
  async networks(): Promise<VirtualNetwork[]> {
    const names = async (...which: readonly string[]): Promise<string[]> =>
      (await this.#virsh(['net-list', '--name', ...which])).split('\n').filter(Boolean)
    const [all, active, autostarted] = await Promise.all([
      names('--all'),
      names(),
      names('--all', '--autostart'),
    ])
    return Promise.all(
      all.map(async name => ({
        document: parseNetwork(await this.#virsh(['net-dumpxml', '--', name])),
        isActive: active.includes(name),
        isAutostart: autostarted.includes(name),
      })),
    )
  }

  /** Its storage pools. */
  async pools(): Promise<LibvirtPool[]> {
    const names = async (...which: readonly string[]): Promise<string[]> =>
      namesOf(await this.#virsh(['pool-list', '--name', ...which]))
    const [all, active, autostarted] = await Promise.all([
      names('--all'),
      names(),
      names('--all', '--autostart'),
    ])
    return Promise.all(
      all.map(async name => ({
        name,
        xml: await this.#virsh([
          'pool-dumpxml',
          ...(active.includes(name) ? [] : ['--inactive']),
          '--',
          name,
        ]),
        isActive: active.includes(name),
        isAutostart: autostarted.includes(name),
      })),
    )
  }

  /** Its secrets. */
  async secrets(): Promise<LibvirtSecret[]> {
    const uuids =
      (await this.#virsh(['secret-list'])).match(/^\s*[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/gm) ?? []
    return Promise.all(
      uuids.map(async text => {
        const uuid = text.trim()
        return {
          uuid,
          xml: await this.#virsh(['secret-dumpxml', '--', uuid]),
          value: await this.#virsh(['secret-get-value', '--', uuid]).catch((error: RpcError) => {
            if (/is private|does not have a value|has no value/.test(error.message)) return undefined
            throw error
          }),
        }
      }),
    )
  }

  async confinement(domainType: string | undefined): Promise<Confinement> {
    const root = parseXml(await this.#virsh(['capabilities']), "libvirt's capabilities", 'capabilities')
    const host = elementIn(root, 'host')
    const models = host === undefined ? [] : elementsIn(host, 'secmodel')
    const labelBy = (name: string): string | undefined => {
      const model = models.find(each => textOf(elementAt(each, 'model')) === name)
      const labels = model === undefined ? [] : elementsIn(model, 'baselabel')
      return textOf(labels.find(each => attributeOf(each, 'type') === domainType) ?? labels[0])
    }
    const [, uid, gid] = /^\+(\d+):\+(\d+)$/.exec(labelBy('dac') ?? '') ?? []
    return {
      models: models
        .map(model => textOf(elementAt(model, 'model')) ?? '')
        .filter(model => model !== '' && model !== 'none'),
      user: uid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) },
      selinuxLabel: labelBy('selinux'),
    }
  }

  /** As whom QEMU runs where libvirt has no right to choose: as libvirt itself, whose socket this connection names. */
  ownUser(): { readonly uid: number; readonly gid: number } {
    const socket = /[?&]socket=([^&]+)/.exec(this.uri ?? '')?.[1]
    const stats = socket === undefined ? undefined : statSync(socket, { throwIfNoEntry: false })
    return stats ?? { uid: process.getuid!(), gid: process.getgid!() }
  }

  async #virsh(args: readonly string[], input?: string): Promise<string> {
    const all = [...(this.uri === undefined ? [] : ['--connect', this.uri]), '--quiet', ...args]
    try {
      return await this.#run('virsh', all, {
        timeoutMs: TIMEOUT_MS,
        ...(input === undefined ? {} : { input }),
      })
    } catch (error) {
      if (!(error instanceof ProgramError)) throw error
      throw this.#explain(error)
    }
  }

  #explain(error: ProgramError): RpcError {
    if (error.isMissing) {
      return new RpcError(
        'ENOENT',
        'virsh is not on this machine: install libvirt-clients (Debian), libvirt-client (Fedora, SUSE)',
        { cause: error },
      )
    }
    const said = error.stderr.replaceAll(/^error:\s*/gm, '').split('\n')
    // The last line is the reason; those before it say what was tried.
    const reason = said.findLast(line => line !== '') ?? error.message
    if (said.some(line => line.includes('failed to connect to the hypervisor'))) {
      return new RpcError(
        'ECONNREFUSED',
        `libvirt does not answer at ${this.uri ?? "virsh's default connection"}: ${reason}. See that it runs (systemctl ` +
          'status libvirtd virtqemud), that this user may connect (group libvirt), or name another one with --uri',
        { cause: error },
      )
    }
    return failure(reason, error)
  }
}

/** A column that is filled up with spaces. */
const namesOf = (said: string): string[] =>
  said
    .split('\n')
    .map(name => name.trimEnd())
    .filter(name => name !== '')

const flagsOf = ({ live, config }: Scope): string[] => [
  ...(live ? ['--live'] : []),
  ...(config ? ['--config'] : []),
]

/** libvirt's reasons, with what to do where the text alone does not say. */
function failure(reason: string, cause?: Error): RpcError {
  const found = KNOWN.find(({ pattern }) => pattern.test(reason))
  const remedy = found?.remedy === undefined ? '' : `. ${found.remedy}`
  return new RpcError(found?.code ?? 'EIO', `libvirt: ${reason}${remedy}`, { cause })
}

const KNOWN: readonly {
  readonly pattern: RegExp
  readonly code: 'ENODEV' | 'EEXIST' | 'EACCES' | 'EBUSY' | 'ENOSPC' | 'EINVAL'
  readonly remedy?: string
}[] = [
  {
    pattern: /failed to get domain|Domain not found/,
    code: 'ENODEV',
    remedy: 'qpair vm list and virsh list --all show those there are; --uri chooses another libvirt',
  },
  { pattern: /target \S+ already exists/, code: 'EEXIST' },
  { pattern: /Permission denied|Operation not permitted/, code: 'EACCES' },
  {
    pattern: /Failed to get (?:shared )?"?\w+"? lock|already in use/,
    code: 'EBUSY',
    remedy: 'Another program has the image open',
  },
  {
    pattern: /No more available PCI slots/,
    code: 'ENOSPC',
    remedy:
      'A q35 guest takes one disk for each pcie-root-port that is free: attach with --config and start it anew, or give it ' +
      "more of them (<controller type='pci' model='pcie-root-port'/>)",
  },
  {
    pattern: /'(?:ide|sata)\.\d+' does not support hotplugging|'sata' cannot be hotplugged/,
    code: 'EINVAL',
    remedy: 'A SATA bus takes no disk while the guest runs: attach with --config, or on another bus',
  },
  {
    pattern: /does not support hotplugging/,
    code: 'EINVAL',
    remedy: 'The domain has no <features><acpi/></features>: attach with --config and start it anew',
  },
  { pattern: /domain is not running/, code: 'EINVAL', remedy: '--config changes its next start' },
  {
    pattern: /transient domain/,
    code: 'EINVAL',
    remedy: 'It is gone when it stops, so that only --live makes sense',
  },
]
