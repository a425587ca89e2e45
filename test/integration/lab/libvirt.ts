/**
 * A libvirt daemon of an ordinary user, in a directory of its own: it touches nothing of this machine's own libvirt, and
 * its guests have no right to anything but what they are given.
 */
import { execFile } from 'node:child_process'
import { chownSync, copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Agent } from './agent.ts'
import { Child } from './child.ts'
import { bootFiles } from './image.ts'
import { findProgram } from './packages.ts'
import { isSilent, SILENCE_MS } from './silence.ts'

/** nobody and nogroup, where the test runs as root. */
export const LIBVIRT_USER = process.getuid?.() === 0 ? 65534 : (process.getuid?.() ?? 0)

/** After which time a daemon or a guest that does not answer counts as hung. */
const TIMEOUT_MS = 120_000

/** No daemon for the guests' consoles, and no confinement that an ordinary user could not set up. */
const QEMU_CONF = 'stdio_handler = "file"\nsecurity_driver = "none"\n'

/**
 * Starts a daemon and waits until it answers. The caller must `stop` it. `silenceMs`: after how long without a word on its console
 * a guest that boots is reset, once.
 */
export async function startLibvirt(silenceMs = SILENCE_MS): Promise<Libvirt> {
  const libvirt = new Libvirt(silenceMs)
  try {
    await libvirt.start()
  } catch (error) {
    await libvirt.stop()
    throw error
  }
  return libvirt
}

export class Libvirt {
  readonly #silenceMs: number
  readonly #home = mkdtempSync(join(tmpdir(), 'qpair-libvirt-'))
  #daemon: Child | undefined
  #agent: Agent | undefined
  #domain: string | undefined

  constructor(silenceMs: number) {
    this.#silenceMs = silenceMs
  }

