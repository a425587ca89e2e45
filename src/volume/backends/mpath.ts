/** `mpath`: the multipath devices that multipathd has made. There is one such pool on a machine. */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { blockVolume, fullOf, SECTOR } from '../block-devices.ts'
import { fileOpening } from '../file-volumes.ts'
import type { PoolBackend, PoolBackendType, PoolContents, VolumeFacts } from '../pool.ts'
import { SYS, sysText } from '../scsi-units.ts'
import { DeviceVolumes } from './device-volumes.ts'

export const multipathPool: PoolBackendType = {
  type: 'mpath',
  summary: 'The multipath devices of this machine.',
  create: () => new MultipathPool(),
}

/** Of what multipathd makes: `mpath-` and the identifier of the unit. */
const UUID_PREFIX = 'mpath-'

export class MultipathPool implements PoolBackend {
  readonly volumes = new DeviceVolumes('multipathd makes them of the paths that it finds')
  readonly opening = fileOpening
  readonly #sys: string

  constructor(sys = SYS) {
    this.#sys = sys
  }

  async start(): Promise<void> {}

  async stop(): Promise<void> {}

  async refresh(): Promise<PoolContents> {
    const volumes: VolumeFacts[] = []
    const names = await readdir(join(this.#sys, 'class/block')).catch(() => [])
    for (const device of names.filter(name => name.startsWith('dm-'))) {
      const facts = join(this.#sys, 'class/block', device)
      const uuid = await sysText(facts, 'dm/uuid')
      if (!uuid.startsWith(UUID_PREFIX)) continue
      const sizeBytes = Number(await sysText(facts, 'size')) * SECTOR
      const volume = blockVolume(device, `/dev/mapper/${await sysText(facts, 'dm/name')}`, sizeBytes)
      volumes.push({ ...volume, key: uuid.slice(UUID_PREFIX.length) })
    }
    return fullOf(volumes)
  }
}
