/** A virtio-scsi adapter in a Linux guest: its disks, what sg3-utils make of them, and targets that come and go. */
import { truncateSync } from 'node:fs'
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest } from './lab/guest.ts'
import { LinuxHost } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'
import { scsiArgs, startVhost, type VhostTarget } from './lab/vhost.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
const BLOCKS = SIZE / 512

/** Where the guest finds them: adapter, channel, target, unit. */
const DISKS = [
  { bdev: 'memory', address: '0:0:0:0', block: 512 },
  { bdev: 'file4k', address: '0:0:1:0', block: 4096 },
  { bdev: 'packed', address: '1:0:0:0', block: 512 },
] as const

await describeWith(GUEST_PROGRAMS, 'a virtio-scsi adapter of a Linux guest', () => {
  let target: VhostTarget
  let guest: Guest
  let host: LinuxHost
  let image: string
  /** The guest names disks in the order in which it has looked at them, which is not always the same. */
  let device: Record<(typeof DISKS)[number]['bdev'], string>

  beforeAll(async () => {
    target = await startVhost({ args: ['--reactors', '2'] })
    const { daemon } = target
    image = target.image('disk', SIZE)
    await daemon.rpc('bdev_malloc_create', { name: 'memory', block_size: 512, num_blocks: BLOCKS })
    await daemon.rpc('bdev_uring_create', { name: 'file4k', filename: image, block_size: 4096 })
    await daemon.rpc('bdev_malloc_create', { name: 'packed', block_size: 512, num_blocks: BLOCKS })
    await daemon.rpc('bdev_malloc_create', { name: 'passing', block_size: 512, num_blocks: BLOCKS })
    const split = await target.serveScsi('split', ['memory', 'file4k'])
    const packed = await target.serveScsi('packed', ['packed'])
    guest = await bootGuest({
      nics: 0,
      sharedMemory: true,
      modules: ['virtio_scsi', 'sd_mod', 'sg'],
      extraArgs: [
        ...scsiArgs({ id: 'split', socket: split, queues: 2 }),
        ...scsiArgs({ id: 'packed', socket: packed, packed: true }),
      ],
    })
    host = new LinuxHost(guest)
    const names = await Promise.all(DISKS.map(async ({ bdev, address }) => [bdev, await nameOf(address)]))
    device = Object.fromEntries(names)
    await guest.run('dd if=/dev/urandom of=/tmp/random bs=1M count=4')
  })
  afterAll(async () => {
    await guest?.stop()
    await target?.stop()
  })
  afterEach(async () => {
    expect(await host.ioErrors()).toBe('')
  })

  /** Waits until the guest has a disk at an address. */
  async function nameOf(address: string): Promise<string> {
    const home = `/sys/bus/scsi/devices/${address}/block`
    await guest.waitFor(`[ -b /dev/$(ls ${home}) ]`)
    return host.text(`echo /dev/$(ls ${home})`)
  }

  const shapes = [
    { engine: 'libaio', rw: 'randwrite', bs: '4k', size: '8m' },
    { engine: 'io_uring', rw: 'randrw', bs: '64k', size: '16m' },
    { engine: 'libaio', rw: 'randwrite', bs: '1m', size: '48m' },
  ]
  const cases = DISKS.flatMap(({ bdev }) => shapes.map(shape => ({ bdev, ...shape })))
  it.each(cases)('reads back what it wrote: $bdev, $rw $bs by $engine', async ({ bdev, ...shape }) => {
    const { engine, rw, bs, size } = shape
    const load = `--filename=${device[bdev]} --rw=${rw} --bs=${bs} --size=${size} --iodepth=32 --ioengine=${engine} --direct=1`
    const check = '--verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1'
    await guest.run(`fio --name=verify ${load} ${check}`)
  })

  it.each(DISKS)('tells who and how large it is: $bdev', async ({ bdev, block }) => {
    const disk = device[bdev]
    expect(await host.text(`sg_inq ${disk}`)).toMatch(/Peripheral device type: disk/)
    const capacity = await host.text(`sg_readcap --16 ${disk}`)
    expect(capacity).toMatch(new RegExp(`Number of logical blocks=${SIZE / block}\\b`))
    expect(capacity).toMatch(new RegExp(`Logical block length=${block} bytes`))
    expect(capacity).toMatch(/lbpme=1/)
    const pages = await host.text(`sg_vpd ${disk}`)
    for (const page of ['Unit serial number', 'Device identification', 'Block limits', 'provisioning']) {
      expect(pages).toContain(page)
    }
    for (const page of ['sn', 'di', 'bl', 'bdc', 'lbpv']) await guest.run(`sg_vpd --page=${page} ${disk}`)
    expect(await host.text(`sg_luns ${disk}`)).toMatch(/Lun list length = 8/)
    expect(await host.text(`sg_modes --page=8 ${disk}`)).toMatch(/Caching/)
    await guest.run(`sg_turs ${disk} && sg_requests ${disk} && sg_opcodes ${disk}`)
  })

  it('refuses with sense data what it does not have', async () => {
    // READ DEFECT DATA (10), which is for media with defects; and a block beyond the end.
    const unknown = await guest.run(`sg_raw --request=64 ${device.memory} 37 00 00 00 00 00 00 00 40 00`, {
      check: false,
    })
    expect(unknown.stdout + unknown.stderr).toMatch(/Illegal Request/i)
    expect(unknown.stdout + unknown.stderr).toMatch(/Invalid command operation code/i)
    const beyond = await guest.run(
      `sg_raw --request=512 ${device.memory} 28 00 ${hexBytes(BLOCKS)} 00 00 01 00`,
      {
        check: false,
      },
    )
    expect(beyond.stdout + beyond.stderr).toMatch(/Logical block address out of range/i)
    await guest.run(`sg_turs ${device.memory}`)
  })

  it.each(DISKS)('unmaps, writes the same and synchronises: $bdev', async ({ bdev, block }) => {
    const disk = device[bdev]
    const perPage = 4096 / block
    const zeroes = (blocks: string): string => `dd if=/dev/zero of=/tmp/expected conv=notrunc ${blocks}`
    const compare = `dd if=${disk} of=/tmp/back bs=1M count=4 iflag=direct && cmp /tmp/expected /tmp/back`
    await guest.run(`dd if=/tmp/random of=${disk} bs=1M oflag=direct && cp /tmp/random /tmp/expected`)

    await guest.run(`sg_unmap --force --lba=${16 * perPage} --num=${8 * perPage} ${disk}`)
    await guest.run(`${zeroes('bs=4k seek=16 count=8')} && ${compare}`)

    await guest.run('dd if=/dev/urandom of=/tmp/block bs=4096 count=1')
    const same = `--in=/tmp/block --xferlen=${block} --lba=${64 * perPage} --num=3`
    await guest.run(`sg_write_same --16 ${same} ${disk}`)
    const copy = `dd if=/tmp/block of=/tmp/expected bs=${block} count=1 conv=notrunc seek=$((${64 * perPage} + i))`
    await guest.run(`for i in 0 1 2; do ${copy}; done && ${compare}`)

    await guest.run(`blkdiscard -o 1048576 -l 65536 ${disk} && blkdiscard -z -o 1114112 -l 65536 ${disk}`)
    await guest.run(`${zeroes('bs=64k seek=16 count=2')} && ${compare}`)
    await guest.run(`sg_sync ${disk} && sg_start --stop ${disk} && sg_start --start ${disk}`)
    await guest.run(compare)
  })

  it('reserves, as a cluster does', async () => {
    const persist = (options: string): Promise<string> =>
      host.text(`sg_persist ${options} ${device.memory} 2>&1`)
    expect(await persist('--in --read-keys')).toMatch(/no registered reservation keys/i)
    await persist('--out --register --param-sark=0xabc')
    expect(await persist('--in --read-keys')).toMatch(/0xabc/)
    // Exclusive access, registrants only.
    await persist('--out --reserve --param-rk=0xabc --prout-type=6')
    expect(await persist('--in --read-reservation')).toMatch(/0xabc[\s\S]*Exclusive Access, registrants only/)
    await guest.run(`dd if=/tmp/random of=${device.memory} bs=64k count=1 oflag=direct`)
    await persist('--out --release --param-rk=0xabc --prout-type=6')
    expect(await persist('--in --read-reservation')).toMatch(/NO reservation held/i)
    await persist('--out --clear --param-rk=0xabc')
    expect(await persist('--in --report-capabilities')).toMatch(/Report capabilities response/i)
  })

  it('carries a file system, also over a reset of the unit, the target and the adapter', async () => {
    const disk = device.file4k
    await guest.run(`mkfs.ext4 -q ${disk} && mount ${disk} /mnt`)
    await guest.run(
      'cp /usr/bin/* /mnt/ && cd /mnt && find . -type f -exec sha256sum {} + >/tmp/sums && sync',
    )
    const load = host.startLoad(device.packed)
    await load.progress()
    for (const reset of ['--device', '--target', '--host']) {
      await guest.run(`sg_reset ${reset} ${disk}`, { check: false })
      await load.progress()
    }
    await load.stop()
    await guest.run(`umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount ${disk} /mnt`)
    await guest.run('cd /mnt && sha256sum -c /tmp/sums >/dev/null && cd / && umount /mnt')
    await guest.run(`e2fsck -fn ${disk}`)
  })

  it('sees a disk grow while it works on it', async () => {
    const load = host.startLoad(device.file4k)
    await load.progress()
    truncateSync(image, SIZE + 16 * MIB)
    await target.daemon.rpc('bdev_uring_rescan', { name: 'file4k' })
    await host.waitForText(`/sys/block/${device.file4k.slice(5)}/size`, `${(SIZE + 16 * MIB) / 512}`)
    await load.stop()
  })

  it('sees targets come and go while it works on another', async () => {
    const load = host.startLoad(device.memory)
    await load.progress()
    for (let round = 0; round < 3; round++) {
      expect(await target.addTarget('split', 5, 'passing')).toBe(5)
      const passing = await nameOf('0:0:5:0')
      await guest.run(`dd if=/tmp/random of=${passing} bs=64k oflag=direct`)
      await target.removeTarget('split', 5)
      await guest.waitFor(`! test -e ${passing}`)
    }
    await load.stop()
  })
})

/** Four bytes of a command, most significant first. */
const hexBytes = (value: number): string =>
  value
    .toString(16)
    .padStart(8, '0')
    .replace(/..(?!$)/g, '$& ')