  async start(): Promise<void> {
    const config = join(this.#home, 'config/libvirt')
    mkdirSync(config, { recursive: true })
    writeFileSync(join(config, 'qemu.conf'), QEMU_CONF)
    for (const name of ['', 'config', 'config/libvirt', 'config/libvirt/qemu.conf']) this.#own(name)
    const [program, ...args] = this.#asUser(findProgram('libvirtd')!)
    this.#daemon = await Child.start(program!, args, this.#environment)
    const deadlineMs = Date.now() + TIMEOUT_MS
    // Until the daemon listens, virsh would start another one.
    while (!this.#daemon.output.includes('libvirt version') && this.#daemon.exit === undefined)
      await delay(20)
    for (;;) {
      try {
        await this.virsh('version')
        return
      } catch (error) {
        if (this.#daemon.exit !== undefined || Date.now() > deadlineMs) {
          throw new Error(`libvirtd does not answer: ${this.#daemon.output}`, { cause: error })
        }
        await delay(50)
      }
    }
  }

  /** How others than its own user connect to it. */
  get uri(): string {
    return `qemu+unix:///session?socket=${this.#home}/libvirt/libvirt-sock`
  }

  /** Resolves with what virsh prints. */
  async virsh(...args: readonly string[]): Promise<string> {
    const [program, ...words] = this.#asUser(findProgram('virsh')!, '-c', 'qemu:///session', ...args)
    return (
      await promisify(execFile)(program!, words, {
        env: this.#environment,
        timeout: TIMEOUT_MS,
      })
    ).stdout
  }

  /**
   * Defines and starts a guest of the lab with further elements of `<domain>` and of `<devices>`, and waits until it takes
   * commands. Its own disk is /dev/vda.
   */
  async boot(domainXml: string, devicesXml: string): Promise<void> {
    const boot = await bootFiles()
    for (const part of ['kernel', 'initramfs', 'disk'] as const) {
      copyFileSync(boot[part], join(this.#home, part))
      this.#own(part)
    }
    this.#agent = await Agent.listen(join(this.#home, 'agent'))
    this.#own('agent')
    await this.virsh('define', this.file('domain.xml', this.#domainXml(domainXml, devicesXml)))
    this.#domain = 'lab'
    await this.#start()
  }

  /** Ends the guest at once and starts it as it is defined now. */
  async restart(): Promise<void> {
    await this.virsh('destroy', 'lab')
    this.#agent!.close(new Error('the guest was stopped'))
    rmSync(join(this.#home, 'agent'), { force: true })
    this.#agent = await Agent.listen(join(this.#home, 'agent'))
    this.#own('agent')
    await this.#start()
  }

  async #start(): Promise<void> {
    await this.virsh('start', 'lab')
    const agent = this.#agent!
    if (await isSilent(join(this.#home, 'console'), agent.booted, this.#silenceMs)) {
      console.warn(`libvirt's guest: nothing on its console while it boots; it is reset, once`)
      agent.rebooting(new Error('the guest was reset, because it was silent'))
      await this.virsh('reset', 'lab')
    }
    const late = new AbortController()
    const timeout = delay(TIMEOUT_MS, undefined, { signal: late.signal }).then(() => {
      throw new Error(
        `the guest has not booted: ${readFileSync(join(this.#home, 'console'), 'utf8').slice(-4000)}`,
      )
    })
    timeout.catch(() => {})
    await Promise.race([agent.booted, timeout]).finally(() => late.abort())
  }

  /** A file in the daemon's directory that it can read; answers its path. */
  file(name: string, text: string): string {
    const path = join(this.#home, name)
    writeFileSync(path, text)
    this.#own(name)
    return path
  }

  /** Runs a shell command in the guest; resolves with what it prints. */
  async run(command: string): Promise<string> {
    const { code, stdout, stderr } = await this.#agent!.start(command).done
    if (code !== 0) throw new Error(`${command}\nended with code ${code}\n${stdout}${stderr}`)
    return stdout.trim()
  }

  async stop(): Promise<void> {
    if (this.#domain !== undefined) await this.virsh('destroy', this.#domain).catch(() => this.#killGuest())
    this.#agent?.close(new Error('the guest was stopped'))
    await this.#daemon?.end('SIGTERM')
    rmSync(this.#home, { recursive: true, force: true })
  }

  /** For a guest that libvirt cannot end: it waits for QEMU, and QEMU for its disk. */
  #killGuest(): void {
    try {
      process.kill(Number(readFileSync(join(this.#home, 'libvirt/qemu/run/lab.pid'), 'utf8')), 'SIGKILL')
    } catch {
      // It did not come so far as to run.
    }
  }

  get #environment(): NodeJS.ProcessEnv {
    const home = this.#home
    return {
      PATH: process.env['PATH'],
      HOME: home,
      XDG_RUNTIME_DIR: home,
      XDG_CONFIG_HOME: join(home, 'config'),
      XDG_CACHE_HOME: join(home, 'cache'),
      XDG_DATA_HOME: join(home, 'data'),
    }
  }

  /** A change of user takes back that the process dies with its parent. */
  #asUser(...command: readonly string[]): string[] {
    const user = [`--reuid=${LIBVIRT_USER}`, `--regid=${LIBVIRT_USER}`, '--clear-groups']
    const isRoot = process.getuid?.() === 0
    return isRoot ? [findProgram('setpriv')!, ...user, '--pdeathsig', 'KILL', '--', ...command] : [...command]
  }

  #own(name: string): void {
    if (process.getuid?.() === 0) chownSync(join(this.#home, name), LIBVIRT_USER, LIBVIRT_USER)
  }

  #domainXml(domainXml: string, devicesXml: string): string {
    const home = this.#home
    return `<domain type='qemu'>
  <name>lab</name>
  <memory unit='MiB'>512</memory>
  <vcpu>2</vcpu>
  <cpu mode='maximum'/>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>${home}/kernel</kernel>
    <initrd>${home}/initramfs</initrd>
    <cmdline>console=ttyS0 panic=-1 mitigations=off no_timer_check tsc=reliable LAB_UUID=1 LAB_MODULES=</cmdline>
  </os>
  <features><acpi/></features>
  ${domainXml}
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='${home}/disk'/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    ${devicesXml}
    <serial type='file'><source path='${home}/console'/></serial>
    <channel type='unix'>
      <source mode='connect' path='${home}/agent'/>
      <target type='virtio' name='lab'/>
    </channel>
  </devices>
</domain>
`
  }
}
