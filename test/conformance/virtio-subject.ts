/** A disk of the virtio driver, whose back end is a vhost controller over memory on the same reactors. */
import { mkdtempSync } from 'node:fs'
import { join } from 'node:path'
import { Acceptor, ReactorAcceptor } from '../../src/reactor/acceptor.ts'
import { MessageSockets, ReactorMessageSockets } from '../../src/reactor/message-sockets.ts'
import { VhostControllers } from '../../src/vhost/controllers.ts'
import { ReactorVhost } from '../../src/vhost/reactor-vhost.ts'
import { FrontEnds } from '../../src/vhost/session/front-ends.ts'
import type { DeviceKind } from '../../src/virtio/messages.ts'
import { installVirtio } from '../../src/virtio/reactor-virtio.ts'
import { VirtioControllers } from '../../src/virtio/virtio-controllers.ts'
import { type Bench, BLOCK_COUNT, BLOCK_SIZE, type Subject } from './subjects.ts'

const CONTROLLER = 'disk'

interface Services {
  readonly vhost: VhostControllers
  readonly virtio: VirtioControllers
  readonly directory: string
}

function install({ bdevs, reactors, local, memory }: Bench): Services {
  for (const [i, reactor] of reactors.reactors.entries()) {
    installVirtio(reactor)
    new ReactorMessageSockets(reactor, new ReactorAcceptor(reactor))
    new ReactorVhost(reactor, local[i]!)
  }
  const sockets = new MessageSockets(reactors, new Acceptor(reactors))
  const directory = mkdtempSync(join(memory, 'vhost-'))
  const vhost = new VhostControllers({
    reactors: Object.assign(reactors, { cpus: reactors.reactors.map(() => -1) }),
    bdevs,
    directory,
    defaultAccess: {},
    listen: new FrontEnds(reactors, sockets).listen,
  })
  return { vhost, virtio: new VirtioControllers({ bdevs, reactors, sockets }), directory }
}

async function serve({ vhost }: Services, kind: DeviceKind, packedRing: boolean): Promise<void> {
  const options = { name: CONTROLLER, cpumask: undefined, access: { mode: undefined, owner: undefined } }
  if (kind === 'blk') {
    await vhost.createBlk({ ...options, bdev: 'base', readOnly: false, packedRing })
  } else {
    await vhost.createScsi({ ...options, delay: false })
    await vhost.targets.add(CONTROLLER, 0, 'base')
  }
}

export const virtioSubject = (name: string, kind: DeviceKind, packedRing: boolean): Subject => ({
  name,
  async create(bench) {
    await bench.bdevs.create('malloc', 'base', { block_size: BLOCK_SIZE, num_blocks: BLOCK_COUNT })
    const services = install(bench)
    await serve(services, kind, packedRing)
    bench.atEnd(async () => {
      await services.virtio.stop()
      await services.vhost.stop()
    })
    const disks = await services.virtio.attach({
      name: 'subject',
      path: join(services.directory, CONTROLLER),
      kind,
      vqCount: undefined,
      vqSize: 128,
      packedRing,
    })
    return disks[0]!.name
  },
})
