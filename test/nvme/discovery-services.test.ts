import { afterEach, beforeEach, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { DiscoveryService } from '../../src/nvme/discovery-services.ts'
import type { PathStatus } from '../../src/nvme/messages.ts'
import type { Path } from '../../src/nvme/named-controller.ts'
import type { NvmeControllers } from '../../src/nvme/nvme-controllers.ts'

const { write } = logSettings
const lines: string[] = []
beforeEach(() => {
  lines.length = 0
  logSettings.write = line => void lines.push(line)
})
afterEach(() => {
  logSettings.write = write
})

const at = (port: number) => ({ host: '127.0.0.1', port })
const naming = (...ports: number[]): PathStatus =>
  ({
    state: 'ready',
    discovered: ports.map(port => ({ kind: 'subsystem', target: at(port), subnqn: `nqn.${port}` })),
  }) as unknown as PathStatus

it('follows the next log although a path that the last one no longer named could not be detached', async () => {
  let follow = (_: PathStatus): void => {}
  const attached = new Map<string, { paths: Path[] }>()
  const nvme = {
    openDiscovery: async (_: unknown, __: unknown, listener: typeof follow) => {
      follow = listener
      return {}
    },
    find: (name: string) => attached.get(name),
    attach: async ({ name }: { name: string }, { target }: { target: object }) => {
      attached.set(name, { paths: [{ isDiscovered: true, targets: [target] } as unknown as Path] })
    },
    detachPath: () => Promise.reject(new Error('it is stuck')),
  } as unknown as NvmeControllers
  const options = { controller: { name: 'd' }, target: at(8009) }
  const service = new DiscoveryService(nvme, options as never)
  await service.start()
  for (const status of [naming(1), naming(2), naming(1, 3)]) {
    follow(status)
    await service.attached()
  }
  expect([...attached.keys()]).toEqual(['d0', 'd1'])
  expect(lines.join('')).toContain('it is stuck')
})
