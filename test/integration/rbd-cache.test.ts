/**
 * The RBD cache of a real librbd beside what `rbd_cache_explain` says of it: every row under each rule, read back through
 * the client's admin socket; and what is left on the cluster of what was acknowledged when a daemon is killed.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { CACHE_OPTIONS, parseValue } from '../../src/rbd/cache/options.ts'
import { librbd } from '../../src/sys/librbd.ts'
import { askClient, CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { Child } from './lab/child.ts'
import { describeWith } from './lab/describe-with.ts'
import { FlushlessGuest, pageOf } from './lab/flushless-guest.ts'
import { findProgram } from './lab/packages.ts'
import { startVhost, type VhostTarget } from './lab/vhost.ts'

interface Option {
  readonly name: string
  readonly value: string
  readonly source: string
  readonly from: string
}

interface RuleAnswer {
  readonly rbd_cache: boolean
  readonly guest_cache_mode: string
  readonly guest_sees_write_cache: boolean
  readonly dangerous: boolean
  readonly loss: string
  readonly loss_without_flushes: string
  readonly options: readonly Option[]
}

interface Row {
  readonly row: number
  /** Of ceph.conf's `rbd cache`; null when it has none, undefined when there is no file. */
  readonly inFile: boolean | null | undefined
  readonly mode: string
  /** Under the rule of QEMU before 2.4. */
  readonly effective: boolean
}

const ROWS: readonly Row[] = [
  { row: 1, inFile: true, mode: 'writeback', effective: true },
  { row: 2, inFile: true, mode: 'none', effective: true },
  { row: 3, inFile: false, mode: 'none', effective: false },
  { row: 4, inFile: false, mode: 'writeback', effective: false },
  { row: 5, inFile: null, mode: 'none', effective: false },
  { row: 6, inFile: null, mode: 'writeback', effective: true },
  { row: 7, inFile: undefined, mode: 'none', effective: false },
  { row: 7, inFile: undefined, mode: 'writeback', effective: true },
  { row: 7, inFile: undefined, mode: 'writethrough', effective: true },
  { row: 7, inFile: undefined, mode: 'directsync', effective: false },
  { row: 7, inFile: undefined, mode: 'unsafe', effective: true },
]

/** The cache, written out only when it is flushed or closed: what is lost with the process is all that was kept back. */
const LAZY = { rbd_cache: 'true', rbd_cache_policy: 'writeback', rbd_cache_max_dirty_age: '3600' }

