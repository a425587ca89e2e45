/**
 * Debian's user-space iSCSI target (tgtd) on loopback: targets whose disks are files. Needs no kernel module and no root.
 */
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { ownAddress } from './ceph.ts'
import { Child } from './child.ts'
import { findProgram, type Program } from './packages.ts'

export const TGT_PROGRAMS = ['tgtd', 'tgtadm', 'setpriv'] as const satisfies Program[]

/** After which time a target that does not answer counts as hung. */
const TIMEOUT_MS = 120_000

/** That of iSCSI. */
const PORT = 3260

export interface TargetOptions {
  /** The part of the name behind the colon. */
  readonly name: string
  /** LUN 1. */
  readonly file: string
  /** Who may log in, with that password, by CHAP; everybody when absent. */
  readonly user?: { readonly name: string; readonly password: string }
}

/** Starts it. The caller must `stop` it. */
export async function startTgt(targets: readonly TargetOptions[]): Promise<Tgt> {
  const tgt = new Tgt(targets)
  await tgt.start()
  return tgt
}

export class Tgt {
  readonly #targets: readonly TargetOptions[]
  /** Of the loopback interface and of nobody else: the port is free, and stays so while the target is away. */
  readonly #address = ownAddress()
  /** Of its control socket. */
  readonly #directory = mkdtempSync(join(tmpdir(), 'qpair-tgt-'))
  readonly #environment = { ...process.env, TGT_IPC_SOCKET: join(this.#directory, 'socket') }
  #child: Child | undefined

  constructor(targets: readonly TargetOptions[]) {
    this.#targets = targets
  }

  get portal(): string {
    return `${this.#address}:${PORT}`
  }

  iqn(name: string): string {
    return `iqn.2026-01.test.qpair:${name}`
  }

  url(name: string, login = ''): string {
    return `iscsi://${login}${this.portal}/${this.iqn(name)}/1`
  }

  /** Starts it, again after `kill`, with the same targets. */
  async start(): Promise<void> {
    const args = ['-f', '--iscsi', `portal=${this.portal}`]
    const child = await Child.start(findProgram('tgtd')!, args, this.#environment)
    this.#child = child
    const deadlineMs = Date.now() + TIMEOUT_MS
    while (!(await this.#isUp())) {
      if (child.exit !== undefined || Date.now() > deadlineMs)
        throw new Error(`tgtd does not come up:\n${child.output}`)
      await delay(20)
    }
    for (const [index, target] of this.#targets.entries()) await this.#define(index + 1, target)
  }

  async kill(): Promise<void> {
    await this.#child?.end('SIGKILL')
  }

  /** For SIGSTOP and SIGCONT. */
  signal(signal: NodeJS.Signals): void {
    this.#child?.signal(signal)
  }

  async stop(): Promise<void> {
    this.signal('SIGCONT')
    await this.kill()
    rmSync(this.#directory, { recursive: true, force: true })
  }

  async #define(tid: number, { name, file, user }: TargetOptions): Promise<void> {
    const of = ['--tid', String(tid)]
    await this.#admin('new', 'target', ...of, '--targetname', this.iqn(name))
    await this.#admin('new', 'logicalunit', ...of, '--lun', '1', '--backing-store', file)
    await this.#admin('update', 'logicalunit', ...of, '--lun', '1', '--params', 'thin_provisioning=1')
    if (user !== undefined) {
      await this.#admin('new', 'account', '--user', user.name, '--password', user.password)
      await this.#admin('bind', 'account', ...of, '--user', user.name)
    }
    await this.#admin('bind', 'target', ...of, '--initiator-address', 'ALL')
  }

  async #isUp(): Promise<boolean> {
    try {
      await this.#admin('show', 'target')
      return true
    } catch {
      // It does not listen yet.
      return false
    }
  }

  async #admin(operation: string, mode: string, ...args: readonly string[]): Promise<void> {
    const words = ['--lld', 'iscsi', '--op', operation, '--mode', mode, ...args]
    await promisify(execFile)(findProgram('tgtadm')!, words, { env: this.#environment })
  }
}
