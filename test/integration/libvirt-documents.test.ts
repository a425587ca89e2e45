/** What we write, libvirt takes; what it answers, we read and write the same. */
import { dirname } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { formatPool, type PoolDocument, parsePool } from '../../src/libvirt/pool-xml.ts'
import { formatSecret, parseSecret } from '../../src/libvirt/secret-xml.ts'
import { formatVolume, parseVolume } from '../../src/libvirt/volume-xml.ts'
import { GUIDES, POOLS } from '../libvirt/pool-examples.ts'
import { describeWith } from './lab/describe-with.ts'
import { type Libvirt, startLibvirt } from './lab/libvirt.ts'

/** Types that no libvirt of a distribution is built with any more. */
const GONE = ['sheepdog', 'vstorage']

const BACKENDS = [
  'libvirt_storage_backend_iscsi-direct.so',
  'libvirt_storage_backend_rbd.so',
  'libvirt_storage_backend_zfs.so',
] as const

await describeWith(['libvirtd', 'virsh', 'setpriv', ...BACKENDS], "libvirt's documents", () => {
  let libvirt: Libvirt

  beforeAll(async () => {
    libvirt = await startLibvirt()
  })
  afterAll(() => libvirt?.stop())

  /** libvirt writes an empty element on two lines. */
  const plain = (xml: string): string => xml.replace('<source>\n  </source>', '<source/>').trim()

  const { secret: secretOfGuide, ...poolsOfGuides } = GUIDES
  const pools = Object.entries({ ...POOLS, ...poolsOfGuides }).filter(
    ([name]) => !GONE.some(type => name === type),
  )

  it.each(pools)('are those we write, for a pool: %s', async (_name, xml) => {
    const ours = parsePool(xml)
    await libvirt.virsh('pool-define', libvirt.file('pool.xml', formatPool(ours)))
    const theirs = plain(await libvirt.virsh('pool-dumpxml', ours.name))
    await libvirt.virsh('pool-undefine', ours.name)

    const read = parsePool(theirs)
    expect(formatPool(read).trim()).toBe(theirs)
    expect(read).toEqual({
      ...ours,
      uuid: ours.uuid ?? read.uuid,
      usage: { capacityBytes: 0, allocationBytes: 0, availableBytes: 0 },
    } satisfies PoolDocument)
  })

  it('are those we write, for a secret', async () => {
    const said = await libvirt.virsh('secret-define', libvirt.file('secret.xml', secretOfGuide))
    const uuid = /^Secret (\S+) created/.exec(said)![1]!
    const theirs = (await libvirt.virsh('secret-dumpxml', uuid)).trim()

    expect(formatSecret(parseSecret(theirs)).trim()).toBe(theirs)
    expect(parseSecret(theirs)).toEqual({ ...parseSecret(secretOfGuide), uuid })
  })

  it('are those we write, for volumes and the pool that they are in', async () => {
    const path = `${dirname(libvirt.file('marker', ''))}/pool`
    await libvirt.virsh('pool-define-as', 'images', 'dir', '--target', path)
    await libvirt.virsh('pool-build', 'images')
    await libvirt.virsh('pool-start', 'images')
    await libvirt.virsh('vol-create-as', 'images', 'base.raw', '1MiB')
    const overlay = formatVolume({
      name: 'overlay.qcow2',
      capacityBytes: 1 << 21,
      target: {
        format: 'qcow2',
        permissions: { mode: 0o640 },
        lazyRefcounts: true,
        clusterSizeBytes: 1 << 17,
      },
      backingStore: { path: `${path}/base.raw`, format: 'raw' },
    })
    await libvirt.virsh('vol-create', 'images', libvirt.file('volume.xml', overlay))

    for (const name of ['base.raw', 'overlay.qcow2']) {
      const theirs = (await libvirt.virsh('vol-dumpxml', '--pool', 'images', name)).trim()
      expect(formatVolume(parseVolume(theirs, 'dir')).trim()).toBe(theirs)
    }
    const read = parseVolume(await libvirt.virsh('vol-dumpxml', '--pool', 'images', 'overlay.qcow2'), 'dir')
    expect(read).toMatchObject({
      type: 'file',
      name: 'overlay.qcow2',
      key: `${path}/overlay.qcow2`,
      capacityBytes: 1 << 21,
      target: { format: 'qcow2', compat: '1.1', lazyRefcounts: true, clusterSizeBytes: 1 << 17 },
      backingStore: { path: `${path}/base.raw`, format: 'raw' },
    })
    const pool = (await libvirt.virsh('pool-dumpxml', 'images')).trim()
    expect(formatPool(parsePool(pool)).trim()).toBe(plain(pool))
  })
})