await describeWith([...CEPH_PROGRAMS, 'qemu-io', 'block-rbd.so', 'stdbuf'], 'the RBD cache', () => {
  let ceph: Ceph
  /** The one in use, the latest. */
  let target: VhostTarget
  let count = 0
  const targets: VhostTarget[] = []
  const children: Child[] = []

  const connection = (): Record<string, string> => ({
    mon_host: ceph.monitorAddress,
    auth_client_required: 'none',
  })

  async function makeImage(): Promise<string> {
    const name = `image${count++}`
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '16', name)
    return name
  }

  /** A ceph.conf of its own, whose client has an admin socket of its own. */
  function makeConf(...lines: string[]): { path: string; socket: string } {
    const path = join(ceph.directory, `row${count++}.conf`)
    const socket = `${path}.asok`
    const shared = readFileSync(ceph.conf, 'utf8')
    writeFileSync(path, `${shared}[client]\nadmin socket = ${socket}\n${lines.join('\n')}\n`)
    return { path, socket }
  }

  const linesOf = (inFile: boolean | null): string[] => (inFile === null ? [] : [`rbd cache = ${inFile}`])

  /** What the client with that admin socket has in force. */
  async function inForce(socket: string, child?: Child): Promise<Record<string, string | undefined>> {
    const all = await vi.waitUntil(
      () => {
        if (child?.exit !== undefined) throw new Error(child.output)
        // Until it listens.
        return askClient(socket, 'config show').catch(() => undefined)
      },
      { timeout: 60_000, interval: 10 },
    )
    return Object.fromEntries(CACHE_OPTIONS.map(option => [option, parseValue(option, all[option]!)]))
  }

  const valuesOf = ({ options }: RuleAnswer): Record<string, string> =>
    Object.fromEntries(options.map(({ name, value }) => [name, value]))

  async function explain(rule: string, image: string, params: object = {}): Promise<RuleAnswer> {
    const { rules } = await target.daemon.rpc<{ rules: RuleAnswer[] }>('rbd_cache_explain', {
      image,
      rule,
      ...params,
    })
    return rules[0]!
  }

  /** Opens an image as a bdev, over a cluster with these options or this file. */
  async function open(image: string, cluster: object): Promise<string> {
    const name = `c-${image}`
    await target.daemon.rpc('bdev_rbd_register_cluster', { name, user_id: 'admin', ...cluster })
    return target.daemon.rpc('bdev_rbd_create', {
      name: image,
      pool_name: 'volumes',
      rbd_name: image,
      block_size: 512,
      cluster_name: name,
    })
  }

  async function content(image: string): Promise<Buffer> {
    const path = join(ceph.directory, `${image}.raw`)
    await ceph.run('rbd', 'export', `volumes/${image}`, path)
    return readFileSync(path)
  }

  /** Starts qemu-io, with its commands and then no end, and without any ceph.conf that it was not told of. */
  async function qemuIo(name: string, mode: string, ...commands: string[]): Promise<Child> {
    const all = [...commands, 'sleep 3600000'].flatMap(command => ['-c', command])
    const env = { ...process.env, CEPH_CONF: join(ceph.directory, 'nothing') }
    // Its output would come at its end only.
    const args = ['-oL', findProgram('qemu-io')!, '-f', 'raw', '-t', mode, ...all, name]
    const child = await Child.start(findProgram('stdbuf')!, args, env)
    children.push(child)
    return child
  }

  /** Waits until so many writes of 64 KiB are acknowledged. */
  async function untilWritten(child: Child, count: number): Promise<void> {
    while (child.output.split('wrote 65536/65536').length <= count) {
      if (child.exit !== undefined) throw new Error(child.output)
      await delay(5)
    }
  }

  /** A daemon that no ceph.conf of the machine reaches. */
  async function startTarget(): Promise<void> {
    const env = { CEPH_CONF: join(ceph.directory, 'nothing') }
    target = await startVhost({ args: ['--reactors', '2'], env })
    targets.push(target)
  }

  beforeAll(async () => {
    ceph = await startCeph()
    await startTarget()
  })
  afterAll(async () => {
    for (const each of targets) await each.stop()
    await ceph?.stop()
  })
  afterEach(async () => {
    for (const child of children.splice(0)) await child.end('SIGKILL')
  })

  describe.each(ROWS)(
    'row $row: in the file $inFile, cache mode $mode',
    ({ row, inFile, mode, effective }) => {
      it('is as it was measured with QEMU 2.2, and dangerous only in row 2', async () => {
        const conf = inFile === undefined ? undefined : makeConf(...linesOf(inFile)).path
        const answer = await explain('qemu-before-2.4', 'volumes/x', {
          cache_mode: mode,
          ...(conf === undefined ? {} : { conf }),
        })
        expect(answer).toMatchObject({
          rbd_cache: effective,
          guest_cache_mode: mode,
          dangerous: row === 2,
        })
      })

      it('is with QEMU what the rule from 2.4 on says', async () => {
        const image = await makeImage()
        const { path, socket } = makeConf(...linesOf(inFile ?? null))
        const options = Object.entries({ ...connection(), admin_socket: socket })
          .map(([name, value]) => `:${name}=${value.replaceAll(/[:;]/g, '\\$&')}`)
          .join('')
        const name = `rbd:volumes/${image}${inFile === undefined ? options : `:conf=${path}`}`
        const child = await qemuIo(name, mode)
        const answer = await explain('qemu-2.4', name, { cache_mode: mode })
        expect(await inForce(socket, child)).toEqual(valuesOf(answer))
        expect(answer.dangerous).toBe(false)
      })

      it('is off in this daemon, whatever the file says', async () => {
        const image = await makeImage()
        const { path, socket } = makeConf(...linesOf(inFile ?? null))
        const cluster =
          inFile === undefined
            ? { config_param: { ...connection(), admin_socket: socket } }
            : { config_file: path }
        await open(image, cluster)
        const answer = await explain('qpair', image, { cache_mode: mode })
        expect(await inForce(socket)).toEqual(valuesOf(answer))
        expect(answer.options[0]).toMatchObject({ name: 'rbd_cache', value: 'false', source: 'qpair' })
      })

      it('is on in this daemon when an option says so, whatever the file says', async () => {
        const image = await makeImage()
        const { path, socket } = makeConf(...linesOf(inFile ?? null))
        // Ceph takes blanks for underscores.
        const cluster =
          inFile === undefined
            ? { config_param: { ...connection(), admin_socket: socket, rbd_cache: 'true' } }
            : { config_file: path, config_param: { 'rbd cache': 'true' } }
        await open(image, cluster)
        const answer = await explain('qpair', image, { cache_mode: mode })
        expect(await inForce(socket)).toEqual(valuesOf(answer))
        expect(answer.options[0]).toMatchObject({ name: 'rbd_cache', value: 'true', source: 'option' })
      })
    },
  )

  it.each([
    ['false', 'true'],
    ['true', 'false'],
  ])('keeps in librados of today what QEMU set to %s, against a file with %s', async (set, inFile) => {
    const library = librbd()
    const handle = library.radosCreate('admin')
    expect(library.radosSet(handle, 'rbd_cache', set)).toBe(0)
    expect(library.radosReadFile(handle, makeConf(`rbd cache = ${inFile}`).path)).toBe(0)
    expect(library.radosGet(handle, 'rbd_cache')).toBe(set)
    await library.radosShutdown(handle)
  })

  it('finds what the image, its pool and the monitors have set', async () => {
    const image = await makeImage()
    await ceph.run('rbd', 'config', 'image', 'set', `volumes/${image}`, 'rbd_cache_max_dirty', '0')
    await ceph.run('rbd', 'config', 'pool', 'set', 'volumes', 'rbd_cache_target_dirty', '1M')
    await ceph.run('ceph', 'config', 'set', 'client', 'rbd_cache_size', '64M')
    await ceph.run('ceph', 'config', 'set', 'client', 'rbd_cache', 'true')
    try {
      await open(image, { config_file: makeConf('rbd cache max dirty = 1M').path })
      const { options, loss } = await explain('qpair', image)
      expect(
        Object.fromEntries(options.map(each => [each.name, `${each.value} ${each.source}`])),
      ).toMatchObject({
        rbd_cache: 'false qpair',
        rbd_cache_max_dirty: '0 image',
        rbd_cache_target_dirty: '1048576 pool',
        rbd_cache_size: '67108864 config',
      })
      expect(loss).toBe('nothing')
    } finally {
      await ceph.run('rbd', 'config', 'pool', 'rm', 'volumes', 'rbd_cache_target_dirty')
      await ceph.run('ceph', 'config', 'rm', 'client', 'rbd_cache_size')
      await ceph.run('ceph', 'config', 'rm', 'client', 'rbd_cache')
    }
  })

  it.each([
    ['a line that would end it', 'x = ü', /row\d+\.conf:\d+ has a character that is not ASCII/],
    ['a line that is none', 'rbd cache', /row\d+\.conf:\d+ is neither/],
  ])('lives with a ceph.conf that has %s, and says which', async (_what, line, message) => {
    const config_file = makeConf(line).path
    const before = await target.daemon.rpc('bdev_get_bdevs')
    const register = target.daemon.rpc('bdev_rbd_register_cluster', { name: 'bad', config_file })
    await expect(register).rejects.toThrow(message)
    expect(await target.daemon.rpc('bdev_get_bdevs')).toEqual(before)
  })

  describe('when the daemon is killed', () => {
    const PAGE = 4096

    beforeEach(startTarget)

    /** Writes over NBD without a flush; resolves when all is acknowledged. */
    async function writeOverNbd(image: string, ...commands: string[]): Promise<void> {
      const unix = join(target.daemon.directory, 'nbd.sock')
      const { uri } = await target.daemon.rpc<{ uri: string }>('nbd_export_start', { bdev_name: image, unix })
      const child = await qemuIo(uri, 'writeback', ...commands)
      await untilWritten(child, commands.filter(command => command.startsWith('write')).length)
    }

    it('has everything on the cluster that an NBD client wrote and never flushed', async () => {
      const image = await makeImage()
      await open(image, { config_param: { ...connection(), ...LAZY } })
      expect(await explain('qpair', image)).toMatchObject({
        loss: 'unflushed',
        loss_without_flushes: 'nothing',
        dangerous: false,
      })
      const commands = Array.from({ length: 64 }, (_, i) => `write -P ${i + 1} ${i * 192}k 64k`)
      await writeOverNbd(image, ...commands)
      await target.daemon.kill('SIGKILL')
      const data = await content(image)
      for (const [i] of commands.entries()) {
        const piece = data.subarray(i * 192 * 1024, i * 192 * 1024 + 65536)
        expect(piece.equals(Buffer.alloc(65536, i + 1)), `write ${i}`).toBe(true)
      }
    })

    it('has after the first flush what was flushed, and not what was written since', async () => {
      const image = await makeImage()
      await open(image, { config_param: { ...connection(), ...LAZY } })
      await writeOverNbd(image, 'write -P 1 0 64k', 'flush', 'write -P 2 1M 64k')
      await target.daemon.kill('SIGKILL')
      const data = await content(image)
      expect(data.subarray(0, 65536).equals(Buffer.alloc(65536, 1))).toBe(true)
      expect(data.subarray(1 << 20, (1 << 20) + 65536).equals(Buffer.alloc(65536))).toBe(true)
    })

    it('has everything without the cache, also what was written since the last flush', async () => {
      const image = await makeImage()
      const { rbd_cache: _, ...lazy } = LAZY
      await open(image, { config_param: { ...connection(), ...lazy } })
      expect(await explain('qpair', image)).toMatchObject({ loss: 'nothing' })
      await writeOverNbd(image, 'write -P 1 0 64k', 'flush', 'write -P 2 1M 64k')
      await target.daemon.kill('SIGKILL')
      expect((await content(image)).subarray(1 << 20, (1 << 20) + 65536).equals(Buffer.alloc(65536, 2))).toBe(
        true,
      )
    })

    it.each(['pool', 'image'])('loses with the cache of the %s what it says it would', async kind => {
      const image = await makeImage()
      const subject = kind === 'pool' ? 'volumes' : `volumes/${image}`
      await ceph.run('rbd', 'config', kind, 'set', subject, 'rbd_cache', 'true')
      try {
        await open(image, { config_param: { ...connection(), ...LAZY, rbd_cache: 'false' } })
        const answer = await explain('qpair', image)
        expect(answer).toMatchObject({ loss: 'unflushed' })
        expect(answer.options[0]).toMatchObject({ name: 'rbd_cache', value: 'true', source: kind })
        await writeOverNbd(image, 'write -P 1 0 64k', 'flush', 'write -P 2 1M 64k')
        await target.daemon.kill('SIGKILL')
        const data = await content(image)
        expect(data.subarray(1 << 20, (1 << 20) + 65536).equals(Buffer.alloc(65536))).toBe(true)
      } finally {
        // An image would keep it waiting for the daemon that was killed, and is of no more use.
        if (kind === 'pool') await ceph.run('rbd', 'config', kind, 'rm', subject, 'rbd_cache')
      }
    })

    it('loses what it says it would without write-through until the first flush', async () => {
      const image = await makeImage()
      const config_param = { ...connection(), ...LAZY, rbd_cache_writethrough_until_flush: 'false' }
      await open(image, { config_param })
      expect(await explain('qpair', image)).toMatchObject({
        loss_without_flushes: 'unflushed',
        dangerous: true,
      })
      await writeOverNbd(image, 'write -P 1 0 64k')
      await target.daemon.kill('SIGKILL')
      expect((await content(image)).subarray(0, 65536).equals(Buffer.alloc(65536))).toBe(true)
    })

    it.each(['true', 'false'])(
      'has everything that a guest wrote who cannot flush (until flush %s)',
      async until => {
        const image = await makeImage()
        const config_param = { ...connection(), ...LAZY, rbd_cache_writethrough_until_flush: until }
        await open(image, { config_param })
        await target.daemon.rpc('vhost_create_blk_controller', { ctrlr: 'disk', dev_name: image })
        const guest = await FlushlessGuest.connect(join(target.sockets, 'disk'))
        await guest.write(300)
        await target.daemon.kill('SIGKILL')
        const data = await content(image)
        for (const page of guest.acknowledged) {
          const found = data.subarray(page * PAGE, (page + 1) * PAGE)
          expect(found.equals(pageOf(page)), `page ${page}`).toBe(true)
        }
        guest.close()
      },
    )
  })
})
