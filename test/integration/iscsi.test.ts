/** Disks of an iSCSI target, under load and when it goes away: Debian's tgtd, fio and QEMU's programs. */
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { Child } from './lab/child.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { findProgram, type Program } from './lab/packages.ts'
import { startTgt, TGT_PROGRAMS, type Tgt } from './lab/tgt.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
const INITIATOR = 'iqn.2026-01.test.qpair:host'
const PASSWORD = 'not-to-be-seen'
const LOST = '; it is tried again'
const BACK = 'disk: the target is back after'
const PROGRAMS = [...TGT_PROGRAMS, 'fio', 'qemu-img', 'qemu-io'] as const

interface Bdev {
  readonly name: string
  readonly num_blocks: number
  readonly block_size: number
}

async function run(program: Program, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program)!, args, { maxBuffer: 1 << 26 })
  return stdout
}

await describeWith(PROGRAMS, 'iSCSI disks', () => {
  let daemon: Daemon
  let tgt: Tgt
  let directory: string
  const path = (name: string): string => join(directory, name)
  const uri = (name: string): string => `nbd+unix:///${name}?socket=${path('nbd.sock')}`
  const bdevs = (): Promise<Bdev[]> => daemon.rpc('bdev_get_bdevs')

  const create = (name: string, url: string): Promise<string> =>
    daemon.rpc('bdev_iscsi_create', { name, initiator_iqn: INITIATOR, url })

  async function serve(name: string): Promise<void> {
    await create(name, tgt.url('open'))
    await daemon.rpc('nbd_export_start', { bdev_name: name, unix: path('nbd.sock') })
  }

  const count = (text: string): number => daemon.output.split(text).length - 1

  async function writesOf(name: string): Promise<number> {
    const answer = await daemon.rpc<{ bdevs: { num_write_ops: number }[] }>('bdev_get_iostat', {
      names: [name],
    })
    return answer.bdevs[0]!.num_write_ops
  }

  async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
    while (!(await condition())) await delay(10)
  }

  const fio = (name: string, ...args: string[]): string[] => [
    ...['--name=verify', '--ioengine=nbd', `--uri=${uri(name)}`, `--size=${SIZE}`, '--output-format=json'],
    ...['--verify=crc32c', '--verify_fatal=1', '--do_verify=1', ...args],
  ]

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), 'qpair-iscsi-'))
    for (const name of ['open.img', 'closed.img']) {
      writeFileSync(path(name), '')
      truncateSync(path(name), SIZE)
    }
    tgt = await startTgt([
      { name: 'open', file: path('open.img') },
      { name: 'closed', file: path('closed.img'), user: { name: 'alice', password: PASSWORD } },
    ])
    daemon = await startDaemon({ args: ['--reactors', '2'] })
  })
  afterEach(async () => {
    for (const { name } of await bdevs()) await daemon.rpc('bdev_iscsi_delete', { name })
  })
  afterAll(async () => {
    await daemon?.stop()
    await tgt?.stop()
    rmSync(directory, { recursive: true, force: true })
  })

  it('is found where it is served, in the words of virsh', async () => {
    const [host, port] = tgt.portal.split(':') as [string, string]
    const query = { type: 'iscsi-direct', host, port: Number(port) }
    const source = (name: string): string => `  <source>
    <host name='${host}' port='${port}'/>
    <device path='${tgt.iqn(name)}'/>
    <initiator>
      <iqn name='${INITIATOR}'/>
    </initiator>
  </source>
`
    expect(await daemon.rpc('pool_find_sources', { ...query, initiator: INITIATOR })).toBe(
      `<sources>\n${source('open')}${source('closed')}</sources>\n`,
    )
    await expect(daemon.rpc('pool_find_sources', query)).rejects.toThrow('by an initiator: name one')
  })

  it('holds what fio and QEMU write, and the file behind it is the same', async () => {
    await serve('disk')
    expect(await bdevs()).toMatchObject([{ name: 'disk', block_size: 512, num_blocks: SIZE / 512 }])
    await run('fio', ...fio('disk', '--rw=randwrite', '--bsrange=4k-256k', '--iodepth=16', '--io_size=128m'))
    const commands = ['write -P 7 0 6M', 'write -z 1M 1M', 'discard 3M 512k', 'write -f -P 9 8M 64k', 'flush']
    const checks = ['read -P 7 0 1M', 'read -P 0 1M 1M', 'read -P 0 3M 512k', 'read -P 9 8M 64k']
    const words = [...commands, ...checks].flatMap(command => ['-c', command])
    expect(await run('qemu-io', '-f', 'raw', ...words, uri('disk'))).not.toContain('failed')
    expect(
      await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', uri('disk'), path('open.img')),
    ).toContain('identical')
  })

  it('loses nothing under load while the target is killed, and comes back', async () => {
    await serve('disk')
    const words = fio('disk', '--rw=randwrite', '--bs=4k', '--iodepth=32', '--io_size=256m', '--rate=,48m')
    const load = await Child.start(findProgram('fio')!, words)
    // What is waited for does not come once the load has ended, which then shows why.
    const whileLoaded = (condition: () => boolean | Promise<boolean>): Promise<void> =>
      until(async () => load.exit !== undefined || (await condition()))
    for (let round = 1; round <= 2; round++) {
      const writes = await writesOf('disk')
      await whileLoaded(async () => (await writesOf('disk')) > writes + 4000)
      const before = count(LOST)
      await tgt.kill()
      await whileLoaded(() => count(LOST) > before)
      await tgt.start()
      await whileLoaded(() => count(BACK) === count(LOST))
    }
    expect(count(LOST)).toBeGreaterThan(1)
    expect((await load.exited).code, load.output).toBe(0)
    expect(
      await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', uri('disk'), path('open.img')),
    ).toContain('identical')
  })

  it('lets a user in by the password, and shows it nowhere', async () => {
    await create('secret', tgt.url('closed', `alice%${PASSWORD}@`))
    await daemon.restart()
    const shown = JSON.stringify([await bdevs(), await daemon.rpc('config_get_kept')])
    expect(shown).toContain('"secret"')
    expect(shown + daemon.output).not.toContain(PASSWORD)
  })

  it.each([
    ['a wrong password', () => tgt.url('closed', 'alice%wrong-password@'), /does not let alice in/],
    ['no user at all', () => tgt.url('closed'), /asks who we are/],
    ['a target that is not there', () => tgt.url('none'), /has no target iqn.2026-01.test.qpair:none/],
    ['a unit that is not there', () => tgt.url('open').replace(/1$/, '9'), /has no LUN 9: there are 0, 1/],
    [
      'a port where nobody listens',
      () => 'iscsi://127.0.0.1:1/iqn.2026-01.test:x/1',
      /nobody answers .*ECONNREFUSED/,
    ],
    ['a URL that is none', () => 'iscsi://127.0.0.1', /no URL of an iSCSI disk: iscsi:\/\//],
  ])('explains %s', async (_what, url, why) => {
    await expect(create('wrong', url())).rejects.toThrow(why)
    expect(await bdevs()).toEqual([])
  })

  it('has its disk again when the target comes after the daemon', async () => {
    await create('secret', tgt.url('closed', `alice%${PASSWORD}@`))
    await daemon.kill()
    await tgt.kill()
    await daemon.start()
    expect(await bdevs()).toEqual([])
    expect(daemon.output).toContain('could not restore bdev_iscsi_create')
    await tgt.start()
    await daemon.rpc('bdev_get_bdevs', { name: 'secret', timeout: 60_000 })
    expect(daemon.output).not.toContain(PASSWORD)
  })
})
