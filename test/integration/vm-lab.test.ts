/** `qpair vm lab` as somebody types it, without a terminal: the words come from a pipe, and so does what is shown. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { createConnection } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import type { Kernel } from '../../src/vm/lab/kernel.ts'
import { describeWith } from './lab/describe-with.ts'
import { labKernel } from './lab/image.ts'

const QPAIR = fileURLToPath(new URL('../../bin/qpair.js', import.meta.url))
const TIMEOUT_MS = 200_000
const PROGRAMS = ['qemu-system-x86_64', 'busybox', 'nvme', 'lspci', 'fdisk', 'xz', 'setpriv'] as const
/** Ctrl-]. */
const ESCAPE = '\x1d'

class LabRun {
  text = ''
  #seen = 0
  readonly #child: ChildProcessWithoutNullStreams
  readonly exited: Promise<unknown[]>

  constructor(args: readonly string[], env: Readonly<Record<string, string>>) {
    const all = [QPAIR, 'vm', 'lab', ...args]
    this.#child = spawn(process.execPath, all, { env: { ...process.env, ...env } })
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream.setEncoding('utf8').on('data', piece => {
        this.text += String(piece).replaceAll('\r', '')
      })
    }
    this.exited = once(this.#child, 'exit')
  }

  type(text: string): void {
    this.#child.stdin.write(text)
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  /** Waits until it shows something behind what was waited for last, or behind another place; answers the match. */
  async shows(pattern: RegExp, from = this.#seen): Promise<RegExpExecArray> {
    const deadlineMs = Date.now() + TIMEOUT_MS
    for (;;) {
      const match = pattern.exec(this.text.slice(from))
      if (match !== null) {
        this.#seen = Math.max(this.#seen, from + match.index + match[0].length)
        return match
      }
      if (this.#child.exitCode !== null || Date.now() > deadlineMs) {
        throw new Error(`the lab does not show ${pattern}:\n${this.text.slice(-3000)}`)
      }
      await delay(20)
    }
  }
}

async function isOpen(port: number): Promise<boolean> {
  const socket = createConnection(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    return true
  } catch {
    // It is refused.
    return false
  } finally {
    socket.destroy()
  }
}

await describeWith(PROGRAMS, 'qpair vm lab', () => {
  let directory: string
  let kernel: Kernel
  let lab: LabRun | undefined

  const start = (...args: readonly string[]): LabRun => {
    const own = ['--accel', 'tcg', '--kernel', kernel.image, '--modules', kernel.modules]
    lab = new LabRun([...own, ...args], { XDG_CACHE_HOME: directory, TMPDIR: directory })
    return lab
  }

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), 'qpair-lab-test-'))
    kernel = await labKernel()
  })
  afterEach(async () => {
    lab?.signal('SIGTERM')
    await lab?.exited
    lab = undefined
  })
  afterAll(() => rmSync(directory, { recursive: true }))

  it('has the disks of a guide in nvme list, lspci and fdisk -l', async () => {
    const run = start('--nvme', '40G', '--nvme', '50G')
    const [, home] = await run.shows(/thin, in (\S+)/)
    expect(existsSync(home!)).toBe(true)
    await run.shows(/# nvme list/)
    await run.shows(/LAB\d .*(42\.95|53\.69) +GB/)
    await run.shows(/LAB\d .*(42\.95|53\.69) +GB/)
    await run.shows(/# lspci/)
    await run.shows(/Non-Volatile memory controller.*\n.*Non-Volatile memory controller/)
    await run.shows(/# fdisk -l/)
    // In the order in which the guest has found them.
    const sizes = [await run.shows(/nvme\dn1: (40|50) GiB/), await run.shows(/nvme\dn1: (40|50) GiB/)]
    expect(sizes.map(([, size]) => size).sort()).toEqual(['40', '50'])
    await run.shows(/This is a shell in the lab/)
    run.type('lspci | grep -c \'Non-Vol\'"atile"\n')
    await run.shows(/\n2\n/)
    run.type('poweroff\n')
    expect(await run.exited).toEqual([0, null])
    expect(existsSync(home!)).toBe(false)
  })

  it('ends at Ctrl-], and removes what it has made', async () => {
    const run = start('--nvme', '1G')
    const [, home] = await run.shows(/thin, in (\S+)/)
    await run.shows(/This is a shell in the lab/)
    run.type(ESCAPE)
    expect(await run.exited).toEqual([0, null])
    expect(existsSync(home!)).toBe(false)
  })

  it('takes its gateways along when it is killed, and the next one removes its directory', async () => {
    const killed = start('--multipath', '--nvme', '1G')
    const [, home] = await killed.shows(/thin, in (\S+)/)
    const [, port] = await killed.shows(/ports (\d+) and/)
    killed.signal('SIGKILL')
    await killed.exited
    await expect.poll(() => isOpen(Number(port)), { timeout: 60_000 }).toBe(false)
    const next = start('--nvme', '1G')
    await next.shows(new RegExp(`${home} is removed: its lab was killed`))
    expect(existsSync(home!)).toBe(false)
  })

  it('goes on over the loss of a gateway and of a network', async () => {
    const run = start('--multipath', '--nvme', '64M')
    await run.shows(/nvme0c0n1 optimized live[\s\S]*nvme0c1n1 optimized live/)
    await run.shows(/This is a shell in the lab/)
    run.type(`${ESCAPE}i`)
    await run.shows(/load 20 &/)
    // On a slow machine the load ends before all that follows has been shown.
    const loadFrom = run.text.length
    run.type(`${ESCAPE}1`)
    await run.shows(/Gateway A is dead/)
    run.type("until paths | grep -q '^nvme0c0n1 .* connecting'; do sleep 1; done; echo lo''st\n")
    await run.shows(/\nlost\n/)
    run.type(`${ESCAPE}p`)
    await run.shows(/nvme0c0n1 optimized connecting/)
    run.type(`${ESCAPE}1`)
    await run.shows(/Gateway A serves again/)
    await run.shows(/load: [1-9]\d* blocks written and read back in 20 s, 0 errors, 0 wrong/, loadFrom)
    run.type("until paths | grep -q '^nvme0c0n1 .* live'; do sleep 1; done; echo ba''ck\n")
    await run.shows(/\nback\n/)
    run.type(`load 10 &\n${ESCAPE}4`)
    await run.shows(/network to gateway B is cut/)
    await run.shows(/load: [1-9]\d* blocks written and read back in 10 s, 0 errors, 0 wrong/)
    run.type(`${ESCAPE}q`)
    expect(await run.exited).toEqual([0, null])
  })

  it('refuses what makes no lab', async () => {
    const run = new LabRun(['--nvme', 'large'], {})
    expect(await run.exited).toEqual([1, null])
    expect(run.text).toContain('--nvme large is no size')
  })
})
