/** virtio-blk disks of every make in one Linux guest: split and packed rings, one queue and four, several devices. */
import { truncateSync } from 'node:fs'
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { blkArgs, startVhost, type VhostTarget } from './lab/vhost.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
/** XFS takes nothing below 300 MiB. */
const FILE_SIZE = 320 * MIB
const QUEUES = 4

/** The guest names disks in the order in which it finds them; its own is /dev/vda. */
const DISKS = [
  { bdev: 'memory', device: '/dev/vdb', size: SIZE, block: 512, queues: 1, packed: false },
  { bdev: 'file', device: '/dev/vdc', size: FILE_SIZE, block: 512, queues: QUEUES, packed: false },
  { bdev: 'memory4k', device: '/dev/vdd', size: SIZE, block: 4096, queues: 1, packed: true },
  { bdev: 'file4k', device: '/dev/vde', size: FILE_SIZE, block: 4096, queues: QUEUES, packed: true },
] as const
const READ_ONLY = '/dev/vdf'
const FAILING = '/dev/vdg'

await describeWith(GUEST_PROGRAMS, 'virtio-blk disks of a Linux guest', () => {
  let target: VhostTarget
  let guest: Guest
  let host: LinuxHost
  let images: Record<string, string>

  beforeAll(async () => {
    target = await startVhost({ args: ['--reactors', '2'] })
    const { daemon } = target
    images = { file: target.image('512', FILE_SIZE), file4k: target.image('4096', FILE_SIZE) }
    await daemon.rpc('bdev_malloc_create', { name: 'memory', block_size: 512, num_blocks: SIZE / 512 })
    await daemon.rpc('bdev_uring_create', { name: 'file', filename: images['file'], block_size: 512 })
    await daemon.rpc('bdev_malloc_create', { name: 'memory4k', block_size: 4096, num_blocks: SIZE / 4096 })
    await daemon.rpc('bdev_aio_create', { name: 'file4k', filename: images['file4k'], block_size: 4096 })
    const filename = target.image('base', SIZE)
    await daemon.rpc('bdev_uring_create', { name: 'base', filename, block_size: 512 })
    await daemon.rpc('bdev_error_create', { base_name: 'base' })
    await daemon.rpc('bdev_null_create', { name: 'null', block_size: 512, num_blocks: 2048 })

    const extraArgs: string[] = []
    for (const { bdev, queues, packed } of DISKS) {
      const socket = await target.serveBlk(bdev, bdev, { packed_ring: packed })
      extraArgs.push(...blkArgs({ id: bdev, socket, queues, packed }))
    }
    const readOnly = await target.serveBlk('read-only', 'null', { readonly: true })
    const failing = await target.serveBlk('failing', 'EE_base')
    extraArgs.push(...blkArgs({ id: 'read-only', socket: readOnly }))
    extraArgs.push(...blkArgs({ id: 'failing', socket: failing }))
    guest = await bootGuest({
      cpus: QUEUES,
      nics: 0,
      sharedMemory: true,
      modules: ['xfs'],
      extraArgs,
    })
    host = new LinuxHost(guest)
    await guest.run('dd if=/dev/urandom of=/tmp/random bs=1M count=4')
  })
  afterAll(async () => {
    await guest?.stop()
    await target?.stop()
  })
  afterEach(async () => {
    expect(await host.ioErrors()).toBe('')
  })

  const queueOf = (device: string, name: string): Promise<string> =>
    host.text(`cat /sys/block/${device.replace('/dev/', '')}/queue/${name}`)

  it.each(DISKS)('shows the guest what it is: $device over $bdev', async disk => {
    const { device, size, block, queues, packed, bdev } = disk
    const home = `/sys/block/${device.replace('/dev/', '')}`
    // A feature is one digit, the lowest first; bit 34 is VIRTIO_F_RING_PACKED.
    expect((await host.text(`cat ${home}/device/features`))[34]).toBe(packed ? '1' : '0')
    expect(await host.text(`ls ${home}/mq | wc -l`)).toBe(`${queues}`)
    expect(await host.text(`cat ${home}/size`)).toBe(`${size / 512}`)
    expect(await host.text(`cat ${home}/ro`)).toBe('0')
    expect(await queueOf(device, 'logical_block_size')).toBe(`${block}`)
    expect(Number(await queueOf(device, 'discard_max_bytes'))).toBeGreaterThan(0)
    expect(Number(await queueOf(device, 'write_zeroes_max_bytes'))).toBeGreaterThan(0)
    // The serial number is asked of the device when it is read, by VIRTIO_BLK_T_GET_ID.
    expect(await host.text(`cat ${home}/serial`)).toMatch(/^.{1,20}$/)
    // What lies in memory has no cache that could be flushed.
    const cache = bdev.startsWith('memory') ? 'write through' : 'write back'
    expect(await host.text(`cat ${home}/cache_type`)).toBe(cache)
  })

  const shapes = [
    { engine: 'libaio', rw: 'randwrite', range: '4k-4k', size: '8m' },
    { engine: 'io_uring', rw: 'randrw', range: '4k-64k', size: '16m' },
    { engine: 'libaio', rw: 'randwrite', range: '1m-1m', size: '48m' },
  ]
  const cases = DISKS.flatMap(({ device }) => shapes.map(shape => ({ device, ...shape })))
  it.each(cases)('reads back what it wrote: $device, $rw $range by $engine', async ({ device, ...shape }) => {
    const { engine, rw, range, size } = shape
    const load = `--filename=${device} --rw=${rw} --bsrange=${range} --size=${size} --iodepth=32 --ioengine=${engine} --direct=1`
    const check = '--verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1'
    await guest.run(`fio --name=verify ${load} ${check}`)
  })

  it.each(DISKS)('uses every queue of $device from processors of its own', async ({ device, queues }) => {
    const before = await interrupts(DISKS.findIndex(disk => disk.device === device))
    const load = `--filename=${device} --rw=randread --bs=4k --iodepth=8 --ioengine=libaio --direct=1`
    // Each job on another processor, and so on another queue.
    await guest.run(
      `fio --name=queues ${load} --numjobs=${QUEUES} --cpus_allowed=0-${QUEUES - 1} --cpus_allowed_policy=split --size=4m`,
    )
    const after = await interrupts(DISKS.findIndex(disk => disk.device === device))
    expect(after.filter((count, queue) => count > before[queue]!)).toHaveLength(queues)
  })

  /** How often each queue of a disk has interrupted the guest. */
  async function interrupts(disk: number): Promise<number[]> {
    // The guest's own disk is a virtio device too, and so is its serial port: names count from the first of them.
    const device = await host.text(
      `basename $(readlink -f /sys/block/${DISKS[disk]!.device.slice(5)}/device)`,
    )
    const lines = (await host.text(`grep ${device}-req /proc/interrupts`)).split('\n')
    return lines.map(line => (line.match(/(?<=\s)\d+(?=\s)/g) ?? []).reduce((sum, n) => sum + Number(n), 0))
  }

  it.each(
    DISKS.map(({ device }, index) => ({
      device,
      ...(index % 2 === 0
        ? { mkfs: 'mkfs.ext4 -q', fsck: 'e2fsck -fn' }
        : { mkfs: 'mkfs.xfs -q -f -m reflink=0', fsck: 'xfs_repair -n' }),
    })),
  )('carries a file system: $mkfs on $device', async ({ device, mkfs, fsck }) => {
    await guest.run(`${mkfs} ${device} && mount ${device} /mnt`)
    await guest.run(
      'cp /usr/bin/* /mnt/ && cd /mnt && find . -type f -exec sha256sum {} + >/tmp/sums && sync',
    )
    await guest.run(`umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount ${device} /mnt`)
    await guest.run('cd /mnt && sha256sum -c /tmp/sums >/dev/null && fstrim -v /mnt')
    await guest.run(`cd /mnt && sha256sum -c /tmp/sums >/dev/null; cd / && umount /mnt && ${fsck} ${device}`)
  })

  it.each(DISKS)('discards and writes zeroes exactly where it is told: $device', async ({ device }) => {
    for (const zeroes of ['blkdiscard', 'blkdiscard -z']) {
      await guest.run(`dd if=/tmp/random of=${device} bs=1M oflag=direct`)
      await guest.run(`${zeroes} -o ${MIB + 4096} -l ${MIB} ${device}`)
      // What the test expects is made in the guest from the same random bytes.
      await guest.run(
        `cp /tmp/random /tmp/expected && dd if=/dev/zero of=/tmp/expected bs=4k seek=257 count=256 conv=notrunc`,
      )
      await guest.run(
        `dd if=${device} of=/tmp/back bs=1M count=4 iflag=direct && cmp /tmp/expected /tmp/back`,
      )
    }
  })

  it('frees the space of what is discarded', async () => {
    const { device } = DISKS[1]
    await guest.run(`dd if=/tmp/random of=${device} bs=1M oflag=direct && blkdiscard ${device}`)
    const iostat = await target.daemon.rpc<{ bdevs: { bytes_unmapped: number }[] }>('bdev_get_iostat', {
      names: ['file'],
    })
    expect(iostat.bdevs[0]!.bytes_unmapped).toBeGreaterThanOrEqual(FILE_SIZE)
    expect(await host.text(`tr -d '\\0' <${device} | wc -c`)).toBe('0')
  })

  it('is not written to when the controller is read-only', async () => {
    expect(await host.text('cat /sys/block/vdf/ro')).toBe('1')
    const { code } = await guest.run(`dd if=/dev/zero of=${READ_ONLY} bs=4k count=1 oflag=direct`, {
      check: false,
    })
    expect(code).not.toBe(0)
    await guest.run(`dd if=${READ_ONLY} of=/dev/null bs=64k iflag=direct`)
  })

  const inject = (io_type: string, num: number): Promise<unknown> =>
    target.daemon.rpc('bdev_error_inject_error', {
      name: 'EE_base',
      io_type,
      ...(io_type === 'clear' ? {} : { num }),
      error_type: 'failure',
    })

  it.each(['read', 'write'])('is told of a %s error, and goes on after it', async direction => {
    const copy =
      direction === 'read'
        ? `dd if=${FAILING} of=/dev/null bs=4k count=1 iflag=direct`
        : `dd if=/tmp/random of=${FAILING} bs=4k count=1 oflag=direct`
    await inject(direction, 100)
    const { code, stderr } = await guest.run(copy, { check: false })
    expect(code).toBe(1)
    expect(stderr).toContain('Input/output error')
    await inject('clear', 0)
    await guest.run(copy)
    expect(await host.ioErrors()).toContain('I/O error, dev vdg')
    await host.clearKernelLog()
  })

  it('flushes when the guest synchronises, and not when the guest has turned the cache off', async () => {
    const synchronise = `dd if=/tmp/random of=${FAILING} bs=4k count=1 conv=fsync`
    const cache = '/sys/block/vdg/cache_type'
    await inject('flush', 1)
    expect(await guest.run(synchronise, { check: false })).toMatchObject({ code: 1 })
    await inject('clear', 0)
    await guest.run(synchronise)

    await guest.run(`echo 'write through' >${cache}`)
    expect(await host.text(`cat ${cache}`)).toBe('write through')
    await guest.run(synchronise)
    await guest.run(`echo 'write back' >${cache}`)
    expect(await host.text(`cat ${cache}`)).toBe('write back')
    await host.clearKernelLog()
  })

  it('grows while the guest has it mounted', async () => {
    const { device, bdev } = DISKS[1]
    await guest.run(`mkfs.ext4 -q ${device} && mount ${device} /mnt && cp /tmp/random /mnt/kept`)
    truncateSync(images[bdev]!, FILE_SIZE + 32 * MIB)
    await target.daemon.rpc('bdev_uring_rescan', { name: bdev })
    await host.waitForText('/sys/block/vdc/size', `${(FILE_SIZE + 32 * MIB) / 512}`)
    const beyond = FILE_SIZE / MIB + 8
    await guest.run(`dd if=/tmp/random of=${device} bs=1M seek=${beyond} oflag=direct`)
    await guest.run('cmp /tmp/random /mnt/kept && umount /mnt')
    await guest.run(`dd if=${device} of=/tmp/back bs=1M skip=${beyond} count=4 && cmp /tmp/random /tmp/back`)
  })

  it('grows a null disk that nobody reads', async () => {
    await target.daemon.rpc('bdev_null_resize', { name: 'null', new_size: 8 })
    await host.waitForText('/sys/block/vdf/size', '16384')
  })
})
