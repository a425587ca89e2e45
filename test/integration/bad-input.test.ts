/** What an operator may get wrong with the daemon's own files, and what is said about it. */
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, expect, it } from 'vitest'
import { Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'

const disk = (name: string): object => ({ name, num_blocks: 8, block_size: 512 })

await describeWith(['setpriv'], 'the files of a daemon', () => {
  const daemons: Daemon[] = []
  afterEach(async () => {
    for (const daemon of daemons.splice(0)) await daemon.discard()
  })

  it('a socket in a directory that is not there is refused in one line', async () => {
    const daemon = new Daemon({ args: ['-r', '/nonexistent/rpc.sock'] })
    daemons.push(daemon)
    await expect(daemon.start()).rejects.toThrow('cannot make the lock /nonexistent/rpc.sock.lock: ENOENT')
    expect(daemon.output).not.toContain('    at ')
    expect(daemon.exit).toEqual({ code: 1, signal: null })
  })

  it('a damaged saved configuration is refused by its path, with what to do', async () => {
    const daemon = new Daemon({})
    daemons.push(daemon)
    writeFileSync(join(daemon.state, 'config.json'), '{"subsystems": [')
    await expect(daemon.start()).rejects.toThrow(
      /state\/config\.json is no configuration file: .*move it away/,
    )
    expect(daemon.exit).toEqual({ code: 1, signal: null })
  })

  it('a change that cannot be saved says so, and is saved with the next one', async () => {
    const daemon = await startDaemon()
    daemons.push(daemon)
    const obstacle = join(daemon.state, '.config.json.new')
    mkdirSync(obstacle)
    await expect(daemon.rpc('bdev_null_create', disk('n0'))).rejects.toThrow(
      /the change is in force but not saved, so a restart would lose it: cannot write .*config\.json: EISDIR/,
    )
    rmdirSync(obstacle)
    await daemon.rpc('bdev_null_create', disk('n1'))
    await daemon.restart('SIGKILL')
    expect(await daemon.rpc('bdev_get_bdevs')).toMatchObject([{ name: 'n0' }, { name: 'n1' }])
  })

  it('-S with a file is refused, and with a directory that is not there makes it', async () => {
    const daemon = new Daemon({ args: ['-S', '/dev/null'] })
    daemons.push(daemon)
    await expect(daemon.start()).rejects.toThrow(
      'no sockets of vhost controllers can be made in /dev/null (-S): it is a file',
    )
    expect(daemon.exit).toEqual({ code: 1, signal: null })

    const sockets = join(daemon.directory, 'run', 'vhost')
    const other = await startDaemon({ args: ['-S', sockets] })
    daemons.push(other)
    await other.rpc('bdev_null_create', disk('n0'))
    await other.rpc('vhost_create_blk_controller', { ctrlr: 'blk0', dev_name: 'n0' })
    expect(existsSync(join(sockets, 'blk0'))).toBe(true)
  })

  it('--disk with a directory is refused, and the daemon ends', async () => {
    const daemon = new Daemon({ args: ['--disk', '/tmp', '--listen', '127.0.0.1:0'] })
    daemons.push(daemon)
    // It may answer for a moment before it looks at the disk.
    await daemon.start().catch(() => {})
    await expect.poll(() => daemon.exit).toEqual({ code: 1, signal: null })
    expect(daemon.output).toContain('tmp needs a file or a block device and /tmp is a directory')
  })
})

await describeWith(['setpriv', 'prlimit', 'strace'], 'a machine without io_uring', () => {
  /** The daemon whose calls of io_uring_setup(2) fail: as a container's filter has it, or only the first of each thread. */
  const within = (failure: string): string[] => [
    ...['strace', '-D', '-f', '-qq', '-o', '/dev/null', '-e', 'trace=io_uring_setup'],
    ...['-e', `inject=io_uring_setup:error=${failure}`],
  ]

  it.each([
    [
      'forbids it',
      'EPERM',
      'io_uring_setup: EPERM): a container runtime forbids it: run with a seccomp profile',
    ],
    ['is too old', 'EINVAL', 'io_uring_setup: EINVAL): the kernel is too old'],
    ['has a low limit', 'ENOMEM', 'LimitMEMLOCK=infinity'],
  ])('that %s is told in one line, with what to do', async (_, failure, remedy) => {
    const daemon = new Daemon({ within: within(failure) })
    try {
      await expect(daemon.start()).rejects.toThrow(remedy)
      expect(daemon.output).not.toContain('    at ')
      expect(daemon.exit).toEqual({ code: 1, signal: null })
    } finally {
      await daemon.discard()
    }
  })

  it('that has no room for the rings of all reactors is told in one line, too', async () => {
    const daemon = new Daemon({
      args: ['-m', '0x7'],
      // The rights of root go beyond the limit.
      within: ['setpriv', '--bounding-set', '-ipc_lock', 'prlimit', '--memlock=700000'],
    })
    try {
      await expect(daemon.start()).rejects.toThrow('or give -m fewer')
      expect(daemon.output).not.toContain('    at ')
      expect(daemon.exit).toEqual({ code: 1, signal: null })
    } finally {
      await daemon.discard()
    }
  })

  it('for a moment, as after another daemon was killed, is waited for', async () => {
    const daemon = await startDaemon({ within: within('ENOMEM:when=1') })
    await daemon.rpc('bdev_null_create', disk('n0'))
    await daemon.stop()
  })
})
