/** A controller whose Identify data, logs and statuses are nonsense: it may be refused, and nobody else may notice. */
import { afterEach, expect, it } from 'vitest'
import { IoType } from '../../src/bdev/io.ts'
import { logSettings } from '../../src/core/log.ts'
import { Prng } from '../../src/core/prng.ts'
import { Host, namespace, Submitter } from './support.ts'

logSettings.write = () => {}

let host: Host
afterEach(() => host.close())

it.each(Array.from({ length: 60 }, (_, seed) => seed))('survives nonsense, seed %i', async seed => {
  const prng = new Prng(seed)
  host = new Host()
  const good = host.fake({ port: 4420, cntlid: 1 }, [namespace({ uuid: 'cd'.repeat(16) })])
  await host.attach(good, { name: 'Nvme1' })
  const disk = new Submitter(host, host.open('Nvme1n1'))

  const bad = host.fake({ port: 4421, cntlid: 100 }, [
    namespace(),
    namespace({ nsid: 2, uuid: 'ef'.repeat(16) }),
  ])
  bad.spoil = data => {
    if (!prng.oneIn(3)) return
    // Most fields stand at the front of their structures, and Identify Controller's also from 512 on.
    const from = prng.pick([0, 0, 64, 128, 512])
    for (let i = prng.between(1, 40); i > 0; i--)
      data[from + prng.below(128)] = prng.pick([0, 1, 255, prng.u32()])
  }
  bad.intercept = () => (prng.oneIn(40) ? prng.u32() & 0x7fff : undefined)
  const target = { host: bad.host, port: bad.port }
  const options = { ...host.nvme.get('Nvme1').options, name: 'Nvme0', subnqn: bad.options.subnqn }
  const attached = host.nvme.attach(options, { target, source: undefined, mode: 'multipath' }).then(
    devices => devices.map(({ name }) => name),
    (error: Error) => error.message,
  )
  let isSettled = false
  void attached.then(() => {
    isSettled = true
  })
  for (let i = 0; i < 100 && !isSettled; i++) await host.advance(1000, 500)
  const result = await attached
  const submitted = []
  if (Array.isArray(result)) {
    for (const name of result) {
      const { blockCount } = host.bdevs.get(name)
      const own = new Submitter(host, host.open(name))
      for (const type of [IoType.READ, IoType.FLUSH]) {
        submitted.push(own.submit(type, 0, Math.min(8, blockCount)))
      }
    }
    for (let i = 0; i < 4; i++) {
      await host.settle()
      if (bad.admin !== undefined && bad.admin.events.length > 0)
        bad.notify(prng.pick([0, 3]), prng.pick([4, 12]))
    }
  } else {
    expect(result).toMatch(/^Nvme0: /)
  }
  await host.advance(2000, 500)
  for (const path of host.nvme.find('Nvme0')?.paths ?? []) void host.nvme.detachPath(path)
  for (let i = 0; i < 20 && host.nvme.find('Nvme0') !== undefined; i++) await host.advance(1000, 500)
  expect(host.nvme.find('Nvme0')).toBeUndefined()
  for (const one of submitted) expect(one.isEnded).toBe(true)

  expect(await disk.read(0, 8)).toEqual(good.namespaces[0]!.data.slice(0, 4096))
})
