/** What tests do with the NVMe host of Linux in a guest: connect, look, and keep a device under verified load. */
import { expect } from 'vitest'
import { type Guest, type GuestJob, hostAddress } from './guest.ts'

export interface Path {
  readonly nqn: string
  /** The port on this machine's 127.0.0.1. */
  readonly port: string
  /** The interface of the guest that leads there. Default 0. */
  readonly nic?: number
  /** More arguments of `nvme connect`. */
  readonly args?: string
}

/** Time for a condition that takes several time-outs of the host to come true on a slow machine. */
const PATIENCE_MS = 120_000

/** What fio says in JSON about its one job. */
export interface FioReport {
  readonly jobs: readonly [{ readonly error: number; readonly read: FioIo; readonly write: FioIo }]
}
interface FioIo {
  readonly total_ios: number
}

/** The exit code of fio that was asked to end; each job that failed adds one. */
export const FIO_INTERRUPTED = 128

/** Waits until an answer of the daemon's satisfies the assertion that follows. */
export const eventually = <T>(read: () => Promise<T> | T) =>
  expect.poll(read, { timeout: PATIENCE_MS, interval: 50 })

/** Of a request: it was sent ahead of need (include/linux/blk_types.h, Linux 6.1). */
const REQ_RAHEAD = 1 << 19

export class LinuxHost {
  readonly guest: Guest

  constructor(guest: Guest) {
    this.guest = guest
  }

  /** Connects a path; the host never gives up on it and retries each second, unless the arguments say otherwise. */
  async connect({ nqn, port, nic = 0, args = '' }: Path): Promise<void> {
    await this.guest.run(`nvme connect -t tcp -a ${hostAddress(nic)} -s ${port} -n ${nqn} -l -1 -c 1 ${args}`)
  }

  /** Runs a command of nvme-cli and parses what it prints. */
  async json<T>(command: string): Promise<T> {
    return JSON.parse((await this.guest.run(`nvme ${command} -o json`)).stdout) as T
  }

  /** What a command prints, without the line's end. */
  async text(command: string): Promise<string> {
    return (await this.guest.run(command)).stdout.trim()
  }

  /** Waits until a file in the guest holds a text. */
  async waitForText(path: string, text: string): Promise<void> {
    await this.guest.waitFor(`[ "$(cat ${path} 2>/dev/null)" = ${text} ]`)
  }

  /** Forgets what the kernel has said so far. */
  async clearKernelLog(): Promise<void> {
    await this.guest.run('dmesg -c >/dev/null')
  }

  /**
   * The lines in which the kernel complains of failed I/O or a damaged file system. Read-ahead is left out: it is sent
   * with "fail fast", so the kernel drops it with its path instead of trying another, and nobody has asked for it.
   */
  async ioErrors(): Promise<string> {
    const pattern = 'I/O error|buffer error|lost async|EXT4-fs (error|warning)|XFS.*(corrupt|shut)'
    const lines = (await this.text(`dmesg | grep -iE '${pattern}' || true`)).split('\n')
    const isReadAhead = (line: string | undefined): boolean => {
      const flags = /I\/O error, dev \w+, .* flags (0x[\da-f]+)/.exec(line ?? '')?.[1]
      return flags !== undefined && (Number(flags) & REQ_RAHEAD) !== 0
    }
    // The driver's line about a command comes before the block layer's about its request.
    const isOfReadAhead = (line: string, index: number): boolean =>
      isReadAhead(line) || (line.includes('I/O Cmd(') && isReadAhead(lines[index + 1]))
    return lines.filter((line, index) => !isOfReadAhead(line, index)).join('\n')
  }

  /** Writes and reads back, with checksums, until it is stopped. */
  startLoad(device: string, options = ''): VerifiedLoad {
    return new VerifiedLoad(this, device, options)
  }

  async disconnectAll(): Promise<void> {
    await this.guest.run('nvme disconnect-all')
  }
}

/** fio, which reads back each of its writes and stops at the first wrong byte or error. */
export class VerifiedLoad {
  readonly #host: LinuxHost
  readonly #device: string
  readonly #job: GuestJob
  #failure: Error | undefined

  constructor(host: LinuxHost, device: string, options: string) {
    this.#host = host
    this.#device = device
    const load = `--filename=${device} --rw=randwrite --bs=4k --size=8m --time_based --runtime=3600 --iodepth=16`
    const check = '--verify=crc32c --verify_fatal=1 --verify_backlog=64 --verify_state_save=0'
    const how = '--ioengine=libaio --direct=1 --thread --output-format=json'
    this.#job = host.guest.start(`exec fio --name=load ${how} ${load} ${check} ${options}`, { check: false })
    this.#job.done.then(
      ({ code, stdout, stderr }) => {
        this.#failure = new Error(`fio ended with code ${code}\n${stdout}${stderr}`)
      },
      error => {
        this.#failure = error
      },
    )
  }

  /** Waits until a good number of I/Os have been started after now and have ended. */
  async progress(count = 64): Promise<void> {
    const before = await this.#completed()
    await eventually(() => this.#completed()).toBeGreaterThan(before + count)
  }

  /** Ends it; fails if there was an error or a wrong byte. */
  async stop(): Promise<void> {
    await this.progress()
    await this.#job.kill('INT')
    const { code, stdout, stderr } = await this.#job.done
    expect(code, stdout + stderr).toBe(FIO_INTERRUPTED)
    const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as FioReport
    expect(jobs[0].error, stderr).toBe(0)
    expect(jobs[0].read.total_ios, 'I/Os read back').toBeGreaterThan(0)
  }

  /** Reads and writes that have ended, counted on the paths: of a device with several, only these have counters. */
  async #completed(): Promise<number> {
    if (this.#failure !== undefined) throw this.#failure
    const name = this.#device.replace('/dev/', '')
    const paths = name.replace(/n\d+$/, namespace => `c*${namespace}`)
    const count = `{ sum += $1 + $5 } END { print sum }`
    return Number(
      await this.#host.text(`cat /sys/block/${name}/stat /sys/block/${paths}/stat | awk '${count}'`),
    )
  }
}
